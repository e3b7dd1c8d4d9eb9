"""Data of whole-number levels, and real images: scikit-learn's digits, 1,797 of 8×8 pixels, split once and for all.

>>> data = digits()
>>> data.train.shape[0] + data.held_out.shape[0]
1797
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sdekit.door import Device, door, record
from sdekit.names import lookup


@record
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


@door
def every_third(labels: Int[Tensor, "n"]) -> Tensor:
    """True for the third, sixth, ninth … occurrence of each label: a stratified third of the data.

    >>> every_third(torch.tensor([0, 0, 1, 0, 0, 1, 1])).tolist()
    [False, False, False, True, False, False, True]
    """
    occurrence = (labels[:, None] == labels).tril().sum(1)
    return occurrence % 3 == 0


@door
def as_tensor(x: Tensor | np.ndarray, device: Device | None = None) -> Tensor:
    """A numpy array as a tensor on ``device``, of torch's default dtype where it holds floats; a tensor as it is.

    >>> as_tensor(np.zeros((2, 3))).dtype
    torch.float32
    """
    if not isinstance(x, np.ndarray):
        return x
    whole = np.array(
        x, order="C"
    )  # a copy: torch takes neither negative strides nor, without a warning, read-only ones
    return torch.as_tensor(whole, device=device, dtype=torch.get_default_dtype() if x.dtype.kind == "f" else None)


@door
@dataclass(frozen=True)
class Standardise:
    """y = (x − shift)/scale, the map to mean 0 and variance 1, and back.

    A density of y is one of x by log p(x) = log p(y) + ``log_det``. The probability of levels needs no such term, if
    the levels are told in y's units: ``quantization``.

    Attributes:
        shift, scale: of each feature [*event].

    >>> x = torch.tensor([[8.0, 0.0], [10.0, 4.0]])
    >>> map = Standardise.of(x)
    >>> map.apply(x)
    tensor([[-1., -1.],
            [ 1.,  1.]])
    >>> torch.equal(map.undo(map.apply(x)), x), round(map.log_det, 4)  # −log(1·2)
    (True, -0.6931)
    """

    shift: Float[Tensor, "*event"]
    scale: Float[Tensor, "*event"]

    @staticmethod
    def of(x: Tensor | np.ndarray, per: str = "feature") -> Standardise:
        """The map for data x [n, *event], a tensor or a numpy array.

        Args:
            per: ``"feature"`` gives each feature its own mean and standard deviation, a constant one the scale 1;
                ``"event"`` one mean and one standard deviation to all: images keep their contrasts, and levels stay
                levels.

        Raises ValueError for fewer than two samples, values that are not finite, and constant data with ``"event"``.
        """
        data = as_tensor(x)
        if data.ndim < 2 or len(data) < 2 or not bool(data.isfinite().all()):
            raise ValueError(f"x has shape {list(data.shape)}: it must be [n, *event] with n of at least 2, all finite")
        over = {"feature": (0,), "event": tuple(range(data.ndim))}
        variance, mean = torch.var_mean(data.double(), lookup("per", per, over), correction=0)
        scale = torch.where(variance > (1e-6 * mean).square(), variance, 1.0).sqrt()  # a constant, but for rounding
        if per == "event" and not bool(variance > (1e-6 * mean).square()):
            raise ValueError("x is constant: it has no scale")
        shift, scale = (part.to(data.dtype).expand(data.shape[1:]).clone() for part in (mean, scale))
        return Standardise(shift, scale)

    def apply(self, x: Tensor | np.ndarray) -> Tensor:
        """y of x [..., *event]."""
        given = as_tensor(x)
        return (given - self.shift.to(given)) / self.scale.to(given)

    def undo(self, y: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """x of y [..., *event]."""
        return y * self.scale.to(y) + self.shift.to(y)

    @property
    def log_det(self) -> float:
        """log |dy/dx| = −Σ log scale, in nats: what log p(x) has over log p(y)."""
        return -self.scale.double().log().sum().item()

    def bits_per_dim(self, bits: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """−log2 p(x)/D of a density's −log2 p(y)/D; of levels bits need no correction."""
        return bits - self.log_det / (self.scale.numel() * math.log(2))

    def quantization(self, of: Quantization) -> Quantization:
        """The same levels in y's units. Raises ValueError where features differ in shift or scale."""
        shift, scale = (part.double().unique() for part in (self.shift, self.scale))
        if len(shift) > 1 or len(scale) > 1:
            raise ValueError("per='feature': levels then differ by feature; standardise with per='event'")
        # u/bins = mean + of.scale x and x = shift + scale y
        return replace(of, mean=of.mean + of.scale * shift.item(), scale=of.scale * scale.item())


@door
@dataclass(frozen=True)
class Quantization:
    """How levels u = 0 … bins − 1 became data: x_u = (u/bins − mean)/scale.

    Level u owns the bin [x_u − position w, x_u + (1 − position) w) of width w = 1/(bins scale).

    Args:
        bins: how many levels.
        mean, scale: of the affine map; the defaults put 8-bit data into [−1, 1).
        position: where in its bin the level's x lies: 0 at the lower edge, 0.5 in the middle.

    Raises ValueError for fewer than 2 bins, a scale that is not positive, a position outside [0, 1].

    >>> Quantization().bits_offset, Quantization(mean=0.0, scale=1.0).bits_offset
    (7.0, 8.0)
    """

    bins: int = 256
    mean: float = 0.5
    scale: float = 0.5
    position: float = 0.0

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise ValueError(f"bins={self.bins}: at least 2 are needed")
        if not 0 < self.scale < math.inf or not math.isfinite(self.mean):
            raise ValueError(f"mean={self.mean}, scale={self.scale}: both must be finite and scale positive")
        if not 0 <= self.position <= 1:
            raise ValueError(f"position={self.position}: it must lie in [0, 1]")

    @property
    def width(self) -> float:
        """w, the width of a bin."""
        return 1 / (self.bins * self.scale)

    @property
    def bits_offset(self) -> float:
        """log2(bins scale): what bits/dim gains over −log2 p of the continuous density: 8 + log2 s for 8 bits."""
        return math.log2(self.bins * self.scale)

    def values(self, levels: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """x of whole-number levels, float32.

        >>> Quantization().values(torch.tensor([0, 128]))
        tensor([-1.,  0.])
        """
        return ((levels.double() / self.bins - self.mean) / self.scale).float()

    def levels(self, x: Float[Tensor, "..."]) -> Int[Tensor, "..."]:
        """The level of each x.

        Raises ValueError where x is NaN, lies between levels (by more than 1% of a bin), or outside all of them.

        >>> Quantization().levels(torch.tensor([-1.0, 0.0]))
        tensor([  0, 128])
        """
        exact = (x.double() if x.device.type != "mps" else x) * self.scale + self.mean
        exact = exact * self.bins
        near = exact.round()
        bad = ~((exact - near).abs() < 0.01) | (near < 0) | (near >= self.bins)
        if bool(bad.any()):
            first = x[bad][0].item()
            low, high = -self.mean / self.scale, ((self.bins - 1) / self.bins - self.mean) / self.scale
            raise ValueError(
                f"x holds {first:g} ({int(bad.sum())} such values): it must be one of the {self.bins} levels from"
                f" {low:g} to {high:g}, {self.width:g} apart"
            )
        return near.long()

    def edges(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The lower edge of each x's bin; x is moved to its level first. Raises as ``levels``."""
        exact = (self.levels(x).to(x.dtype) - self.position * 1.0) / self.bins
        return (exact - self.mean) / self.scale


DIGITS = Quantization(bins=17, mean=8 / 17, scale=8 / 17, position=0.5)
"""scikit-learn's digits as ``digits`` gives them: u/8 − 1 for u = 0 … 16, each in the middle of its bin."""

BYTES = Quantization(bins=256, mean=127.5 / 256, scale=127.5 / 256, position=0.5)
"""8-bit images as ``readers.read`` gives them: u/127.5 − 1 for u = 0 … 255, each in the middle of its bin."""
