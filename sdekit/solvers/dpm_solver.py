"""DPM-Solver: exponential integrators in λ for the noise prediction; its single steps serve the data prediction too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated

from sdekit.grid import Grid
from sdekit.names import Between
from sdekit.process import Knot
from sdekit.solvers.multistep import BELOW, FEW, Weigh, multistep
from sdekit.solvers.registry import register
from sdekit.solvers.tableau import Row, exponential, quadrature

_PAPER = "Lu et al. 2022 (DPM-Solver)"
_R = Between(0.01, 1)


def first_order(kind: str, grid: Grid, s: Knot, t: Knot) -> Iterator[Row]:
    """DPM-Solver-1: the prediction is constant over the step. In either prediction it is DDIM."""
    anchor, (weight,) = exponential(kind, s, t, 1)
    yield Row(to=t, anchor=anchor, history=(weight,))


def second_order(kind: str, grid: Grid, s: Knot, t: Knot, r1: float = 0.5) -> Iterator[Row]:
    """DPM-Solver-2: F + (F(λ_s + r_1 h) − F)/(2 r_1) is constant over the step."""
    middle = grid.between(s, t, r1)
    anchor, (weight,) = exponential(kind, s, middle, 1)
    yield Row(to=middle, anchor=anchor, history=(weight,), commit=False)
    anchor, (weight,) = exponential(kind, s, t, 1)
    slope = weight / (2 * r1)
    # at r_1 = 1/2 the update is the middle prediction alone
    yield Row(to=t, anchor=anchor, history=(slope,) if r1 == 0.5 else (slope, weight - slope))


def third_order(kind: str, grid: Grid, s: Knot, t: Knot, r1: float = 1 / 3, r2: float = 2 / 3) -> Iterator[Row]:
    """DPM-Solver-3: the slope over the step from the prediction at λ_s + r_2 h, which is reached with a slope too."""
    u1, u2 = grid.between(s, t, r1), grid.between(s, t, r2)
    anchor, (weight,) = exponential(kind, s, u1, 1)
    yield Row(to=u1, anchor=anchor, history=(weight,), commit=False)
    anchor, (weight, linear) = exponential(kind, s, u2, 2)
    slope = r2 / r1 * linear
    yield Row(to=u2, anchor=anchor, history=(slope, weight - slope), commit=False)
    anchor, (weight, linear) = exponential(kind, s, t, 2)
    yield Row(to=t, anchor=anchor, history=(linear / r2, 0.0, weight - linear / r2))


_STEPS = {1: first_order, 2: second_order, 3: third_order}


def single_step(kind: str, grid: Grid, s: Knot, t: Knot, evaluations: int) -> Iterator[Row]:
    """One step of the order that ``evaluations`` allow, up to 3."""
    return _STEPS[evaluations](kind, grid, s, t)


def all_single_steps(kind: str, grid: Grid) -> Iterator[Row]:
    for s, t, evaluations in grid:
        yield from single_step(kind, grid, s, t, evaluations)


@register("dpm-solver-1", order=1, predicts="eps", reference=f"{_PAPER}, eq. 3.7")
def dpm_solver_1(grid: Grid) -> Iterator[Row]:
    """DPM-Solver-1, the exponential Euler method: the same as ``ddim``."""
    yield from all_single_steps("eps", grid)


@register("dpm-solver-2", order=2, evaluations=2, predicts="eps", reference=f"{_PAPER}, algorithm 1 and 4")
def dpm_solver_2(grid: Grid, *, r1: Annotated[float, _R] = 0.5) -> Iterator[Row]:
    """Single-step DPM-Solver-2: evaluate at λ_s + r_1 h on the way; r_1 = 1/2, the midpoint in λ, is the paper's."""
    for s, t, evaluations in grid:
        yield from second_order("eps", grid, s, t, r1) if evaluations == 2 else first_order("eps", grid, s, t)


@register("dpm-solver-3", order=3, evaluations=3, predicts="eps", reference=f"{_PAPER}, algorithm 2")
def dpm_solver_3(grid: Grid) -> Iterator[Row]:
    """Single-step DPM-Solver-3 with r_1 = 1/3, r_2 = 2/3."""
    yield from all_single_steps("eps", grid)


def fast_split(budget: int) -> list[int]:
    """Orders of DPM-Solver-fast's steps (section on DPM-Solver-fast): third order, and less for the last.

    >>> fast_split(6), fast_split(7), fast_split(8)
    ([3, 2, 1], [3, 3, 1], [3, 3, 2])
    """
    thirds, rest = divmod(budget, 3)
    return [3] * (thirds - 1) + [2, 1] if rest == 0 else [3] * thirds + [rest]


@register(
    "dpm-solver-fast", order=3, evaluations=3, predicts="eps", split=fast_split, reference=f"{_PAPER}, DPM-Solver-fast"
)
def dpm_solver_fast(grid: Grid) -> Iterator[Row]:
    """DPM-Solver-fast: third-order steps, the last one or two of lower order so that the budget is met.

    Order 3 where the budget leaves a rest of 2 by 3; otherwise the last step is of order 1 and caps the order at 2.
    """
    yield from all_single_steps("eps", grid)


def published_multistep(kind: str, quadratic: float = 0.5) -> Weigh:
    """Weights of multistep DPM-Solver(++), for up to three predictions.

    The polynomial in u = (λ − λ_s)/h through the predictions is D_0 + D_1 u + D_2 u², D_1 and D_2 divided differences.
    Two predictions: D_1 is weighed by half the constant's weight, as at the middle of the step, not by its integral.
    Three: D_1 by its integral and D_2 by ``quadratic`` times its integral. Published is 1/2, which is order 2.
    """

    def weigh(s: Knot, t: Knot, past: Sequence[Knot]) -> tuple[float, Sequence[float]]:
        anchor, (constant, linear, square) = exponential(kind, s, t, 3)
        moments = {1: [constant], 2: [constant, constant / 2], 3: [constant, linear, quadratic * square]}[len(past)]
        h = t.half_log_snr - s.half_log_snr
        return anchor, quadrature([(knot.half_log_snr - s.half_log_snr) / h for knot in past], moments)

    return weigh


@register("dpm-solver-2m", order=2, predicts="eps", reference=f"{_PAPER}, released code (multistep)")
def dpm_solver_2m(grid: Grid, *, lower_order_below: Annotated[float, BELOW] = FEW) -> Iterator[Row]:
    """Multistep DPM-Solver-2: ε + (ε − ε_{−1})/(2r) is constant over the step, r the last step over this one in λ."""
    yield from multistep(grid, 2, published_multistep("eps"), partial(single_step, "eps"), lower_order_below)


@register("dpm-solver-3m", order=2, predicts="eps", reference=f"{_PAPER}, released code (multistep)")
def dpm_solver_3m(grid: Grid, *, lower_order_below: Annotated[float, BELOW] = FEW) -> Iterator[Row]:
    """Multistep DPM-Solver-3 as it was released: ε is a quadratic in λ whose second coefficient counts half.

    Order 2, and not 3, because of that half; ``adams-eps`` is the method without it.
    """
    yield from multistep(grid, 3, published_multistep("eps"), partial(single_step, "eps"), lower_order_below)
