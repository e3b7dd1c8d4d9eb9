"""Counter-based noise: the same number for the same (seed, draw, sample, element), and standard normal."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sdekit.noise import key, normal

words = st.integers(-(2**63), 2**63 - 1)


def reference(seed_key: int, sample: int, count: int) -> list[float]:
    """The numbers by plain Python integers: SplitMix64 (Steele et al. 2014) and Box–Muller."""
    mask, golden = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(word: int) -> int:
        word &= mask
        word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & mask
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB & mask
        return word ^ (word >> 31)

    row, pairs = mix(sample * golden + seed_key), (count + 1) // 2
    bits = [mix(row + (n + 1) * golden) for n in range(pairs)]
    polar = [
        (math.sqrt(-2 * math.log(((word >> 32) + 0.5) / 2**32)), 2 * math.pi * (word & 0xFFFFFFFF) / 2**32)
        for word in bits
    ]
    return ([r * math.cos(a) for r, a in polar] + [r * math.sin(a) for r, a in polar])[:count]


@given(words, st.integers(0, 10**6), st.lists(st.integers(0, 2**40), min_size=1, max_size=4), st.integers(1, 7))
def test_numbers_are_those_of_plain_integers(seed: int, draw: int, samples: list[int], count: int) -> None:
    z = normal(seed, draw, torch.tensor(samples), (count,), torch.float64)
    expected = [reference(key(seed, draw), sample, count) for sample in samples]
    torch.testing.assert_close(z, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-12)


def test_splitmix64_is_the_published_one() -> None:
    """The first outputs for seed 1234567, as published with the generator."""
    from sdekit.noise import _GOLDEN, _mix, _mix_int, _signed

    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    states = [1234567 + (n + 1) * _GOLDEN for n in range(4)]
    assert [_mix_int(state % 2**64) for state in states] == published
    assert [word % 2**64 for word in _mix(torch.tensor([_signed(state) for state in states])).tolist()] == published


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
