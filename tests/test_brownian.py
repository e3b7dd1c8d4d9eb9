"""One Brownian path for each (seed, sample): its law, and that nothing but the seed and the sample changes it."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

import sdekit as sk
from sdekit.noise import LEAF, SOURCES, _bridge_weights, brownian, path
from sdekit.solvers import get, names
from sdekit.testing import laws, simgpu

points = st.floats(-40, 40, allow_nan=False)


def covariance(a, b):
    """E[U(a) U(b)] from the factors of the tree's normal numbers: those of the nodes that a and b share."""
    (cell, one), (other_cell, other) = _bridge_weights(a), _bridge_weights(b)
    depth = len(one) - 1
    shared = [cell >> (depth - i) == other_cell >> (depth - i) for i in range(depth + 1)]
    return sum(x * y for x, y, same in zip(one, other, shared) if same)


@given(points, points)
def test_the_law_is_that_of_the_ornstein_uhlenbeck_process(a, b):
    """Gaussian with mean 0, so the covariance says everything: e^{−|a−b|}, exactly, for points of different cells."""
    assert covariance(a, a) == pytest.approx(1, abs=1e-14)
    assume(abs(a - b) > LEAF)
    assert covariance(a, b) == pytest.approx(math.exp(-abs(a - b)), abs=1e-14)


def test_steps_far_below_the_resolution_lose_variance_as_stated():
    """Inside one cell the path is smooth: an increment's variance falls short there, and only there."""
    a, h = 0.3, LEAF / 100
    increment = 2 - 2 * covariance(a, a + h)
    assert increment < 2 * -math.expm1(-h)
    wide = 2 - 2 * covariance(a, a + 1.01 * LEAF)
    assert wide == pytest.approx(2 * -math.expm1(-1.01 * LEAF), rel=1e-9)


@given(st.lists(st.floats(-20, 20, allow_nan=False), min_size=3, max_size=8, unique=True), st.integers(0, 2**63 - 1))
def test_nested_and_overlapping_intervals_add_up(knots, seed):
    """√(e^{2b} − e^{2a}) z[a, b] is W(e^{2b}) − W(e^{2a}) of one W, to rounding, whatever the run's intervals are."""
    knots = sorted(knots)
    assume(min(b - a for a, b in itertools.pairwise(knots)) > 1e-3)
    samples, scale = torch.arange(2), math.exp(-knots[-1])

    def increments(pairs):
        draw = brownian(seed, pairs, samples, (3,), torch.float64)
        return {(a, b): draw(a, b) * math.sqrt(math.exp(2 * b) - math.exp(2 * a)) * scale for a, b in pairs}

    parts = increments(list(itertools.pairwise(knots)))
    for (a, b), whole in increments(list(itertools.combinations(knots, 2))).items():
        inside = [parts[pair] for pair in parts if a <= pair[0] and pair[1] <= b]
        torch.testing.assert_close(whole, torch.stack(inside).sum(0), rtol=0, atol=1e-13)


def test_float32_keeps_its_relative_precision_at_every_noise_level():
    samples = torch.arange(200)
    for a, h in itertools.product((-12.0, -5.0, 0.0, 7.0, 12.0), (1e-2, 0.3, 3.0)):
        exact = brownian(1, [(a, a + h)], samples, (5,), torch.float64)(a, a + h)
        single = brownian(1, [(a, a + h)], samples, (5,), torch.float32)(a, a + h)
        assert single.dtype == torch.float32
        # Box–Muller in float32 costs up to 3.5e-4 where the radius is near 0 (test_noise.py): hence a quantile
        assert (single - exact).abs().quantile(0.95).item() < 1e-5
        half = brownian(1, [(a, a + h)], samples, (5,), torch.bfloat16)(a, a + h)
        assert torch.equal(half, single.bfloat16())


@pytest.mark.parametrize("grid", ["logsnr", "time", "karras"])
def test_increments_are_independent_standard_normals(grid):
    """Sampled, over a real grid: normal by Kolmogorov–Smirnov, and no two correlated by more than 5 standard errors."""
    lambdas = [knot.half_log_snr for knot in sk.Grid.make(sk.VP(), grid, 8).knots]
    pairs = list(itertools.pairwise(lambdas))
    draw = brownian(0, pairs, torch.arange(2500), (4,), torch.float64)
    z = np.stack([draw(a, b).flatten().numpy() for a, b in pairs])
    # 24 tests in all, so each at a level of 1e-4; over 60 other seeds the 480 p-values were uniform (p = 0.5)
    for row in z:
        assert stats.kstest(row, "norm").pvalue > 1e-4
    gap = np.cov(z) - np.eye(len(pairs))
    assert np.abs(gap).max() < 5 * math.sqrt(2 / z.shape[1])


@given(st.integers(1, 9), st.sampled_from([(), (1,), (5,), (3, 2)]), points, st.integers(-(2**63), 2**63 - 1))
def test_a_batch_split_changes_no_bit(size, event, point, seed):
    samples = torch.arange(9)
    whole = path(seed, point, samples, event)
    assert whole.shape == (9, *event)
    assert torch.equal(torch.cat([path(seed, point, part, event) for part in samples.split(size)]), whole)


def test_blocks_change_no_bit(monkeypatch):
    whole = path(3, 0.1, torch.arange(4), (6,))
    for size in (1, 22, 48, 100):
        monkeypatch.setattr("sdekit.noise._CACHED", size)
        assert torch.equal(path(3, 0.1, torch.arange(4), (6,)), whole)


def test_seeds_samples_and_elements_have_paths_of_their_own():
    z = path(0, 0.1, torch.arange(200), (50,), torch.float64)
    assert len(torch.unique(z)) == z.numel()
    for other in (path(1, 0.1, torch.arange(200), (50,), torch.float64), z.roll(1, 0), z.roll(1, 1), z.roll(25, 1)):
        assert abs(torch.corrcoef(torch.stack([z.flatten(), other.flatten()]))[0, 1].item()) < 5 / math.sqrt(z.numel())
    start = sk.noise.normal(0, 0, torch.arange(200), (50,), torch.float64)
    assert abs(torch.corrcoef(torch.stack([z.flatten(), start.flatten()]))[0, 1].item()) < 5 / math.sqrt(z.numel())


def elementwise(x, t):
    return torch.tanh(x) * (1 + t[:, None])


STOCHASTIC = [name for name in names() if get(name).stochastic]


@pytest.mark.parametrize("solver", STOCHASTIC)
def test_every_stochastic_solver_runs_on_a_path(solver):
    """The same samples for every batch split, other ones than with independent noise."""
    model = sk.ScoreModel(elementwise, sk.VP())
    arguments = {"solver": solver, "nfe": 7, "seed": 2}
    whole = sk.sample(model, (6, 3), noise="brownian", **arguments).x
    assert torch.equal(whole, sk.sample(model, (6, 3), noise="brownian", batch_size=4, **arguments).x)
    assert not torch.equal(whole, sk.sample(model, (6, 3), **arguments).x)


ANDERSON = [
    "ddpm", "ddim(eta=1.0)", "euler-maruyama", "reverse-diffusion", "dpmpp-sde", "dpmpp-3m-sde", "sa-solver",
    "er-sde-1(scale='sde')", "er-sde-3(scale='sde')", "seeds-1", "seeds-2", "seeds-3", "gddim(noise_level=1)",
]  # fmt: skip


@pytest.mark.parametrize("solver", ANDERSON)
def test_solvers_of_one_sde_follow_one_path(solver):
    """They meet ``dpmpp-2m-sde``: at four times the steps under 0.45 of the distance (0.25 expected)."""
    model = laws._mixture((-0.8, 0.2, 0.7), 0.5).model(laws._PROCESS)

    def run(name, steps):
        arguments = {"steps": steps, "seed": 3, "noise": "brownian", "final": "none", "dtype": torch.float64}
        return sk.sample(model, (256, 1), solver=name, **arguments).x

    far, near = (run(solver, n) - run("dpmpp-2m-sde", n) for n in (32, 128))
    assert near.square().mean().sqrt() < 0.03
    assert near.square().mean() < 0.2 * far.square().mean()


def test_the_accelerator_has_the_same_path():
    with simgpu.device() as gpu, gpu.forbid_host_reads():
        draw = brownian(5, [(-1.0, 0.5)], torch.arange(6, device=gpu.device), (2, 3), torch.float32)
        there = draw(-1.0, 0.5)
    here = brownian(5, [(-1.0, 0.5)], torch.arange(6), (2, 3), torch.float32)(-1.0, 0.5)
    assert torch.equal(there.cpu(), here)


@pytest.mark.parametrize("solver", ["ddpm", "dpmpp-2m-sde"])
def test_solvers_on_the_accelerator(solver):
    arguments = {"solver": solver, "nfe": 5, "seed": 1, "noise": "brownian"}
    here = sk.sample(sk.ScoreModel(elementwise, sk.VP()), (4, 3), **arguments).x
    with simgpu.device() as gpu, gpu.forbid_host_reads():
        there = sk.sample(sk.ScoreModel(elementwise, sk.VP()), (4, 3), device=gpu.device, **arguments).x
    assert torch.equal(here, there.cpu())


def test_an_unknown_source_suggests_the_nearest():
    with pytest.raises(ValueError, match="unknown noise 'brownain': did you mean 'brownian'"):
        sk.sample(sk.ScoreModel(elementwise, sk.VP()), (4, 3), nfe=5, noise="brownain")
    assert sorted(SOURCES) == ["brownian", "independent"]


def test_a_run_beyond_the_path_is_refused():
    process = sk.VE(sigma_min=1e-20, sigma_max=1.0)
    with pytest.raises(ValueError, match=r"serves half_log_snr from -40.0 to 40.0"):
        sk.sample(sk.ScoreModel(elementwise, process), (4, 3), nfe=5, solver="ddpm", noise="brownian")
    with pytest.raises(ValueError, match="half_log_snr=41"):
        path(0, 41.0, torch.arange(2), ())
