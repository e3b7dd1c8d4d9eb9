"""``auto``: the solver and the grid that need no choice."""

from collections.abc import Callable
from functools import cache

import pytest
import torch

import sdekit as sk
from sdekit.data import digits
from sdekit.elementwise import exp
from sdekit.process import Process
from sdekit.solvers import get
from sdekit.solvers.auto import CHOICES, choose

NFE = (5, 6, 8, 10, 12, 15, 20, 30, 50)
# the best of some 60 configurations of k-diffusion, diffusers, DPM-Solver's and UniPC's code, measured with them
PEERS = (0.181, 0.149, 0.110, 0.0741, 0.0652, 0.0428, 0.0089, 0.0029, 0.00042)


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
    model, start, exact = problem(data)

    def error(solver: str, grid: str, nfe: int) -> float:
        x = sk.sample(model, start.shape, solver=solver, grid=grid, nfe=nfe, start=start, final="none").x
        return (x - exact).square().mean().sqrt().item()

    return [error(*run) for run in runs]


def test_on_the_digits_mixture_it_is_near_the_best_that_others_reach():
    for nfe, error, peer in zip(NFE, errors(all_digits, [("auto", "auto", n) for n in NFE]), PEERS):
        assert error < 1.25 * peer, nfe


@pytest.mark.parametrize("data", [circle, all_digits], ids=["circle", "digits"])
@pytest.mark.parametrize("nfe", [6, 10, 20, 50])
def test_it_is_within_a_quarter_of_the_best_fixed_choice(data, nfe):
    fixed = [
        (solver, grid, nfe)
        for solver in ("deis-3", "deis-4", "ipndm-3", "ipndm-4", "unipc-2", "unipc-4", "dpmpp-2m")
        for grid in ("time-quadratic", "time", "logsnr", "cosine")
    ]
    auto, *others = errors(data, [("auto", "auto", nfe), *fixed])
    assert auto < 1.25 * min(others)


def test_it_is_the_solver_it_says():
    for count in (1, 4, 9, 17, 18, 33, 200):
        chosen = choose(count)
        plan = get("auto").plan(sk.VP(), nfe=count, final="none")
        assert plan == chosen.plan(sk.VP(), nfe=count, final="none")
        assert plan == chosen.plan(sk.VP(), nfe=count, grid=chosen.grid, final="none")
        assert str(plan) != str(chosen.plan(sk.VP(), nfe=count, grid="beta", final="none")) or count == 1
    assert list(CHOICES) == sorted(CHOICES)


def test_the_final_denoising_is_not_a_step():
    assert get("auto").plan(sk.VP(), nfe=11).rows[:-1] == get("auto").plan(sk.VP(), steps=10).rows[:-1]


def test_it_needs_no_choice():
    model = mixture_model(circle(), 0.1, sk.VP())
    out = sk.sample(model, (4, 2), nfe=10, seed=0, dtype=torch.float64)
    again = sk.sample(model, (4, 2), solver="auto", grid=choose(9).grid, nfe=10, seed=0, dtype=torch.float64)
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
