r"""Data that takes whole-number levels, and the ways to give it a density: dequantisation.

Level u stands at x_u = (u/bins − mean)/scale and owns the bin [x_u − position w, x_u + (1 − position) w) of width
w = 1/(bins scale). A density p of x then gives the level the probability P(u) = ∫_bin p, and for any q on the bin
log P(u) ≥ E_q[log p(x) − log q(x)] (Theis et al. 2016; Ho et al. 2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sdekit import noise

_STREAM = 0x64657175616E74


@dataclass(frozen=True)
class Quantization:
    """How levels u = 0 … bins − 1 became data: x = (u/bins − mean)/scale.

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
"""scikit-learn's digits as ``data.digits`` gives them: u/8 − 1 for u = 0 … 16, each in the middle of its bin."""


def uniforms(seed: int, draw: int, samples: Int[Tensor, "n"], like: Float[Tensor, "n *event"]) -> Tensor:
    """Uniform numbers in (0, 1) of like's shape; row i depends on (seed, draw, samples[i]) alone."""
    z = noise.normal(noise.key(_STREAM, seed), draw, samples, like.shape[1:], like.dtype)
    return torch.special.ndtr(z)


def uniform(q: Quantization, x: Tensor, std: float, u: Tensor) -> tuple[Tensor, Tensor]:
    """A point uniform in each bin, and −log q of all of them [n] (Theis et al. 2016)."""
    point = q.edges(x) + q.width * u
    return point, point.new_full((len(x),), x[0].numel() * math.log(q.width))


def truncated_normal(q: Quantization, x: Tensor, std: float, u: Tensor) -> tuple[Tensor, Tensor]:
    """The bin's middle plus ``std`` times a normal cut off at the bin's edges (Zheng et al. 2023, section 4.1)."""
    reach = q.width / 2 / std / math.sqrt(2)
    mass = math.erf(reach)
    z = torch.erfinv((2 * u - 1) * mass) * math.sqrt(2)
    point = q.edges(x) + q.width / 2 + std * z
    log_q = -0.5 * z.square() - 0.5 * math.log(2 * math.pi) - math.log(std * mass)
    return point, -log_q.flatten(1).sum(1)
