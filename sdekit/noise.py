r"""Counter-based normal numbers: a pure function of (seed, draw, sample, element), and where a run's z come from.

Sample i of a run gets the same numbers whatever the batch split, the process count or the device
(up to the rounding of log, cos and sin there), and a draw that is not used costs nothing. Each pair of elements has a
counter, of which a 64-bit hash gives two normals by Box–Muller. The hash, twice x ← C·(x ⊕ x⫸32) and once more
x ⊕ x⫸32, is one kernel an operation: a word's two halves are two int32 tensors without a copy, so ⊕ needs no shift
and no mask, and int64 products wrap alike everywhere. A run
makes its counters once; a draw then is 14 kernels, and small draws are made several at once. On CUDA, where Triton is,
the compiler makes one kernel of the same operations (``fused``): equal integers, and normals that differ by its
logarithm, sine and cosine (on a CPU by 1.2e-5 at most, which is why the eager form stays there).

A solver asks for z over intervals of λ, and a source of ``SOURCES`` answers: ``independent`` with one draw for each
interval of the run, ``brownian`` with the increments of one path W that depends on (seed, sample) alone, so that
runs on different grids, or with different solvers, can be compared path by path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from importlib.util import find_spec

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
_FACTOR = 0xD6E8FEB86659FD93
_WORD = (1 << 64) - 1


def _signed(word: int) -> int:
    word &= _WORD
    return word - (1 << 64) if word >> 63 else word


def _mix_int(word: int) -> int:
    """SplitMix64's mix (Steele et al. 2014)."""
    for shift, factor in _ROUNDS:
        word = ((word ^ (word >> shift)) * factor) & _WORD
    return word ^ (word >> 31)


def _mix(words: Tensor) -> Tensor:
    """Hash each word, in place."""
    low, high = words.unsqueeze(-1).view(torch.int32).unbind(-1)
    for _ in range(2):
        low.bitwise_xor_(high)
        words.mul_(_signed(_FACTOR))
    low.bitwise_xor_(high)
    return words


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
    keys = torch.full((1,), _signed(key(seed, draw)), device=samples.device)
    return _draw(_counters(key(seed), samples, event), keys, event, dtype)[0]


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def _counters(stream: int, samples: Tensor, event: Sequence[int]) -> Tensor:
    """[batch, pairs]: a stretch of a Weyl sequence for each sample, that starts at a hash of its number."""
    rows = _mix(samples * _signed(_GOLDEN) + _signed(stream))
    pairs = torch.arange(1, (math.prod(event) + 1) // 2 + 1, device=samples.device)
    return torch.add(rows[:, None], pairs, alpha=_signed(_GOLDEN))


_CACHED, _AT_ONCE = 2**16, 2**21


def _most(device: torch.device) -> int:
    """Words to hash at once: on a CPU what stays in each core's cache, elsewhere a bound on the memory."""
    return _CACHED * torch.get_num_threads() if device.type == "cpu" else _AT_ONCE


def _blocks(counters: Tensor, times: int) -> Iterator[tuple[slice, slice]]:
    """Parts of [batch, pairs] to hash at once, each counter ``times`` times."""
    (batch, pairs), most = counters.shape, max(1, _most(counters.device) // times)
    down, across = max(1, most // max(1, pairs)), max(1, math.ceil(pairs / max(1, math.ceil(pairs / most))))
    for row in range(0, batch, down):
        for column in range(0, pairs, across):
            yield slice(row, row + down), slice(column, column + across)


_HALF = {dtype: torch.tensor(2.0**-32, dtype=dtype) for dtype in (torch.float32, torch.float64)}


def _polar(words: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Radius and angle of a point of the plane, normal in both coordinates, from each word; overwrites the words."""
    # a whole number times a power of two, plus half of one: the same whether fused or rounded twice
    halves = torch.add(_HALF[dtype], _mix(words).unsqueeze(-1).view(torch.int32), alpha=2.0**-31)
    angle, uniform = halves.unbind(-1)  # in [−1, 1], never 0
    return uniform.pow(-2).log_().sqrt_(), angle * math.pi  # √(−2 log|u|)


def fused(counters: Tensor, keys: Tensor, dtype: torch.dtype) -> Tensor:
    """[draws, batch, 2, pairs] by operations that a compiler makes one kernel of: equal to ``_draw`` to the bit.

    No part is written in place or seen as another type, which the compiler would not follow.
    """
    words = counters + keys[:, None, None]
    for _ in range(2):
        words = (words ^ ((words >> 32) & 0xFFFFFFFF)) * _signed(_FACTOR)
    words = words ^ ((words >> 32) & 0xFFFFFFFF)
    low = ((words & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000  # the halves, as signed numbers of 32 bits
    angle, uniform = (torch.add(_HALF[dtype], half.to(torch.int32), alpha=2.0**-31) for half in (low, words >> 32))
    radius, turn = uniform.pow(-2).log().sqrt(), angle * math.pi
    return torch.stack([turn.cos() * radius, turn.sin() * radius], 2)


@cache
def _compiled() -> Callable[[Tensor, Tensor, torch.dtype], Tensor] | None:
    """``fused`` as one kernel; None where there is no compiler for the device's."""
    return torch.compile(fused, dynamic=True) if find_spec("triton") else None


def _draw(counters: Tensor, keys: Tensor, event: Sequence[int], dtype: torch.dtype) -> Tensor:
    """[draws, batch, *event] for the keys of several draws."""
    exact, shifts = _at_least_float32(dtype), keys[:, None, None]
    if counters.device.type == "cuda" and (kernel := _compiled()) is not None:
        return _unpaired(kernel(counters, keys, exact), event, dtype)
    (batch, pairs), draws = counters.shape, len(keys)
    out = torch.empty(draws, batch, 2, pairs, dtype=exact, device=counters.device)
    for rows, columns in _blocks(counters, draws):
        radius, angle = _polar(counters[rows, columns] + shifts, exact)
        place = out[:, rows, :, columns]
        torch.cos(angle, out=place[:, :, 0])
        torch.sin(angle, out=place[:, :, 1])
        place.mul_(radius.unsqueeze(2))
    return _unpaired(out, event, dtype)


def _unpaired(pairs: Tensor, event: Sequence[int], dtype: torch.dtype) -> Tensor:
    """[…, *event] from […, 2, pairs]; of the last pair one number may be left over."""
    return pairs.flatten(-2)[..., : math.prod(event)].reshape(*pairs.shape[:-2], *event).to(dtype)


def _keys(keys: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([_signed(one) for one in keys], dtype=torch.int64).to(device, non_blocking=True)


_END, _LEVELS = 64.0, 21
LEAF = 2 * _END / 2**_LEVELS
"""Resolution of the Brownian path in λ: its law is exact for points of which no two lie in one cell of this width."""
REACH = 40.0
"""The Brownian path serves λ from −40 to 40: the pins at ±64 change a variance there by e^{−48}."""
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
    return _paths(seed, [half_log_snr], samples, event, dtype)(half_log_snr)


def _paths(
    seed: int, points: Sequence[float], samples: Tensor, event: Sequence[int], dtype: torch.dtype
) -> Callable[[float], Tensor]:
    """U at any of ``points``, whose places in the tree are put on the device at once."""
    number = {point: i for i, point in enumerate(points)}
    cells, weights = zip(*map(_bridge_weights, points))
    device, exact = samples.device, _at_least_float32(dtype)
    keys = _node_keys(seed, torch.tensor(cells)).to(device, non_blocking=True)
    factors = torch.tensor(weights, dtype=exact).T.contiguous().to(device, non_blocking=True)
    counters = _counters(key(seed, _TREE), samples, event)

    def at(point: float) -> Tensor:
        column = slice(number[point], number[point] + 1)
        return _unpaired(_climb(counters, keys[:, column], factors[:, column]), event, dtype)

    return at


def _node_keys(seed: int, cells: Int[Tensor, "points"]) -> Tensor:
    """[22, points]: a key for each leaf's ancestors and itself, of another stream than the samples'."""
    nodes = torch.stack([cells >> level for level in range(_LEVELS, -1, -1)])
    return _mix(nodes * _signed(_GOLDEN) + _signed(key(seed, _TREE, 1)))


def _climb(counters: Tensor, keys: Tensor, factors: Tensor) -> Tensor:
    """Σ factor·z over a tree's nodes, [batch, 2, pairs]; keys and factors [nodes, batch], or [nodes, 1]."""
    nodes, (batch, pairs) = len(keys), counters.shape
    keys, factors = keys.expand(nodes, batch)[..., None], factors.expand(nodes, batch)[..., None]
    out = torch.empty(batch, 2, pairs, dtype=factors.dtype, device=counters.device)
    for rows, columns in _blocks(counters, nodes):
        radius, angle = _polar(counters[rows, columns] + keys[:, rows], factors.dtype)
        radius.mul_(factors[:, rows])
        for side, turn in enumerate((torch.cos, torch.sin)):
            out[rows, side, columns] = _halved(turn(angle).mul_(radius))
    return out


def _halved(terms: Tensor) -> Tensor:
    """Σ over the first dimension, half on half: in one order whatever the shape, unlike ``sum``. Overwrites."""
    while (count := len(terms)) > 1:
        half = count // 2
        terms[:half].add_(terms[count - half :])
        terms = terms[: count - half]
    return terms[0]


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
    places = lanewise(_places, half_log_snr)
    keys, counters = _node_keys(seed, places[0].long()), _counters(key(seed, _TREE), samples, event)
    return _unpaired(_climb(counters, keys, places[1:].to(_at_least_float32(dtype))), event, dtype)


_REUSED = 4  # draws, or points of the path, that the rows of one step share


def independent(
    seed: int, intervals: Sequence[Interval], samples: Tensor, event: Sequence[int], dtype: torch.dtype
) -> Draws:
    """One independent standard normal for each interval of the run; draw 0 is the start's.

    >>> draw = independent(0, [(0.0, 1.0), (1.0, 2.0)], torch.arange(3), (2,), torch.float32)
    >>> torch.equal(draw(1.0, 2.0), normal(0, 2, torch.arange(3), (2,)))
    True
    """
    size = max(1, _most(samples.device) // max(1, len(samples) * math.prod(event)))  # small draws are made together
    counters = cache(lambda: _counters(key(seed), samples, event))  # not made where nothing is drawn
    keys = cache(lambda: _keys([key(seed, number + 1) for number in range(len(intervals))], samples.device))
    return _draws(intervals, counters, keys, size, event, dtype)


def _draws(
    intervals: Sequence[Interval], counters: Callable[[], Tensor], keys: Callable[[], Tensor], size: int,
    event: Sequence[int], dtype: torch.dtype,
) -> Draws:  # fmt: skip
    """``size`` draws at a time of those that the counters and keys make."""
    numbers = {interval: number for number, interval in enumerate(intervals)}
    together = lru_cache(_REUSED)(lambda first: _draw(counters(), keys()[first : first + size], event, dtype))

    def draw(start: float, end: float) -> Tensor:
        group, place = divmod(numbers[start, end], size)
        return together(group * size)[place]

    return draw


def ingredients(
    seed: int, intervals: Sequence[Interval], samples: Tensor, event: Sequence[int]
) -> tuple[Int[Tensor, "batch pairs"], Int[Tensor, "draws"]]:
    """The counters and keys of which ``independent`` makes a run's draws: all that depends on the seed.

    >>> samples, intervals = torch.arange(3), [(0.0, 1.0), (1.0, 2.0)]
    >>> draw = from_ingredients(intervals, *ingredients(0, intervals, samples, (2,)), (2,), torch.float32)
    >>> torch.equal(draw(1.0, 2.0), independent(0, intervals, samples, (2,), torch.float32)(1.0, 2.0))
    True
    """
    keys = _keys([key(seed, number + 1) for number in range(len(intervals))], samples.device)
    return _counters(key(seed), samples, event), keys


def from_ingredients(
    intervals: Sequence[Interval], counters: Tensor, keys: Tensor, event: Sequence[int], dtype: torch.dtype
) -> Draws:
    """As ``independent``, of given counters and keys, one draw at a time: for runs that a graph repeats."""
    return _draws(intervals, lambda: counters, lambda: keys, 1, event, dtype)


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
    ends = list(dict.fromkeys(end for interval in intervals for end in interval))
    for end in ends:
        if not -REACH <= end <= REACH:
            raise ValueError(f"noise='brownian' serves half_log_snr from -{REACH} to {REACH}, the run reaches {end}")
    places = cache(lambda: _paths(seed, ends, samples, event, _at_least_float32(dtype)))
    at = lru_cache(_REUSED)(lambda point: places()(point))

    def draw(start: float, end: float) -> Tensor:
        rest, scale = math.exp(start - end), 1 / math.sqrt(-math.expm1(2 * (start - end)))
        return torch.sub(at(end), at(start), alpha=rest).mul_(scale).to(dtype)

    return draw


SOURCES: dict[str, Source] = {"independent": independent, "brownian": brownian}
