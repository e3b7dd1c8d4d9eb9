r"""Counter-based normal numbers: a pure function of (seed, draw, sample, element), and where a run's z come from.

Sample i of a run gets the same numbers whatever the batch split, the process count or the device
(up to the rounding of log, cos and sqrt there), and a draw that is not used costs nothing. The bits are
SplitMix64 (Steele et al. 2014) of a key per (seed, draw, sample) and a counter per element, in int64 arithmetic,
which wraps alike everywhere; each 64-bit word gives two normals by Box–Muller.

A solver asks for z over intervals of λ, and a source of ``SOURCES`` answers: ``independent`` with one draw for each
interval of the run, ``brownian`` with the increments of one path W that depends on (seed, sample) alone, so that
runs on different grids, or with different solvers, can be compared path by path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sdekit.elementwise import lanewise

Interval = tuple[float, float]
Draws = Callable[[float, float], Tensor]
Source = Callable[[int, Sequence[Interval], Tensor, Sequence[int], torch.dtype], Draws]

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
    exact = _at_least_float32(dtype)
    rows = _mix(samples * _signed(_GOLDEN) + _signed(key(seed, draw)))
    return _normals(rows, math.prod(event), exact).reshape(-1, *event).to(dtype)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def _normals(rows: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """[*rows, count] standard normals, one stream for each 64-bit word of ``rows``."""
    counters = torch.arange(1, (count + 1) // 2 + 1, device=rows.device) * _signed(_GOLDEN)
    words = _mix(rows[..., None] + counters)
    radius = ((words >> 32) & 0xFFFFFFFF).to(dtype).add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = (words & 0xFFFFFFFF).to(dtype).mul_(2 * math.pi * 2.0**-32)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1)[..., :count]


_END, _LEVELS = 64.0, 21
LEAF = 2 * _END / 2**_LEVELS
"""Resolution of the Brownian path in λ: its law is exact for points of which no two lie in one cell of this width."""
REACH = 40.0
"""The Brownian path serves λ from −40 to 40: the pins at ±64 change a variance there by e^{−48}."""
_BLOCK = 2**21  # numbers hashed at once
_TREE = 0x7EE


def _bridge_weights(half_log_snr: float) -> tuple[int, list[float]]:
    """The leaf in which λ lies, and the factors with which the normals of its ancestors and its own make up U(λ).

    U is pinned to 0 at both ends; a cell of width w with the values a, b at its ends has in its middle
    (a + b)/(2 cosh(w/2)) + √tanh(w/2) z, the bridge of the Ornstein–Uhlenbeck process with covariance e^{−|λ−λ'|}.
    """
    left, right = np.zeros(_LEVELS + 1), np.zeros(_LEVELS + 1)
    start, width, cell = -_END, 2 * _END, 1
    for level in range(_LEVELS):
        width /= 2
        middle = (left + right) / (2 * math.cosh(width))
        middle[level] = math.sqrt(math.tanh(width))
        beyond = half_log_snr >= start + width
        cell = 2 * cell + beyond
        if beyond:
            left, start = middle, start + width
        else:
            right = middle
    near, far = math.sinh(half_log_snr - start), math.sinh(start + width - half_log_snr)
    value = (far * left + near * right) / math.sinh(width)
    value[-1] = math.sqrt(2 * near * far / math.sinh(width))
    return cell, value.tolist()


def path(
    seed: int,
    half_log_snr: float,
    samples: Int[Tensor, "batch"],
    event: Sequence[int],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "batch *event"]:
    """U(λ) = e^{−λ} W(e^{2λ}), with W one Brownian path for each (seed, sample, element).

    In this scale W is stationary, a unit Ornstein–Uhlenbeck process in λ, and keeps its relative precision from
    λ = −40 to 40. The path is a virtual Brownian tree (Kloeden, Platen & Schurz 1994; Li et al. 2020, algorithm 3):
    dyadic in λ, 21 halvings of [−64, 64], each node one normal number, and one more for the place inside the last
    cell (width ``LEAF``, 6.1e-5). U(λ) is a sum of 22 normal numbers with factors known beforehand.

    Raises ValueError for λ outside [−40, 40].

    >>> samples = torch.arange(4)
    >>> torch.equal(path(0, 0.3, samples, (2,))[1:2], path(0, 0.3, samples[1:2], (2,)))
    True
    """
    if not -REACH <= half_log_snr <= REACH:
        raise ValueError(f"half_log_snr={half_log_snr}: a Brownian path serves values from -{REACH} to {REACH}")
    cell, weights = _bridge_weights(half_log_snr)
    count, exact, device = math.prod(event), _at_least_float32(dtype), samples.device
    nodes = torch.full((_LEVELS + 1,), cell, device=device) >> torch.arange(_LEVELS, -1, -1, device=device)
    keys = _mix(nodes * _signed(_GOLDEN) + _signed(key(seed, _TREE)))
    rows = _mix(samples * _signed(_GOLDEN) + keys[:, None])
    total = torch.zeros(len(samples), count, dtype=exact, device=device)
    for part, factors in _blocks(rows, weights, max(1, _BLOCK // max(1, total.numel()))):
        for z, factor in zip(_normals(part, count, exact), factors):
            total.add_(z, alpha=factor)
    return total.reshape(-1, *event).to(dtype)


def _blocks(rows: Tensor, weights: list[float], size: int) -> list[tuple[Tensor, list[float]]]:
    return [(rows[i : i + size], weights[i : i + size]) for i in range(0, len(weights), size)]


def _places(half_log_snr: Tensor) -> Tensor:
    """[23, batch]: ``_bridge_weights`` of each λ, on its device: the leaf, and the factors of its 22 nodes' normals."""
    left, right = half_log_snr.new_zeros(2, _LEVELS + 1, len(half_log_snr)).unbind()
    start, cell, width = torch.full_like(half_log_snr, -_END), torch.ones_like(half_log_snr), 2 * _END
    for level in range(_LEVELS):
        width /= 2
        middle = (left + right) / (2 * math.cosh(width))
        middle[level] = math.sqrt(math.tanh(width))
        beyond = half_log_snr >= start + width
        cell = 2 * cell + beyond
        left, right = torch.where(beyond, middle, left), torch.where(beyond, right, middle)
        start = torch.where(beyond, start + width, start)
    near, far = torch.sinh(half_log_snr - start), torch.sinh(start + width - half_log_snr)
    value = (far * left + near * right) / math.sinh(width)
    value[-1] = (2 * near * far / math.sinh(width)).sqrt()
    return torch.cat([cell[None], value])


def paths(
    seed: int,
    half_log_snr: Float[Tensor, "batch"],
    samples: Int[Tensor, "batch"],
    event: Sequence[int],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "batch *event"]:
    """U(λ_i) of sample i's path, as ``path`` gives it for one λ: for λ [batch] in float64 within [−40, 40].

    The place in the tree is found on the device, by the same arithmetic.

    >>> samples, places = torch.arange(3), torch.tensor([0.3, -5.0, 2.0], dtype=torch.float64)
    >>> each = [path(7, place.item(), samples[i : i + 1], (2,), torch.float64) for i, place in enumerate(places)]
    >>> torch.allclose(paths(7, places, samples, (2,), torch.float64), torch.cat(each), rtol=0, atol=1e-12)
    True
    """
    cell, *factors = lanewise(_places, half_log_snr).unbind()
    count, exact = math.prod(event), _at_least_float32(dtype)
    total = torch.zeros(len(samples), count, dtype=exact, device=samples.device)
    size = max(1, _BLOCK // max(1, total.numel()))
    for first in range(0, len(factors), size):
        part = factors[first : first + size]
        nodes = torch.stack([cell.long() >> (_LEVELS - first - i) for i in range(len(part))])
        rows = _mix(samples * _signed(_GOLDEN) + _mix(nodes * _signed(_GOLDEN) + _signed(key(seed, _TREE))))
        for z, factor in zip(_normals(rows, count, exact), part):
            total = total + factor.to(exact)[:, None] * z
    return total.reshape(-1, *event).to(dtype)


_REUSED = 4  # draws that the rows of one step share


def independent(
    seed: int, intervals: Sequence[Interval], samples: Tensor, event: Sequence[int], dtype: torch.dtype
) -> Draws:
    """One independent standard normal for each interval of the run; draw 0 is the start's.

    >>> draw = independent(0, [(0.0, 1.0), (1.0, 2.0)], torch.arange(3), (2,), torch.float32)
    >>> torch.equal(draw(1.0, 2.0), normal(0, 2, torch.arange(3), (2,)))
    True
    """
    numbers = {interval: number for number, interval in enumerate(intervals, start=1)}
    return lru_cache(_REUSED)(lambda start, end: normal(seed, numbers[start, end], samples, event, dtype))


def brownian(
    seed: int, intervals: Sequence[Interval], samples: Tensor, event: Sequence[int], dtype: torch.dtype
) -> Draws:
    """Unit increments (W(e^{2b}) − W(e^{2a}))/√(e^{2b} − e^{2a}) of ``path``, whatever the run's other intervals.

    >>> samples, half, whole = torch.arange(3), math.log(2) / 2, math.log(3) / 2  # the clock shows 1, 2 and 3
    >>> one = brownian(0, [(0.0, whole)], samples, (2,), torch.float64)
    >>> other = brownian(0, [(0.0, half), (half, whole)], samples, (2,), torch.float64)
    >>> torch.allclose(one(0.0, whole) * math.sqrt(2), other(0.0, half) + other(half, whole))
    True
    """
    for end in (end for interval in intervals for end in interval):
        if not -REACH <= end <= REACH:
            raise ValueError(f"noise='brownian' serves half_log_snr from -{REACH} to {REACH}, the run reaches {end}")
    at = lru_cache(_REUSED)(lambda point: path(seed, point, samples, event, _at_least_float32(dtype)))

    def draw(start: float, end: float) -> Tensor:
        rest, scale = math.exp(start - end), 1 / math.sqrt(-math.expm1(2 * (start - end)))
        return torch.sub(at(end), at(start), alpha=rest).mul_(scale).to(dtype)

    return draw


SOURCES: dict[str, Source] = {"independent": independent, "brownian": brownian}
