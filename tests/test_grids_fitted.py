"""Fitted grids: optimal where the optimum is known, better than the usual ones where it is measured, and the errors."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import optimize

import sdekit as sk
from sdekit.fitting import _along_paths, _cheapest, _path_divergence, fit_ays, fit_gits
from sdekit.grid import Grid
from sdekit.targets import Gaussian, GaussianMixture
from sdekit.testing import simgpu

STD = 0.5
VE = sk.VE(sigma_min=0.05, sigma_max=20.0)


def gaussian(dimensions=4):
    return Gaussian(torch.zeros(dimensions), STD**2 * torch.eye(dimensions)).double()


def eight_modes():
    angles = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    return GaussianMixture(torch.stack([angles.cos(), angles.sin()], dim=1), 0.1)


def starts(n, seed, process):
    noise = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return process.prior_std * noise


def gaussian_bound(levels):
    """Sabour et al. 2024, eq. 14, per dimension: data N(0, c² I), noise levels decreasing; integrated in w = 1/σ²."""

    def integral(w, rest):
        return (w / STD**2 - math.log1p(STD**2 * w) / STD**4 - rest * w) / 2

    total = 0.0
    for high, low in zip(levels, levels[1:]):
        rest = 1 / (high**2 + STD**2)
        total += integral(low**-2, rest) - integral(high**-2, rest)
    return 2 * STD**4 * total


def levels_of(process, times):
    return [process.knot(t).sigma / process.knot(t).alpha for t in times]


def test_ays_finds_the_least_bound_on_gaussian_data():
    target, steps = gaussian(), 4
    times = fit_ays(target.model(VE), target.sample(512), steps, sweeps=None, candidates=200)
    levels = levels_of(VE, times)
    uniform = levels_of(VE, [knot.t for knot in Grid.make(VE, "logsnr", steps).knots])

    def bound(logs):
        return gaussian_bound([uniform[0], *np.exp(np.sort(logs)[::-1]), uniform[-1]])

    best = optimize.minimize(bound, np.log(uniform[1:-1]), method="Nelder-Mead", options={"xatol": 1e-6})
    assert gaussian_bound(levels) < 1.02 * best.fun
    assert gaussian_bound(uniform) > 1.15 * best.fun  # so that the search had something to find
    for before, here, after in zip(levels, levels[1:], levels[2:]):  # the stationary point, eq. 31
        product = before * after
        stationary = STD * math.sqrt(product / (math.hypot(before, STD) * math.hypot(after, STD) - product))
        assert here == pytest.approx(stationary, rel=0.1)


def importance_sampled_bound(model, x0, high, low, generator):
    """Their algorithm 2 for one step, σ as time: u drawn from π (eq. 15), weighted back, times π's integral."""
    spread, rest = x0.std().item(), 0.0
    rest = 1 / (high**2 + spread**2)
    s = np.exp(np.linspace(math.log(low), math.log(high), 4000))
    density = (1 / (s**2 + spread**2) - rest) / s**3
    cumulative = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(s))])
    u = torch.rand(len(x0), dtype=torch.float64, generator=generator).numpy()
    drawn = np.interp(u * cumulative[-1], cumulative, s)
    here = torch.tensor(drawn)[:, None]
    x = x0 + here * torch.randn(x0.shape, dtype=torch.float64, generator=generator)
    above = x + (high**2 - here**2).sqrt() * torch.randn(x0.shape, dtype=torch.float64, generator=generator)
    t = torch.tensor([model.process.t_of_half_log_snr(-math.log(one)) for one in drawn])
    gaps = (model.x0(x, t) - model.x0(above, model.process.t_of_half_log_snr(-math.log(high)))).square().sum(1)
    terms = 2 * cumulative[-1] * gaps / (1 / (here[:, 0] ** 2 + spread**2) - rest)
    return terms.mean().item(), (terms.std() / math.sqrt(len(terms))).item()


def test_the_bound_of_each_step_is_the_papers_monte_carlo_estimate():
    model, x0 = eight_modes().model(VE), eight_modes().sample(4096, seed=1)
    knots = Grid.make(VE, "logsnr", 120).knots
    costs = _path_divergence(_along_paths(model, x0, knots, 0, {}), knots)
    generator = torch.Generator().manual_seed(0)
    many = eight_modes().sample(20_000, seed=2)
    for i, j in [(0, 60), (20, 50), (50, 80), (70, 120), (0, 120)]:
        high, low = knots[i].sigma, knots[j].sigma
        estimate, error = importance_sampled_bound(model, many, high, low, generator)
        assert abs(costs[i, j] - estimate) < 0.04 * estimate + 4 * error
    assert np.isinf(costs[np.tril_indices(len(knots))]).all()


def test_ays_without_a_sweep_is_its_start():
    target = gaussian()
    model, x0 = target.model(VE), target.sample(8)
    for start in ("karras", [0.9, 0.6, 0.3, 0.1]):
        expected = tuple(knot.t for knot in Grid.make(VE, start, 3).knots)
        assert fit_ays(model, x0, 3, start=start, sweeps=0) == expected


def test_each_sweep_lowers_the_bound():
    target = gaussian()
    model, x0 = target.model(VE), target.sample(512)
    bounds = [
        gaussian_bound(levels_of(VE, fit_ays(model, x0, 5, start="karras", sweeps=sweeps))) for sweeps in (0, 1, 3, 9)
    ]
    assert all(later < 0.98 * sooner for sooner, later in zip(bounds, bounds[1:]))


@pytest.mark.parametrize("gamma", [0.8, 1.0, 1.3])
def test_dynamic_programming_finds_the_cheapest_path(gamma):
    generator = np.random.default_rng(0)
    for steps in (1, 2, 4):
        costs = np.where(np.triu(np.ones((9, 9)), 1) > 0, generator.random((9, 9)), np.inf)

        def cost(path, costs=costs):
            return sum(gamma**k * costs[i, j] for k, (i, j) in enumerate(zip(path, path[1:])))

        paths = [(0, *inner, 8) for inner in itertools.combinations(range(1, 8), steps - 1)]
        assert tuple(_cheapest(costs, steps, gamma)) == min(paths, key=cost)


def test_gits_is_the_best_of_all_grids_where_the_trajectory_is_known():
    """N(0, c²) under α = 1: x_t = x_T √((t² + c²)/(T² + c²)) and ε = x t/(t² + c²), for every x alike."""
    target, steps, gamma = gaussian(1), 4, 1.15
    times = [knot.t for knot in Grid.make(VE, "logsnr", 14).knots]
    level = np.array(levels_of(VE, times))
    x = np.sqrt(level**2 + STD**2)

    def cost(path):
        total = 0.0
        for k, (i, j) in enumerate(zip(path, path[1:])):
            step = x[i] + (level[j] - level[i]) * x[i] * level[i] / (level[i] ** 2 + STD**2)
            total += gamma**k * abs(step - x[j])
        return total

    best = min(((0, *inner, 14) for inner in itertools.combinations(range(1, 14), steps - 1)), key=cost)
    start = torch.randn(64, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fitted = fit_gits(
        target.model(VE), VE.prior_std * start, steps, gammas=(gamma,), candidates=times, teacher="adams-x0"
    )
    assert fitted == tuple(times[i] for i in best)


@pytest.fixture(scope="module")
def mixture():
    process = sk.VP()
    model, start = eight_modes().model(process), starts(256, 1, process)
    exact = sk.sample(model, start.shape, solver="dpm-solver-3", nfe=400, start=start).x

    def error(solver, nfe, grid):
        x = sk.sample(model, start.shape, solver=solver, nfe=nfe, grid=grid, start=start).x
        return (x - exact).square().mean().sqrt().item()

    return model, error


@pytest.mark.parametrize(
    ("solver", "nfe"), [*(("ddim", nfe) for nfe in (5, 6, 8, 10)), *(("dpmpp-2m", nfe) for nfe in (6, 8, 10))]
)
def test_fitted_grids_beat_the_usual_ones_on_the_mixture(mixture, solver, nfe):
    """RMSE to the exact end of the ODE; other starts and data than the fit had. Every evaluation is a step's."""
    model, error = mixture
    x0, other = eight_modes().sample(512, seed=3), starts(256, 2, model.process)
    usual = min(error(solver, nfe, grid) for grid in ("logsnr", "time"))
    assert error(solver, nfe, fit_ays(model, x0, nfe)) < 0.9 * usual
    assert error(solver, nfe, fit_gits(model, other, nfe, solver=solver)) < 0.7 * usual


def test_fitted_noise_levels_do_not_depend_on_the_process():
    vp = sk.VP()
    low, high = (levels_of(vp, [t])[0] for t in (vp.t_min, vp.t_max))
    ve = sk.VE(sigma_min=low, sigma_max=high)
    x0, noise = eight_modes().sample(64), starts(32, 0, VE)
    ays, gits = [], []
    for process in (vp, ve):
        model = eight_modes().model(process)
        ays.append(levels_of(process, fit_ays(model, x0, 5, candidates=40)))
        start = process.alpha(process.t_max) * noise
        gits.append(levels_of(process, fit_gits(model, start, 5, teacher_steps=40)))
    assert ays[0] == pytest.approx(ays[1], rel=1e-6)
    assert gits[0] == pytest.approx(gits[1], rel=1e-6)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[0.3, -0.2], [0.1, 0.4]]))
        self.labels = torch.nn.Parameter(torch.tensor([[0.5, 0.0], [0.0, -1.0]]))

    def forward(self, x, t, label):  # which has no default
        return torch.tanh(x @ self.weight + self.labels[label] * (1 + 9 * t[:, None]))


@pytest.mark.parametrize("fit", [fit_ays, fit_gits])
def test_fits_pass_conditions_and_run_on_the_models_device(fit):
    x, label = torch.linspace(-1, 1, 12).reshape(6, 2), torch.tensor([0, 1, 0, 1, 0, 1])
    size = {"candidates": 20} if fit is fit_ays else {"teacher_steps": 20}
    here = fit(sk.ScoreModel(Net(), sk.VP()), x, 4, label=label, **size)
    with simgpu.device() as gpu:
        model = sk.ScoreModel(Net().to(gpu.device), sk.VP())
        there = fit(model, x.to(gpu.device), 4, label=label.to(gpu.device), **size)
    assert here == there


def net_that_breaks_below(level, value):
    return lambda x, t: torch.where(t[:, None] < level, torch.full_like(x, value), 0.1 * x)


@pytest.mark.parametrize("net", [net_that_breaks_below(0.5, math.inf), lambda x, t: -1e4 * x])
def test_a_teacher_that_diverges_is_an_error(net):
    with pytest.raises(
        ValueError, match=r"trajectory of teacher='heun' holds NaN or infinity at t=0\.\d+: it diverged"
    ):
        fit_gits(sk.ScoreModel(net, sk.VP()), torch.ones(2, 2), 4, teacher="heun")


def test_predictions_that_are_not_finite_are_an_error():
    model = sk.ScoreModel(net_that_breaks_below(0.5, math.nan), sk.VP())
    with pytest.raises(ValueError, match="predictions of x0 holds NaN or infinity at t=0"):
        fit_ays(model, torch.ones(2, 2), 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps=0: it must be a whole number from 1"),
        ({"candidates": 3}, "candidates=3: it must be a whole number of at least 5"),
        ({"sweeps": -1}, "sweeps=-1: it must be a whole number of at least 0"),
        ({"start": "logsnrr"}, "did you mean 'logsnr'"),
        ({"start": [1.0, 0.5, 0.1]}, "3 times given, 5 steps need 6"),
        ({"x0": torch.ones(0, 2)}, "x0=<tensor .0, 2.*not empty"),
        ({"x0": torch.full((3, 2), math.nan)}, "x0=<tensor .* with .*(nan|inf) at "),
    ],
)
def test_bad_arguments_of_ays_are_named(arguments, message):
    arguments = {"x0": torch.ones(3, 2), "steps": 5, **arguments}
    with pytest.raises(ValueError, match=message):
        fit_ays(sk.ScoreModel(lambda x, t: x, sk.VP()), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps=0: it must be a whole number from 1"),
        ({"teacher_steps": 4}, "teacher_steps=4: it must be a whole number of at least 5"),
        ({"candidates": [1.0, 0.5, 0.1]}, "candidates: 3 times given, of which 5 steps need 6"),
        ({"teacher": "ddpm"}, "teacher='ddpm' draws noise"),
        ({"solver": "ddim(eta=1.0)"}, "solver='ddim' draws noise"),
        ({"teacher": "huen"}, "did you mean 'heun'"),
        ({"gammas": ()}, r"gammas=\(\): at least one is needed"),
        ({"gammas": (1.0, -1.0)}, r"gammas=\(1.0, -1.0\): at least one is needed, each positive"),
        ({"start": torch.full((3, 2), math.inf)}, "start=<tensor .* with .*(nan|inf) at "),
    ],
)
def test_bad_arguments_of_gits_are_named(arguments, message):
    arguments = {"start": torch.ones(3, 2), "steps": 5, **arguments}
    with pytest.raises(ValueError, match=message):
        fit_gits(sk.ScoreModel(lambda x, t: x, sk.VP()), **arguments)
