"""``auto``: the solver and the grid that need no choice."""

from collections.abc import Callable
from functools import cache

import pytest
import torch

import sdekit as sk
from sdekit.data import digits
from sdekit.elementwise import exp
from sdekit.grid import GRIDS
from sdekit.process import Process
from sdekit.solvers import get
from sdekit.solvers.auto import CHOICES, SAFE, SDE_CHOICES, SDE_SAFE, choose, choose_sde


def mixture_model(data: torch.Tensor, std: float, process: Process) -> sk.ScoreModel:
    """E[ε | x] for equal modes N(data_k, std² I), by the posterior's weights: an independent, faster ``Empirical``."""
    centres, squares = data.flatten(1), data.flatten(1).square().sum(1)

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = process.alpha(t[0].item()), process.sigma(t[0].item())
        var, flat = (alpha * std) ** 2 + sigma**2, x.flatten(1)
        weights = torch.softmax(alpha / var * flat @ centres.T - alpha**2 / (2 * var) * squares, 1)
        return (sigma / var * (flat - alpha * weights @ centres)).reshape(x.shape)

    return sk.ScoreModel(net, process)


def circle() -> torch.Tensor:
    angles = torch.arange(8, dtype=torch.float64) * (torch.pi / 4)
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def all_digits() -> torch.Tensor:
    return torch.cat([digits().train, digits().held_out]).double()


@cache
def problem(data: Callable[[], torch.Tensor]) -> tuple[sk.ScoreModel, torch.Tensor, torch.Tensor]:
    """Model, starts, and where the exact flow takes them."""
    model, event = mixture_model(data(), 0.1, sk.VP()), data().shape[1:]
    start = torch.randn(64, *event, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fine = sk.sample(model, start.shape, solver="dpm-solver-3", nfe=1500, grid="logsnr", start=start, final="none")
    return model, start, fine.x


def errors(data: Callable[[], torch.Tensor], runs: list[tuple[str, str, int]]) -> list[float]:
    """The median over the starts: a root mean square is led by single starts near a watershed between modes."""
    model, start, exact = problem(data)

    def error(solver: str, grid: str, nfe: int) -> float:
        x = sk.sample(model, start.shape, solver=solver, grid=grid, nfe=nfe, start=start, final="none").x
        return (x - exact).flatten(1).square().mean(1).sqrt().median().item()

    return [error(*run) for run in runs]


def two_modes() -> torch.Tensor:
    return torch.tensor([[-1.0, 0.5, 0.2], [0.8, -0.4, 0.0]], dtype=torch.float64)


@pytest.mark.parametrize("data", [circle, all_digits, two_modes], ids=["circle", "digits", "two modes"])
@pytest.mark.parametrize("nfe", [6, 10, 20, 50])
def test_it_is_near_the_best_fixed_choice(data, nfe):
    """Of 28, in the median; ``two_modes`` had no say in the choice."""
    fixed = [
        (solver, grid, nfe)
        for solver in ("deis-3", "deis-4", "ipndm-3", "ipndm-4", "unipc-2", "unipc-4", "dpmpp-2m")
        for grid in ("time-quadratic", "time", "logsnr", "cosine")
    ]
    auto, *others = errors(data, [("auto", "auto", nfe), *fixed])
    assert auto < 2.5 * min(others)


@pytest.mark.parametrize("nfe", [5, 20, 30])
def test_on_a_grid_of_ones_own_it_is_safe(nfe):
    """Whatever the grid, it is not far off: UniPC and iPNDM of high order, of its own grid's kind, were noise here."""
    grids = [grid for grid in GRIDS if grid not in ("trailing", "leading", "linspace", "sgm")]  # those are a table's
    for data in (circle, two_modes):
        found = iter(errors(data, [(solver, grid, nfe) for grid in grids for solver in ("auto", "ddim")]))
        for grid, auto, ddim in zip(grids, found, found):
            assert auto < 2.1 * ddim, grid


@pytest.mark.parametrize(
    ("name", "rule", "given", "choices"),
    [("auto", choose, SAFE, CHOICES), ("auto-sde", choose_sde, SDE_SAFE, SDE_CHOICES)],
)
def test_it_is_the_solver_it_says(name, rule, given, choices):
    for count in (1, 4, 9, 17, 18, 24, 25, 33, 200):
        plan = get(name).plan(sk.VP(), nfe=count, final="none")
        assert plan == rule(count).plan(sk.VP(), nfe=count, final="none")
        assert bool(plan.intervals) is (name == "auto-sde")
        safe = get(name).plan(sk.VP(), nfe=count, grid="beta", final="none")
        assert safe == get(given).plan(sk.VP(), nfe=count, grid="beta", final="none")
    assert list(choices) == sorted(choices)


def test_the_final_denoising_is_not_a_step():
    own, by_steps = get("auto").plan(sk.VP(), nfe=11, final="denoise"), get("auto").plan(sk.VP(), steps=10)
    assert own.rows[:-1] == by_steps.rows[:-1]
    assert (own.nfe, by_steps.nfe) == (11, 10)


def test_it_needs_no_choice():
    model = mixture_model(circle(), 0.1, sk.VP())
    out = sk.sample(model, (4, 2), nfe=10, seed=0, dtype=torch.float64)
    again = sk.sample(model, (4, 2), solver=choose(10), nfe=10, seed=0, dtype=torch.float64)
    assert torch.equal(out.x, again.x)


@pytest.mark.parametrize("nfe", [5, 20, 50])
def test_every_process_gives_the_same_samples(nfe):
    vp = sk.VP()
    ends = [exp(-vp.half_log_snr(t)) for t in (vp.t_min, vp.t_max)]
    ve = sk.VE(sigma_min=ends[0], sigma_max=ends[1])
    start = torch.linspace(-2, 2, 16, dtype=torch.float64).reshape(8, 2)
    x_vp = sk.sample(mixture_model(circle(), 0.3, vp), (8, 2), nfe=nfe, start=start).x
    x_ve = sk.sample(mixture_model(circle(), 0.3, ve), (8, 2), nfe=nfe, start=start / vp.alpha(vp.t_max)).x
    assert torch.allclose(x_vp, x_ve, rtol=1e-8, atol=1e-8)


def test_an_ode_runs_it_both_ways():
    model = mixture_model(circle(), 0.3, sk.VP())
    x = torch.tensor([[0.5, 0.9], [-1.1, 0.1]], dtype=torch.float64)
    z = sk.encode(model, x, method="auto", steps=50)
    assert torch.allclose(sk.decode(model, z, method="auto", steps=50), x, atol=1e-4)
