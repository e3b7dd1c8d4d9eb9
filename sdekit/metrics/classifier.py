"""Can a classifier tell samples from data?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdekit.door import Count, Seed, door
from sdekit.metrics.sets import Distance, Samples, rows, shuffled

FOLDS = 5


MOST = 10_000  # samples of a set: their number alone leaves a standard deviation of 0.0035


@door
def classifier_accuracy(x: Samples, y: Samples, classifier: Any = None, seed: Seed = 0, most: Count = MOST) -> Distance:
    r"""The share of held-out x and y that a classifier tells apart, by five-fold cross-validation (C2ST).

    ½ where it cannot, 1 where it always can. By default √N nearest neighbours vote, N the samples trained on;
    ``classifier`` is any of scikit-learn's, in features(x) best a linear one. Of the larger set as many are taken as
    there are in the smaller. For equal laws ½ in the mean, with standard deviation 1/√(8n); for others it rises with n
    to the best classifier's accuracy, ½ + TV/2: biased downwards. Copies of data among the samples lower it, even
    below ½.
    Cost O(n² d) for neighbours, n at most ``most``: of larger sets a random part is taken, the same for each ``seed``.

    Raises ValueError for shapes that differ, fewer than 10 samples in a set, and ``most`` below that.
    Source: Lopez-Paz & Oquab 2017 (C2ST-KNN), there with one split into halves.

    >>> x = torch.linspace(0, 1, 50)[:, None]
    >>> classifier_accuracy(x, x + 9).item()
    1.0
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_score  # half a second to import
    from sklearn.neighbors import KNeighborsClassifier

    if classifier is not None and not hasattr(classifier, "fit"):
        raise ValueError(f"classifier={classifier!r}: it must be one of scikit-learn's, with fit and predict, or None")
    if most < 2 * FOLDS:
        raise ValueError(f"most={most}: it must be at least {2 * FOLDS}")
    n = min(len(x), len(y), most)
    x, y = rows(_some(x, n, seed), _some(y, n, seed + 1), 2 * FOLDS)
    both = torch.cat([x, y]).detach().cpu().numpy()
    if classifier is None:
        classifier = KNeighborsClassifier(int((2 * n * (FOLDS - 1) / FOLDS) ** 0.5))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    found = cross_val_score(classifier, both, np.arange(2 * n) < n, cv=folds)
    return x.new_tensor(found.mean())


def _some(x: Tensor, n: int, seed: int) -> Tensor:
    return x[shuffled(len(x), seed)[:n].to(x.device)]
