"""Real images: scikit-learn's digits, 1,797 handwritten digits of 8×8 pixels, split once and for all.

>>> data = digits()
>>> data.train.shape[0] + data.held_out.shape[0]
1797
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """A data set in two parts; no image is in both.

    Attributes:
        train, held_out: images [n, channels, height, width], float32 in [−1, 1].
        train_labels, held_out_labels: int64 [n].
        classes: number of classes; labels lie in 0 … classes − 1.
    """

    train: Float[Tensor, "n channels height width"]
    train_labels: Int[Tensor, "n"]
    held_out: Float[Tensor, "m channels height width"]
    held_out_labels: Int[Tensor, "m"]
    classes: int


def digits() -> Images:
    """The optical digits of Alpaydin & Kaynak 1998 (UCI) as scikit-learn ships them, pixel u in 0 … 16 as u/8 − 1.

    The split is a part of the data set: within each class every third image is held out (596 of 1,797,
    stratified), in an order that does not depend on any library's random numbers.

    Raises ImportError where scikit-learn is missing.

    >>> data = digits()
    >>> data.held_out.shape, float(data.train.min()), float(data.train.max())
    (torch.Size([596, 1, 8, 8]), -1.0, 1.0)
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the digits come with scikit-learn, which is not installed: pip install scikit-learn"
        ) from error
    pixels, classes = load_digits(return_X_y=True)
    images = torch.as_tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    labels = torch.as_tensor(classes, dtype=torch.int64)
    held_out = every_third(labels)
    return Images(images[~held_out], labels[~held_out], images[held_out], labels[held_out], classes=10)


def every_third(labels: Int[Tensor, "n"]) -> Tensor:
    """True for the third, sixth, ninth … occurrence of each label: a stratified third of the data.

    >>> every_third(torch.tensor([0, 0, 1, 0, 0, 1, 1])).tolist()
    [False, False, False, True, False, False, True]
    """
    occurrence = (labels[:, None] == labels).tril().sum(1)
    return occurrence % 3 == 0
