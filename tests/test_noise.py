"""Counter-based noise: the same number for the same (seed, draw, sample, element), and standard normal."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from sdekit.noise import brownian, independent, key, normal

words = st.integers(-(2**63), 2**63 - 1)


MASK, GOLDEN = 2**64 - 1, 0x9E3779B97F4A7C15


def mix(word: int) -> int:
    word &= MASK
    for _ in range(2):
        word = (word ^ (word >> 32)) * 0xD6E8FEB86659FD93 & MASK
    return word ^ (word >> 32)


def reference(stream: int, draw: int, sample: int, count: int) -> list[float]:
    """The numbers by plain Python integers: a Weyl sequence for each sample, its hash, and Box–Muller."""
    row, pairs = mix(sample * GOLDEN + stream), (count + 1) // 2
    bits = [mix(row + (n + 1) * GOLDEN + draw) for n in range(pairs)]

    def signed(half: int) -> int:
        return half - 2**32 if half >> 31 else half

    polar = [
        (math.sqrt(-2 * math.log(abs(signed(word >> 32) + 0.5) / 2**31)), (signed(word & 0xFFFFFFFF) + 0.5) / 2**31)
        for word in bits
    ]
    return ([r * math.cos(math.pi * a) for r, a in polar] + [r * math.sin(math.pi * a) for r, a in polar])[:count]


@given(words, st.integers(0, 10**6), st.lists(st.integers(0, 2**40), min_size=1, max_size=4), st.integers(1, 7))
def test_numbers_are_those_of_plain_integers(seed: int, draw: int, samples: list[int], count: int) -> None:
    z = normal(seed, draw, torch.tensor(samples), (count,), torch.float64)
    expected = [reference(key(seed), key(seed, draw), sample, count) for sample in samples]
    torch.testing.assert_close(z, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-12)


def test_splitmix64_is_the_published_one() -> None:
    """The first outputs for seed 1234567, as published with the generator."""
    from sdekit.noise import _mix_int

    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [_mix_int((1234567 + (n + 1) * GOLDEN) % 2**64) for n in range(4)] == published


AXES = {
    "elements": [(1, 0, torch.arange(2), 2**18)],
    "samples": [(2, 0, torch.arange(2**16), 8)],
    "draws": [(3, draw, torch.arange(4), 256) for draw in range(512)],
    "seeds": [(seed, 0, torch.arange(4), 256) for seed in range(512)],
}


@pytest.mark.parametrize("axis", AXES)
def test_the_hash_is_uniform_and_neighbours_are_independent(axis: str) -> None:
    """χ² over 2¹² cells: six top and six bottom bits, and those of each half of a word with either half of neighbours.

    40 tests an axis, each at a level of 1e-4.
    """
    from sdekit.noise import _counters, _mix, _signed

    parts = [(_counters(key(s), rows, (2 * n,)) + _signed(key(s, draw)), n) for s, draw, rows, n in AXES[axis]]
    halves = torch.stack([_mix(words) for words, _ in parts]).unsqueeze(-1).view(torch.int32).long()

    def fair(cells: torch.Tensor) -> bool:
        return stats.chisquare(torch.bincount(cells.flatten(), minlength=2**12).numpy()).pvalue > 1e-4

    top, bottom = (halves >> 26) & 63, halves & 63
    assert fair(top * 64 + bottom)
    for bits in (top, bottom):
        for one, other in [(0, 0), (0, 1), (1, 0), (1, 1)]:
            first, second = bits[..., one], bits[..., other]
            for dim, lag in [(-1, 1), (-1, 2), (1, 1), (0, 1), (0, 2)]:
                if first.shape[dim] > lag:
                    assert fair(first.roll(lag, dim) * 64 + second), (one, other, dim, lag)


@given(st.integers(1, 30), st.sampled_from([(), (3,), (2, 2)]), st.integers(1, 40), st.data())
def test_draws_made_together_are_the_same(n: int, event: tuple[int, ...], draws: int, data: st.DataObject) -> None:
    """Whatever number of draws is made at once, in whatever order they are asked for."""
    intervals = [(float(i), i + 1.0) for i in range(draws)]
    size = data.draw(st.sampled_from([1, 7, 100, 2**15]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sdekit.noise._CACHED", size)
        draw = independent(5, intervals, torch.arange(n), event, torch.float32)
        for i in data.draw(st.permutations(range(draws))):
            assert torch.equal(draw(*intervals[i]), normal(5, i + 1, torch.arange(n), event))


class Kernels(TorchDispatchMode):
    """Counts the operations that compute: all but views and allocations."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        free = (
            func.is_view
            or "empty" in str(func)
            or func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default)
        )
        self.count += not free
        return func(*args, **(kwargs or {}))


def test_a_draw_is_few_kernels() -> None:
    """On a GPU each costs a launch: 14 for a draw, or for as many small ones as are made at once."""
    intervals, samples = [(float(i), i + 1.0) for i in range(-5, 5)], torch.arange(16)
    draw = independent(0, intervals, samples, (3, 8, 8), torch.float32)
    draw(*intervals[0])  # which makes what the run shares
    with Kernels() as small:
        for interval in intervals:
            draw(*interval)
    assert small.count <= 14
    samples = torch.arange(2)
    draw = independent(0, intervals, samples, (3, 64, 64), torch.float32)  # too large for two at once
    draw(*intervals[0])
    with Kernels() as large:
        draw(*intervals[1])
    assert large.count <= 14
    draw = brownian(0, intervals, samples, (3, 8, 8), torch.float32)
    draw(*intervals[0])
    with Kernels() as path:
        draw(*intervals[1])
    assert path.count <= 31  # 22 normals and their sum, and the increment
    with Kernels() as single:
        normal(0, 0, samples, (3, 8, 8))
    assert single.count <= 25


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([(), (1,), (5,), (3, 2), (1, 3, 3)]))
def test_a_batch_split_changes_no_bit(n: int, size: int, event: tuple[int, ...]) -> None:
    samples = torch.arange(n)
    whole = normal(3, 1, samples, event)
    assert whole.shape == (n, *event)
    assert torch.equal(torch.cat([normal(3, 1, part, event) for part in samples.split(size)]), whole)
    back = normal(3, 1, samples.flip(0), event)
    assert torch.equal(back.flip(0), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_distribution_is_standard_normal(dtype: torch.dtype) -> None:
    z = normal(0, 0, torch.arange(2000), (100,), dtype).double()
    n = z.numel()
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3
    for power, mean, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:  # of zᵖ
        assert (z**power).mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / n))
    tail = (z.abs() > 4).sum().item()
    assert stats.binomtest(tail, n, 2 * stats.norm.sf(4)).pvalue > 1e-3


def test_every_axis_is_independent() -> None:
    """Correlations over neighbouring seeds, draws, samples and elements, of z and of z²: each under 5 std errors."""
    samples = torch.arange(500)

    def at(seed: int = 5, draw: int = 7) -> torch.Tensor:
        return normal(seed, draw, samples, (64,), torch.float64)

    z = at()
    others = [
        at(seed=6), at(draw=8), at(seed=7, draw=5), at(seed=-5), z.roll(1, 0), z.roll(1, 1), z.roll(32, 1), z.flip(1),
    ]  # fmt: skip
    for other in others:
        for power in (1, 2):
            stack = torch.stack([z.flatten() ** power, other.flatten() ** power])
            assert abs(torch.corrcoef(stack)[0, 1].item()) < 5 / math.sqrt(z.numel())
    assert len(torch.unique(z)) == z.numel()


@given(words, words)
def test_seeds_and_draws_do_not_collide(first: int, second: int) -> None:
    samples = torch.arange(2)
    assert torch.equal(normal(first, 3, samples, (4,)), normal(first, 3, samples, (4,)))
    if first != second:
        assert not torch.equal(normal(first, 3, samples, (4,)), normal(second, 3, samples, (4,)))
        assert key(first, second) != key(second, first)
        assert key(first) != key(first, second)


def test_precisions_are_close() -> None:
    exact = normal(1, 2, torch.arange(1000), (32,), torch.float64)
    single = normal(1, 2, torch.arange(1000), (32,))
    assert single.dtype == torch.float32
    # near radius 0 the logarithm of a float32 close to 1 costs up to 3e-4 of a standard deviation; elsewhere roundings
    gap = (single - exact).abs()
    assert gap.max().item() < 3.5e-4
    assert gap.flatten().quantile(0.99).item() < 2e-6
    half = normal(1, 2, torch.arange(1000), (32,), torch.bfloat16)
    assert torch.equal(half, single.bfloat16())


def test_no_global_generator_is_touched() -> None:
    before = torch.get_rng_state()
    normal(0, 0, torch.arange(3), (2,))
    assert torch.equal(before, torch.get_rng_state())
