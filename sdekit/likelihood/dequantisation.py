r"""Ways to give data that takes whole-number levels a density.

A density p of x gives a level of ``data.Quantization`` the probability P(u) = ∫_bin p, and for any q on the bin
log P(u) ≥ E_q[log p(x) − log q(x)] (Theis et al. 2016; Ho et al. 2019).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sdekit import noise
from sdekit.data import Quantization

_STREAM = 0x64657175616E74


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
