r"""Counter-based normal numbers: a pure function of (seed, draw, sample, element).

Sample i of a run gets the same numbers whatever the batch split, the process count or the device
(up to the rounding of log, cos and sqrt there), and a draw that is not used costs nothing. The bits are
SplitMix64 (Steele et al. 2014) of a key per (seed, draw, sample) and a counter per element, in int64 arithmetic,
which wraps alike everywhere; each 64-bit word gives two normals by Box–Muller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_WORD = (1 << 64) - 1


def _signed(word: int) -> int:
    word &= _WORD
    return word - (1 << 64) if word >> 63 else word


def _mix_int(word: int) -> int:
    for shift, factor in _ROUNDS:
        word = ((word ^ (word >> shift)) * factor) & _WORD
    return word ^ (word >> 31)


def _mix(words: Tensor) -> Tensor:
    for shift, factor in _ROUNDS:
        high = (words >> shift).bitwise_and_((1 << (64 - shift)) - 1)  # torch shifts the sign in: mask it off
        words = high.bitwise_xor_(words).mul_(_signed(factor))
    return (words >> 31).bitwise_and_((1 << 33) - 1).bitwise_xor_(words)


def key(*parts: int) -> int:
    """Fold whole numbers (a seed, a draw, …) into one 64-bit key; their order matters.

    >>> key(1, 2) != key(2, 1)
    True
    """
    word = 0
    for part in parts:
        word = _mix_int(word * 31 + (part & _WORD) + _GOLDEN)
    return word


def normal(
    seed: int,
    draw: int,
    samples: Int[Tensor, "batch"],
    event: Sequence[int],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normals [batch, *event] on the device of ``samples``, which holds each row's sample number.

    Args:
        seed: any whole number.
        draw: which of the run's draws: 0 is the start, the others are the plan's.
        samples: int64 sample numbers.
        event: shape of one sample.
        dtype: result's dtype; in half precision the numbers are computed in float32.

    >>> z = normal(0, 0, torch.arange(4), (2, 3))
    >>> torch.equal(z[2:], normal(0, 0, torch.arange(2, 4), (2, 3)))
    True
    """
    count = math.prod(event)
    pairs = (count + 1) // 2
    exact = dtype if dtype == torch.float64 else torch.float32
    rows = _mix(samples * _signed(_GOLDEN) + _signed(key(seed, draw)))
    counters = torch.arange(1, pairs + 1, device=samples.device) * _signed(_GOLDEN)
    words = _mix(rows[:, None] + counters)
    radius = ((words >> 32) & 0xFFFFFFFF).to(exact).add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = (words & 0xFFFFFFFF).to(exact).mul_(2 * math.pi * 2.0**-32)
    z = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]
    return z.reshape(-1, *event).to(dtype)
