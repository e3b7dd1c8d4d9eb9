r"""Nearest neighbours: do samples lie where data lie (precision, density), do they reach all of it (recall, coverage),
and are they copies of what the network was trained on.

All by distances between all pairs, a chunk at a time; call them with features(x), features(y).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from sdekit.door import Count, door
from sdekit.metrics.sets import Distance, Samples, centred, rows, squares, step

_TIE = 1 - 1e-9  # two roundings of one distance differ by less


class PRDC(NamedTuple):
    """Precision, recall, density and coverage, 0-d float64 tensors; see ``prdc``."""

    precision: Tensor
    recall: Tensor
    density: Tensor
    coverage: Tensor


def _radii(x: Tensor, k: int) -> Tensor:
    """The square of each sample's distance to its k-th nearest other one."""
    return torch.cat([part.topk(k + 1, largest=False).values[:, k] for part in squares(x, x)])


@door
def prdc(x: Samples, y: Samples, k: Count = 5) -> PRDC:
    r"""Precision, recall, density and coverage of samples x against data y, with r_k(z) the distance of z to its k-th
    nearest other sample of its own set, and 1[·] the indicator:

    - precision = mean_i max_j 1[|x_i − y_j| < r_k(y_j)]: the share of x within the balls around data;
    - recall    = mean_j max_i 1[|x_i − y_j| < r_k(x_i)]: the share of y within the balls around samples;
    - density   = mean_i Σ_j 1[|x_i − y_j| < r_k(y_j)]/k: in how many of the k expected balls a sample lies;
    - coverage  = mean_j max_i 1[|x_i − y_j| < r_k(y_j)]: the share of data in whose ball a sample lies.

    Shares, but for the density, which has no upper bound. For equal laws without ties the mean density is 1 and the
    mean coverage 1 − Π_{i=1}^{k} (m − i)/(n + m − i), near 1 − 2^{-k} for n = m; precision and recall depend on the law
    and on n and m: compare sets of one size. Precision and recall are published with k = 3 and ≤, density and coverage
    with k = 5 and <, which differ only where distances are equal.
    Three matrices of distances: O((n² + n m + m²) d), 8M pairs at a time, about 300 MB.

    Raises ValueError for shapes that differ, k < 1, and fewer than k + 1 samples in a set.
    Source: Kynkäänniemi et al. 2019, eq. 1-2 (precision, recall); Naeem et al. 2020 (density, coverage).

    >>> y = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    >>> [round(value.item(), 3) for value in prdc(torch.tensor([[0.5], [0.6], [20.0]]), y, k=1)]
    [0.667, 0.75, 1.333, 0.5]
    """
    if k < 1:
        raise ValueError(f"k={k}: it must be at least 1")
    x, y = centred(x, y, k + 1)
    of_x, of_y = _radii(x, k) * _TIE**2, _radii(y, k) * _TIE**2
    balls = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    reached, covered = list[Tensor](), list[Tensor]()
    for near, radius in zip(squares(y, x), of_y.split(step(x))):
        inside = near < radius[:, None]
        balls += inside.sum(0)
        covered.append(inside.any(1))
        reached.append((near < of_x).any(1))
    shares = [(balls > 0), torch.cat(reached), balls.double() / k, torch.cat(covered)]
    return PRDC(*[share.double().mean() for share in shares])


def nearest(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The square of each x's distance to its nearest y, and that one's number."""
    found = [part.min(1) for part in squares(x, y)]
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])


@door
def authenticity(x: Samples, train: Samples) -> Distance:
    r"""The share of x that are no copies: mean_i 1[ρ(t_i) < |x_i − t_i|].

    t_i is the training sample nearest to x_i, and ρ its distance to the nearest other one. New data of the same law
    have no share of 1 either: compare with theirs. Where a training sample is there twice, ρ = 0 and exact copies of it
    alone are found: remove duplicates first. Cost O(n m d).

    Raises ValueError for shapes that differ, empty sets, and fewer than 2 training samples.
    Source: Alaa et al. 2022, as in Stein et al. 2023.

    >>> train = torch.tensor([[0.0], [1.0], [5.0]])
    >>> authenticity(torch.tensor([[0.1], [4.9], [2.5], [9.5]]), train).item()
    0.5
    """
    x, train = centred(x, train, called=("x", "train"))
    if len(train) < 2:
        raise ValueError(f"train: {len(train)} sample given: at least 2 are needed")
    distance, number = nearest(x, train)
    used, place = number.unique(return_inverse=True)
    own = torch.cat([part.topk(2, largest=False).values[:, 1] for part in squares(train[used], train)])
    return (own[place] < distance).double().mean()


@door
def ct_statistic(x: Samples, y: Samples, train: Samples, cells: Count = 3) -> Distance:
    r"""Σ_c w_c Z_c: do samples x lie nearer to the training set than data y that were not trained on?

    Far below 0: x are copies; far above: they lie farther than data do. Space is cut into cells by k-means of the
    training set. In each, Z_c is the Mann-Whitney statistic of the distances of x and of y to the nearest training
    sample there, standardised: N(0, 1) where x is as far as y. w_c is the cell's share of y; cells with 20 samples or
    fewer are left out. It grows with √n: a test, no distance. In more than some 64 dimensions take the first 64
    principal components.

    Raises ValueError for shapes that differ, empty sets, cells < 1, and cells without y or without any 20 samples.
    Source: Meehan et al. 2020, as in its code and Stein et al. 2023.

    >>> train, y = torch.arange(0.0, 99.0)[:, None], torch.arange(0.5, 99.0)[:, None]
    >>> ct_statistic(train + 0.01, y, train).item() < -3
    True
    """
    from sklearn.cluster import KMeans  # half a second to import

    if cells < 1:
        raise ValueError(f"cells={cells}: it must be at least 1")
    train = rows(train, x, called=("train", "x"))[0]
    x, y = rows(x, y)
    kmeans: Any = KMeans  # its stub knows n_init="auto" alone
    partition = kmeans(n_clusters=cells, n_init=10, random_state=0).fit(train.detach().cpu().numpy())
    of_x, of_y, of_train = (
        torch.from_numpy(partition.predict(z.detach().cpu().numpy())).to(z.device) for z in (x, y, train)
    )
    total = weight = 0.0
    for cell in range(cells):
        in_x, in_y, known = x[of_x == cell], y[of_y == cell], train[of_train == cell]
        if not len(in_y) or not len(known):
            raise ValueError(f"y, train: no sample in cell {cell} of {cells}: give more, or fewer cells")
        if len(in_x) > 20:
            total += len(in_y) * _mann_whitney(nearest(in_x, known)[0], nearest(in_y, known)[0])
            weight += len(in_y)
    if not weight:
        raise ValueError(f"x, cells: {len(x)} samples given: no cell of {cells} has more than 20 of them")
    return x.new_tensor(total / weight)


def _mann_whitney(first: Tensor, second: Tensor) -> float:
    """U, standardised with the correction for continuity."""
    n, m = len(first), len(second)
    u = mannwhitneyu(first.detach().cpu().numpy(), second.detach().cpu().numpy(), alternative="less").statistic
    return float((u - (n * m / 2 - 0.5)) / np.sqrt(n * m * (n + m + 1) / 12))
