"""A measurement y = A(x) + noise, and how likely it is given data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from scipy.stats import poisson
from torch import Tensor

from sdekit.door import Positive, Seed, Tolerance, door, record
from sdekit.inverse.operators import Operator
from sdekit.noise import key, normal

_STREAM = 0x4E01


@runtime_checkable
class Noise(Protocol):
    """What stands between A(x) and y."""

    def draw(self, a: Tensor, seed: int, samples: Tensor) -> Tensor:
        """y [batch, *measured] for a = A(x)."""
        ...

    def log_prob(self, y: Tensor, a: Tensor) -> Tensor:
        """log p(y | A(x) = a) [batch]."""
        ...

    def weights(self, y: Tensor) -> Tensor | float:
        """What a squared residual counts for, relatively: 1, or of y's shape where the noise differs along y."""
        ...


@door
@dataclass(frozen=True)
class GaussianNoise:
    """y = a + std·z. A std of 0 is a measurement without noise, which has no density.

    Raises ValueError for a std below 0 or not finite.

    >>> GaussianNoise(0.5).log_prob(torch.zeros(1, 1), torch.zeros(1, 1)).exp().mul(0.5 * 2.5066).round(decimals=3)
    tensor([1.])
    """

    std: Tolerance

    def __post_init__(self) -> None:
        if not 0 <= self.std < math.inf:
            raise ValueError(f"std={self.std}: the noise's standard deviation must be at least 0 and finite")

    def draw(self, a: Tensor, seed: int, samples: Tensor) -> Tensor:
        return a + self.std * normal(key(seed, _STREAM), 0, samples, a.shape[1:], a.dtype)

    def log_prob(self, y: Tensor, a: Tensor) -> Tensor:
        if self.std == 0:
            raise ValueError("std=0: a measurement without noise has no density; give the noise a small std")
        squares = ((y - a) / self.std).flatten(1).square().sum(1)
        return -0.5 * squares - math.prod(a.shape[1:]) * math.log(self.std * math.sqrt(2 * math.pi))

    def weights(self, y: Tensor) -> float:
        return 1.0


@door
@dataclass(frozen=True)
class PoissonNoise:
    """Counts k ~ Poisson(rate·(a + offset)), of which y = k/rate − offset is shown.

    An a + offset below 1e-3 counts as that. Pixels from −1 to 1 have the offset 1. Raises ValueError for a rate that is
    not positive and finite.

    >>> noise = PoissonNoise(rate=2.0)
    >>> noise.log_prob(torch.tensor([[-0.5]]), torch.tensor([[0.0]])).exp()  # one count where two are expected
    tensor([0.2707])
    """

    rate: Positive
    offset: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.rate < math.inf or not math.isfinite(self.offset):
            raise ValueError(f"rate={self.rate}, offset={self.offset}: both must be finite and the rate positive")

    def _expected(self, a: Tensor) -> Tensor:
        return self.rate * (a + self.offset).clamp(min=1e-3)

    def draw(self, a: Tensor, seed: int, samples: Tensor) -> Tensor:
        share = torch.special.ndtr(normal(key(seed, _STREAM), 0, samples, a.shape[1:], torch.float64)).cpu()
        counts = torch.as_tensor(poisson.ppf(share.numpy(), self._expected(a).double().cpu().numpy()))
        return counts.to(a) / self.rate - self.offset

    def log_prob(self, y: Tensor, a: Tensor) -> Tensor:
        expected, counts = self._expected(a), self.rate * (y + self.offset)
        return (counts * expected.log() - expected - torch.lgamma(counts + 1)).flatten(1).sum(1)

    def weights(self, y: Tensor) -> Tensor:
        return 1 / (2 * (y + self.offset).clamp(min=1 / self.rate))


@record  # y is empty where nothing is measured
@dataclass(frozen=True, eq=False)
class Measurement:
    """y [*measured] of one unknown sample, what measured it, and the noise.

    Raises ValueError where y is not of the operator's shape or not finite, or the operator or noise is none.

    >>> from sdekit.inverse import Mask
    >>> Measurement(Mask(torch.tensor([True, False])), torch.tensor([0.3]), GaussianNoise(0.1)).y
    tensor([0.3000])
    """

    operator: Operator
    y: Tensor
    noise: Noise

    def __post_init__(self) -> None:
        if not isinstance(self.operator, Operator) or not isinstance(self.noise, Noise):
            found = f"{type(self.operator).__name__}, noise={type(self.noise).__name__}"
            raise ValueError(f"operator={found}: they must be an Operator and a noise of sdekit.inverse")
        if not self.y.is_floating_point() or tuple(self.y.shape) != self.operator.measured:
            raise ValueError(
                f"y has shape {list(self.y.shape)} and dtype {self.y.dtype}: {type(self.operator).__name__} measures"
                f" floats {list(self.operator.measured)}"
            )
        if not bool(self.y.isfinite().all()):
            raise ValueError("y holds NaN or infinity: every entry must be finite")

    @staticmethod
    def of(x: Tensor, operator: Operator, noise: Noise, seed: int = 0) -> Measurement:
        """What the operator measures of one sample x [*event].

        >>> from sdekit.inverse import Mask
        >>> Measurement.of(torch.tensor([1.0, 2.0]), Mask(torch.tensor([True, False])), GaussianNoise(0.0)).y
        tensor([1.])
        """
        return Measurement(operator, draw(x[None], operator, noise, seed)[0], noise)

    def log_prob(self, x: Tensor, measured: Tensor | None = None) -> Tensor:
        """log p(y | x) [batch]; ``measured`` [batch, *measured] gives each sample a y of its own."""
        return self.noise.log_prob(self.rows(x, measured), self.operator(x))

    def rows(self, x: Tensor, measured: Tensor | None = None) -> Tensor:
        """y for each row of x, on its device and in its dtype. Raises ValueError where ``measured`` does not fit x."""
        if measured is None:
            return self.y.to(x.device, x.dtype, non_blocking=True).expand(len(x), *self.y.shape)
        if measured.shape != (len(x), *self.y.shape):
            raise ValueError(
                f"measured has shape {list(measured.shape)}: for {len(x)} samples it must be {[len(x), *self.y.shape]}"
            )
        return measured.to(x.device, x.dtype, non_blocking=True)


@door
def draw(x: Tensor, operator: Operator, noise: Noise, seed: Seed = 0) -> Tensor:
    """What the operator measures of each of x [n, *event]: y [n, *measured], each with noise of its own.

    >>> from sdekit.inverse import Mask
    >>> draw(torch.zeros(3, 2), Mask(torch.tensor([True, False])), GaussianNoise(1.0)).shape
    torch.Size([3, 1])
    """
    return noise.draw(operator(x), seed, torch.arange(len(x), device=x.device))
