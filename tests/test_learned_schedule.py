"""A schedule that is learned: a process at any weights, blind to the bound, and with a known best one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sdekit as sk
from sdekit.process import LearnedVP, MonotoneCurve
from sdekit.testing import check_process
from sdekit.training import denoising_risk


def moved(seed: int, **ends: float) -> LearnedVP:
    """A schedule with weights of a training's size, far from a straight line."""
    process, g = LearnedVP(**ends), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        process.curve.heights.copy_(torch.randn(32, generator=g))
        process.curve.places.add_(0.1 * torch.randn(32, generator=g))
    return process


@pytest.mark.parametrize("process", [LearnedVP(), moved(0), moved(1, first=4.0, last=-3.0)], ids=["new", "0", "1"])
def test_it_is_a_process_at_any_weights(process: LearnedVP):
    check_process(process)


def test_the_ends_stay_whatever_is_learned():
    for seed in range(5):
        process = moved(seed, first=4.0, last=-3.0)
        assert process.half_log_snr(0.0) == pytest.approx(4.0, abs=1e-12)
        assert process.half_log_snr(1.0) == pytest.approx(-3.0, abs=1e-12)
        assert abs(process.half_log_snr(0.5) - 0.5) > 0.01


def test_the_bound_does_not_see_what_is_between_the_ends():
    """½ ∫ g²/σ² ‖ε̂ − ε‖² dt at uniform t, for a wrong ε̂ that is one function of λ (Kingma et al. 2021, eq. 18)."""
    x0 = 0.7 * torch.randn(20_000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def risk(process: sk.Process, times: str, weights: str) -> float:
        model = sk.ScoreModel(lambda x, t: 0.8 * process.sigma(t)[:, None] * x, process)
        return denoising_risk(model, x0, times, 0, 0, weights).item()

    processes = [LearnedVP(first=4.0, last=-4.0), *(moved(seed, first=4.0, last=-4.0) for seed in range(3))]
    risks = [risk(process, "importance", "simple") for process in processes]
    assert risks == pytest.approx([risks[0]] * 4, rel=1e-6)
    t_min, t_max = (sk.VP().t_of_half_log_snr(level) for level in (4.0, -4.0))
    assert risks[0] == pytest.approx(risk(sk.VP(t_min=t_min, t_max=t_max), "importance", "simple"), rel=1e-6)
    for process in processes:  # by t, which is another quadrature
        assert risk(process, "uniform", "likelihood") / 2 == pytest.approx(risks[0], rel=0.03)


def test_the_best_schedule_of_a_gaussian_is_found():
    """Data N(0, c): ε-loss α²c/(α²c + σ²). At the least mean square −λ' times it is the same at every t, and that
    number is ∫ c/(c + e^{−2λ}) dλ = ½ log(1 + c e^{2λ}) between the ends.
    """
    c, first, last = 0.6, 3.0, 0.0
    process, t = LearnedVP(first=first, last=last), (torch.arange(400) + 0.5) / 400
    adam = torch.optim.Adam(process.curve.parameters(), lr=0.05)

    def losses() -> Tensor:
        a, b = c * process.alpha(t) ** 2, process.sigma(t) ** 2
        return 0.5 * process.diffusion(t) ** 2 / b * a / (a + b)

    before = losses().detach()
    for _ in range(400):
        adam.zero_grad()
        losses().square().mean().backward()
        adam.step()
    after = losses().detach()
    truth = 0.5 * math.log((1 + c * math.exp(2 * first)) / (1 + c * math.exp(2 * last)))
    assert before.mean().item() == pytest.approx(truth, rel=1e-3)
    assert after.mean().item() == pytest.approx(truth, rel=1e-3)
    assert before.std() > 0.2 * truth
    assert after.std() < 0.01 * truth


def test_solvers_see_what_was_learned_since():
    process = LearnedVP(first=4.0, last=-3.0)
    before = sk.solvers.get("ddim").plan(process, steps=4, grid="time")
    with torch.no_grad():
        process.curve.heights[:8] += 6.0
    assert sk.solvers.get("ddim").plan(process, steps=4, grid="time").rows[0].to != before.rows[0].to


def test_a_table_holds_what_was_learned():
    process = moved(2, first=6.0, last=-3.0)
    table = process.table(500)
    for n in (1, 7, 250, 500):
        assert table.half_log_snr(n / 500) == pytest.approx(process.half_log_snr(n / 500), abs=1e-9)
    target = sk.targets.GaussianMixture(torch.tensor([[-1.0], [1.0]]).double(), 0.3)
    start = torch.linspace(-2, 2, 5).double()[:, None]
    ends = [
        sk.sample(target.model(one), (5, 1), solver="dpmpp-2m", grid="logsnr", steps=200, final="denoise",
                  start=one.prior_std * start).x
        for one in (process, table)
    ]  # fmt: skip
    assert (ends[0] - ends[1]).abs().max() < 0.02


def test_bad_input():
    with pytest.raises(ValueError, match=r"first=-1\.0, last=2\.0"):
        LearnedVP(first=-1.0, last=2.0)
    with pytest.raises(ValueError, match=r"t_max=2\.0"):
        LearnedVP(t_max=2.0)
    with pytest.raises(ValueError, match="curve="):
        LearnedVP(curve=torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="width=0"):
        MonotoneCurve(0)
