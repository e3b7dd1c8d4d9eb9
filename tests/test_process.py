"""The laws of a forward process, for every process and for random parameters."""

from __future__ import annotations

import cmath
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from strategies import PROCESSES, at, fractions, processes, smooth_span, tensor

from sdekit.elementwise import atan, atan2, log, tan
from sdekit.process import EDM, VE, VP, CosineVP, DiscreteVP, Flow, LaplaceVP, Process, SigmoidVP, SubVP

every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
TIGHT: dict[str, Any] = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-14}
FORMULAS = ["log_alpha", "log_sigma", "alpha", "sigma", "half_log_snr", "drift_rate", "diffusion", "sigma_rate"]


def published(process: Process, t: float) -> tuple[float, float]:
    """α and σ as the papers print them, cancellation and all."""
    if isinstance(process, VE):
        return 1.0, process.sigma_min * (process.sigma_max / process.sigma_min) ** t
    if isinstance(process, Flow):
        return 1 - t, t
    if isinstance(process, EDM):
        return 1.0, t
    if isinstance(process, CosineVP):
        bar = [math.cos((u + process.s) / (1 + process.s) * math.pi / 2) ** 2 for u in (t, 0.0)]
        return math.sqrt(bar[0] / bar[1]), math.sqrt(1 - bar[0] / bar[1])
    if isinstance(process, SigmoidVP):  # Chen 2023, algorithm 1
        first, last, here = (
            1 / (1 + math.exp(-x / process.tau))
            for x in (process.start, process.end, t * (process.end - process.start) + process.start)
        )
        return math.sqrt((last - here) / (last - first)), math.sqrt((here - first) / (last - first))
    if isinstance(process, LaplaceVP):  # Hang & Gu 2024, table 1
        level = process.mu - process.b * math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t))
        return math.sqrt(1 / (1 + math.exp(-level))), math.sqrt(1 / (1 + math.exp(level)))
    assert isinstance(process, VP | SubVP)
    alpha = math.exp(-0.25 * t**2 * (process.beta_max - process.beta_min) - 0.5 * t * process.beta_min)
    return alpha, (1 - alpha**2 if isinstance(process, SubVP) else math.sqrt(1 - alpha**2))


@given(processes().filter(lambda process: not isinstance(process, DiscreteVP)), fractions(0.1))
def test_alpha_and_sigma_are_the_published_ones(process: Process, fraction: float) -> None:
    t = at(process, fraction)
    assert (process.alpha(t), process.sigma(t)) == pytest.approx(published(process, t), rel=1e-10)


@given(st.lists(st.floats(1e-4, 0.9), min_size=2, max_size=40))
def test_a_table_is_met_exactly_at_its_entries(betas: list[float]) -> None:
    process, bar = DiscreteVP(betas), np.cumprod(1 - np.array(betas))
    for n in range(len(betas)):
        t = (n + 1) / len(betas)
        assert process.alpha(t) ** 2 == pytest.approx(bar[n], rel=1e-11)
        assert process.sigma(t) ** 2 == pytest.approx(1 - bar[n], rel=1e-11)
        if n:
            scale, std = process.transition(n / len(betas), t)
            assert (scale**2, std**2) == pytest.approx((1 - betas[n], betas[n]), rel=1e-9)


def test_ddpm_table() -> None:
    bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    times = (np.arange(1000) + 1) / 1000
    np.testing.assert_allclose(DiscreteVP().alpha(torch.from_numpy(times)).numpy() ** 2, bar, rtol=1e-11)
    assert DiscreteVP.linear(50).betas[-1] == pytest.approx(0.02 * 1000 / 50, rel=1e-14)
    assert DiscreteVP(list(DiscreteVP().betas)).betas is DiscreteVP().betas  # caches compare them at every call


@given(processes(), fractions(), fractions())
def test_marginals_solve_the_moment_equations(process: Process, first: float, second: float) -> None:
    """m' = f m and v' = 2 f v + g², integrated by someone else's solver with drift and diffusion as black boxes."""
    s, t = smooth_span(process, first, second)
    one = torch.ones(1, dtype=torch.float64)

    def rates(time: float, moments: np.ndarray) -> list[float]:
        f = process.drift(one, time).item()
        return [f * moments[0], 2 * f * moments[1] + process.diffusion(time) ** 2]

    solved = solve_ivp(rates, (s, t), [process.alpha(s), process.sigma(s) ** 2], **TIGHT).y[:, -1]
    assert solved == pytest.approx([process.alpha(t), process.sigma(t) ** 2], rel=1e-9)


@given(processes(), fractions(), fractions())
def test_rates_are_the_derivatives(process: Process, first: float, second: float) -> None:
    t = tensor(smooth_span(process, first, second)[0]).requires_grad_()
    for value, rate in [(process.alpha, process.alpha_rate), (process.sigma, process.sigma_rate)]:
        (derivative,) = torch.autograd.grad(value(t), t)
        assert rate(t).item() == pytest.approx(derivative.item(), rel=1e-9, abs=1e-13)
    (slope,) = torch.autograd.grad(process.half_log_snr(t), t)
    assert process.diffusion(t).item() ** 2 == pytest.approx(-2 * (process.sigma(t) ** 2 * slope).item(), rel=1e-9)


@given(processes(), st.lists(fractions(), min_size=3, max_size=3))
def test_transitions_compose(process: Process, marks: list[float]) -> None:
    r, s, t = (at(process, mark) for mark in sorted(marks))
    (a, v), (b, w), (c, u) = process.transition(r, s), process.transition(s, t), process.transition(r, t)
    assert a * b == pytest.approx(c, rel=1e-12)
    assert math.hypot(b * v, w) == pytest.approx(u, rel=1e-7, abs=1e-9 * process.sigma(t))
    assert c * process.alpha(r) == pytest.approx(process.alpha(t), rel=1e-12)
    assert math.hypot(c * process.sigma(r), u) == pytest.approx(process.sigma(t), rel=1e-12)


@given(processes(), fractions(0.0, 0.5), fractions(0.6))
def test_a_transition_does_not_run_backwards(process: Process, first: float, second: float) -> None:
    with pytest.raises(ValueError, match=r"needs s <= t"):
        process.transition(at(process, second), at(process, first))


@given(processes(), st.lists(fractions(), min_size=1, max_size=5))
def test_floats_and_float64_tensors_agree(process: Process, marks: list[float]) -> None:
    times = [at(process, mark) for mark in marks]
    for name in FORMULAS:
        formula = getattr(process, name)
        expected = [formula(t) for t in times]
        assert all(type(value) is float for value in expected)
        assert formula(tensor(times)).tolist() == pytest.approx(expected, rel=1e-12, abs=1e-14), name
        assert formula(tensor(times[0])).item() == pytest.approx(expected[0], rel=1e-12, abs=1e-14), name
    levels = [process.half_log_snr(t) for t in times]
    inverse = [process.t_of_half_log_snr(level) for level in levels]
    assert process.t_of_half_log_snr(tensor(levels)).tolist() == pytest.approx(inverse, rel=1e-12)


@given(processes(), fractions())
def test_half_log_snr_is_inverted(process: Process, fraction: float) -> None:
    t = at(process, fraction)
    level = process.half_log_snr(t)
    # t is as well known as lambda is: to a rounding of lambda or of t
    slope = process.diffusion(t) ** 2 / (2 * process.sigma(t) ** 2)
    tolerance = 1e-14 * (abs(level) + 10) / slope + 1e-12 * t
    assert process.t_of_half_log_snr(level) == pytest.approx(t, rel=0, abs=tolerance)
    assert process.knot_at(level).half_log_snr == pytest.approx(level, abs=1e-9)


@given(processes(), st.lists(fractions(), min_size=2, max_size=20, unique=True))
def test_half_log_snr_strictly_decreases(process: Process, marks: list[float]) -> None:
    times = [at(process, mark) for mark in sorted(marks)]
    for s, t in zip(times, times[1:]):
        if t - s > 1e-6:
            assert process.half_log_snr(s) > process.half_log_snr(t)


@given(processes(), fractions())
def test_float32_is_accurate_from_t_min_on(process: Process, fraction: float) -> None:
    """Within some roundings of t and of the result, where 1 − e^{2 log α} would lose 7% of σ² at t = 1e-5."""
    for t in (tensor(process.t_min).float(), tensor(at(process, fraction)).float(), tensor(process.t_max).float()):
        for name in ("alpha", "sigma"):
            exact, rate = (getattr(process, formula)(t.double()).item() for formula in (name, f"{name}_rate"))
            condition = abs(t.item() * rate / exact)
            assert getattr(process, name)(t).item() == pytest.approx(exact, rel=1e-6 * (1 + condition)), (name, t)


def test_float32_at_small_times() -> None:
    for process in (VP(t_min=1e-5), SubVP(t_min=1e-5), CosineVP(t_min=1e-5), Flow(t_min=1e-5)):
        t = torch.tensor(1e-5)
        assert process.sigma(t).item() == pytest.approx(process.sigma(t.item()), rel=1e-6), process
        level = torch.tensor(process.half_log_snr(t.item()))
        assert process.t_of_half_log_snr(level).item() == pytest.approx(t.item(), rel=1e-5), process


@every_process
@pytest.mark.parametrize("noise_level", [0.0, 0.5, 1.0, 1.7])
def test_reverse_keeps_gaussian_marginals(process: Process, noise_level: float) -> None:
    """Moments of the reverse SDE on x_0 ~ N(0.7, 0.3), from t down to s, against those of the forward process."""
    mean, variance = 0.7, 0.3

    def moments(t: float) -> list[float]:
        return [process.alpha(t) * mean, process.alpha(t) ** 2 * variance + process.sigma(t) ** 2]

    def score(x: torch.Tensor, t: float | torch.Tensor) -> torch.Tensor:
        now = moments(float(t))
        return -(x - now[0]) / now[1]

    reverse = process.reverse(score, noise_level)
    s, t = smooth_span(process, 0.05, 0.6)

    def rates(time: float, now: np.ndarray) -> list[float]:
        at_zero, at_one = reverse.drift(tensor([0.0, 1.0]), time).tolist()
        slope = at_one - at_zero
        # towards the data dx = −drift |dt| + noise: the mean follows the drift, the variance gains g² going back
        return [at_zero + slope * now[0], 2 * slope * now[1] - reverse.diffusion(time) ** 2]

    solved = solve_ivp(rates, (t, s), moments(t), **TIGHT).y[:, -1]
    assert solved == pytest.approx(moments(s), rel=1e-8)


def test_reverse_of_noise_level_one_is_andersons() -> None:
    process, x = VP(), tensor([[0.3, -2.0]])
    reverse = process.reverse(lambda x, t: 3 * x)
    beta = 0.1 + 0.4 * 19.9
    assert torch.allclose(reverse.drift(x, 0.4), -0.5 * beta * x - beta * 3 * x, rtol=1e-12)
    assert reverse.diffusion(0.4) == pytest.approx(math.sqrt(beta), rel=1e-12)


@every_process
def test_perturb_and_marginal(process: Process) -> None:
    x0, eps = tensor([[1.0, -2.0], [0.5, 4.0]]), tensor([[0.3, 1.0], [-1.0, 2.0]])
    times = tensor([at(process, 0.2), at(process, 0.9)])
    rows = [process.alpha(t) * x0[i] + process.sigma(t) * eps[i] for i, t in enumerate(times.tolist())]
    torch.testing.assert_close(process.perturb(x0, times, eps), torch.stack(rows), rtol=1e-12, atol=0)
    mean, std = process.marginal(x0, times)
    torch.testing.assert_close(mean + std[:, None] * eps, torch.stack(rows), rtol=1e-12, atol=0)
    torch.testing.assert_close(process.drift(x0, times), process.drift_rate(times)[:, None] * x0)
    assert process.prior_std == process.sigma(process.t_max)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VP(beta_min=0.0), "beta_min, beta_max = 0.0, 20.0"),
        (lambda: VP(beta_min=30.0), "beta_min, beta_max = 30.0, 20.0"),
        (lambda: VP(beta_max=math.nan), "beta_max=nan: it must be a finite number"),
        (lambda: SubVP(t_min=-0.1), "t_min=-0.1, t_max=1.0"),
        (lambda: VE(sigma_min=-1.0), "sigma_min, sigma_max = -1.0, 50.0"),
        (lambda: VE(sigma_max=math.inf), "sigma_max=inf: it must be a finite number"),
        (lambda: CosineVP(t_max=1.0), "t_max=1.0: they need s > 0 and t_max < 1"),
        (lambda: CosineVP(s=0.0), "s=0.0"),
        (lambda: DiscreteVP(np.array(0.5)), "betas=.*it must be several"),
        (lambda: SigmoidVP(start=1.0, end=1.0), "start=1.0, end=1.0, .*they need start < end"),
        (lambda: SigmoidVP(t_max=1.0), "t_max=1.0: they need start < end"),
        (lambda: LaplaceVP(t_min=0.0), "t_min=0.0, t_max=.*: they need t_min > 0"),
        (lambda: LaplaceVP(b=0.0), "b"),
        (lambda: Flow(t_max=1.0), "t_max=1.0: Flow needs both strictly inside"),
        (lambda: Flow(t_min=0.0), "t_min=0.0"),
        (lambda: EDM(t_min=0.0), "t_min, t_max = 0.0, 80.0"),
        (lambda: EDM(t_max=0.001), "t_min, t_max = 0.002, 0.001"),
        (lambda: VP(t_min=0.5, t_max=0.5), "t_min=0.5, t_max=0.5"),
        (lambda: DiscreteVP([]), "betas: 0 given"),
        (lambda: DiscreteVP([0.1]), "betas: 1 given"),
        (lambda: DiscreteVP([0.1, 1.0]), r"betas\[1\] = 1.0"),
        (lambda: DiscreteVP([0.0, 0.1]), r"betas\[0\] = 0.0"),
        (lambda: DiscreteVP([math.nan, 0.1]), r"betas=\[nan, 0.1\]: it must be several, .* each a finite number"),
        (lambda: DiscreteVP.linear(1), "steps=1"),
        (lambda: DiscreteVP.linear(10), r"betas\[.\] = .*must lie in \(0, 1\)"),
        (lambda: VP().reverse(lambda x, t: x, -0.1), "noise_level=-0.1"),
        (lambda: VP().reverse(lambda x, t: x, math.nan), "noise_level=nan"),
    ],
)
def test_bad_parameters_are_named(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_a_process_that_lacks_formulas_names_them_when_it_is_made() -> None:
    @dataclass(frozen=True)
    class Half(Process):
        t_min: float = 0.1
        t_max: float = 1.0

        def log_alpha(self, t):
            return 0.0 * t

        def log_sigma(self, t):
            return log(t)

        def drift(self, x, t):  # not the name: f is drift_rate
            return 0.0 * t

    with pytest.raises(TypeError, match=r"Half.*'?diffusion'?, '?drift_rate'?.* '?t_of_half_log_snr'?"):
        Half()


def test_edms_ode_is_dx_dt_equal_to_eps() -> None:
    """Karras et al. 2022, eq. 3 with s = 1 and σ = t: dx/dt = −t ∇ log p = ε; the noise is √(2t) dw (eq. 6)."""
    assert (EDM().alpha_rate(3.0), EDM().sigma_rate(3.0)) == pytest.approx((0.0, 1.0), abs=1e-12)
    assert EDM().diffusion(3.0) == pytest.approx(math.sqrt(6.0), rel=1e-14)


@pytest.mark.parametrize(("y", "x"), [(1.0, 2.0), (-1.0, -2.0), (0.0, -3.0), (2.0, 0.0)])
def test_angles_of_floats_and_tensors(y: float, x: float) -> None:
    angle = cmath.phase(complex(x, y))
    assert type(atan2(y, x)) is float
    assert atan2(y, x) == pytest.approx(angle, rel=1e-15)
    for pair in ((tensor([y] * 3), tensor([x] * 3)), (tensor([y] * 3), x), (y, tensor([x] * 3))):
        assert atan2(*pair).tolist() == pytest.approx([angle] * 3, rel=1e-14)
    one = atan2(y, tensor([x]))  # a tensor of one number is a tensor too
    assert isinstance(one, torch.Tensor)
    assert one.shape == (1,)
    assert tan(atan(y)) == pytest.approx(y, rel=1e-14)
    assert torch.tan(atan(tensor([y, x]))).tolist() == pytest.approx([y, x], rel=1e-14)
