"""The laws refuse what is wrong: solvers that are right on equal steps in λ, or under VP, and nowhere else."""

import math
from dataclasses import replace

import numpy as np
import pytest

import sdekit as sk
from sdekit.solvers import Draw, Row, Solver, get
from sdekit.solvers.registry import full_steps
from sdekit.solvers.tableau import exponential, quadrature
from sdekit.testing import laws


def solver(rows, order, predicts="eps", **claims):
    return Solver("wrong", rows, order, predicts, 1, "", full_steps(1), **claims)


def adams_of_equal_steps(count):
    """Exponential Adams–Bashforth in λ, with the nodes of equal steps in the place of the grid's own."""

    def rows(grid):
        for past, (s, t, _) in enumerate(grid, start=1):
            used = min(past, count)
            anchor, moments = exponential("eps", s, t, used)
            yield Row(to=t, anchor=anchor, history=tuple(quadrature([-j for j in range(used)], moments)))

    return rows


@pytest.mark.parametrize("count", [2, 3, 4])
def test_weights_of_equal_steps_are_refused(count):
    wrong = solver(adams_of_equal_steps(count), count)
    assert laws.order_of(wrong) == pytest.approx(count, abs=0.3)  # equal steps do not show it
    assert laws.order_of(wrong, spacing="uneven") == pytest.approx(1, abs=0.3)
    with pytest.raises(AssertionError, match=f"on uneven ones, {count} stated"):
        laws.check_solver(wrong)
    laws.check_order(replace(wrong, order=1))  # which it is


def sde_2m_of_equal_steps(grid):
    """``dpmpp-2m-sde`` without its r: D_s + (D_s − D_{s−1})/2."""
    for i, (s, t, _) in enumerate(grid):
        h = t.half_log_snr - s.half_log_snr
        weight, std = -t.alpha * math.expm1(-2 * h), t.sigma * math.sqrt(-math.expm1(-2 * h))
        history = (1.5 * weight, -0.5 * weight) if i else (weight,)
        noise = (Draw(std, s.half_log_snr, t.half_log_snr),)
        yield Row(to=t, anchor=t.sigma / s.sigma * math.exp(-h), history=history, noise=noise)


def ddpm_of_equal_noise(grid):
    """``ddpm`` with the noise of the mean step in λ."""
    span = grid.knots[-1].half_log_snr - grid.knots[0].half_log_snr
    lost = -math.expm1(-2 * span / len(grid.evaluations))
    for row, (_, t, _) in zip(get("ddpm").rows(grid), grid):
        (draw,) = row.noise
        yield replace(row, noise=(replace(draw, coefficient=t.sigma * math.sqrt(lost)),))


@pytest.mark.parametrize(
    ("rows", "predicts", "order"), [(sde_2m_of_equal_steps, "x0", 2), (ddpm_of_equal_noise, "eps", 1)]
)
def test_a_stochastic_solver_of_equal_steps_is_refused(rows, predicts, order):
    wrong = solver(rows, order, predicts)
    assert laws.order_of(wrong) == pytest.approx(order, abs=0.3)
    assert laws.order_of(wrong, spacing="uneven") < order - 0.7
    with pytest.raises(AssertionError, match=f"on uneven ones, {order} stated"):
        laws.check_solver(wrong)


def ddpm_with_noise_named_by_number(grid):
    """``ddpm`` with its draws over equal parts of the whole range: right in law, wrong path by path."""
    parts = np.linspace(grid.knots[0].half_log_snr, grid.knots[-1].half_log_snr, len(grid.evaluations) + 1).tolist()
    for row, start, end in zip(get("ddpm").rows(grid), parts, parts[1:]):
        yield replace(row, noise=(Draw(row.noise[0].coefficient, start, end),))


def test_noise_of_other_intervals_than_the_steps_is_refused():
    wrong = solver(ddpm_with_noise_named_by_number, 1)
    laws.check_order(wrong)
    with pytest.raises(AssertionError, match=r"strong order .* it says pathwise=True"):
        laws.check_strong_order(wrong)


@pytest.mark.parametrize(("name", "claim"), [("ddpm", False), ("edm", True), ("pc", True)])
def test_a_wrong_claim_of_converging_path_by_path_is_refused(name, claim):
    with pytest.raises(AssertionError, match=f"pathwise={claim}"):
        laws.check_strong_order(replace(get(name), pathwise=claim))


def test_a_drift_of_one_process_is_refused():
    vp = sk.VP()

    def rows(grid):
        for row, (s, t, _) in zip(get("euler-maruyama").rows(grid), grid):
            yield replace(row, anchor=1 + vp.drift_rate(s.t) * (t.t - s.t))

    wrong = solver(rows, 1, "score", invariant=False)
    laws.check_order(wrong)  # measured under VP
    with pytest.raises(AssertionError, match="under Flow"):
        laws.check_solver(wrong)


def euler_off_the_equal_steps(grid):
    """``ddim`` with a weight that is wrong where the step differs from the one before."""
    before = None
    for row, (s, t, _) in zip(get("ddim").rows(grid), grid):
        h = t.half_log_snr - s.half_log_snr
        ratio = 1.0 if before is None else h / before
        yield replace(row, history=(row.history[0] * (0.99 + 0.01 * round(ratio, 9)),))
        before = h


def test_a_weight_that_is_wrong_off_equal_steps_fails_the_constant():
    with pytest.raises(AssertionError, match="steps under Flow"):
        laws.check_constant(solver(euler_off_the_equal_steps, 1))


@pytest.mark.parametrize("process", [sk.VP(), sk.VE(), sk.Flow(), sk.CosineVP()])
def test_uneven_steps_stay_uneven(process):
    ratios = []
    for steps in (64, 512):
        places = [process.half_log_snr(t) for t in laws.uneven(process, steps)]
        lengths = np.diff(places)
        assert lengths.min() > 0
        ratios.append(np.exp(np.abs(np.diff(np.log(lengths)))))
    assert all(ratio.max() < 2.7 for ratio in ratios)
    assert all(ratio.max() > 2.4 and np.median(ratio) > 1.8 for ratio in ratios)
    parts = lengths.reshape(-1, 4).sum(axis=1)  # a whole pattern each
    assert 2.5 < parts.max() / parts.min() < 3.1
