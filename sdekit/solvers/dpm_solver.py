"""DPM-Solver: exponential integrators in λ for the noise prediction, single-step."""

from __future__ import annotations

import math
from collections.abc import Iterator

from sdekit.grid import Grid
from sdekit.process import Knot
from sdekit.solvers.registry import register
from sdekit.solvers.tableau import Row, phi

_PAPER = "Lu et al. 2022 (DPM-Solver)"


def _exponential(s: Knot, t: Knot) -> tuple[float, float]:
    """Anchor and weight of a constant ε from s to t: α_t/α_s and −σ_t (e^h − 1) (the paper's eq. 3.7)."""
    return t.alpha / s.alpha, -t.sigma * math.expm1(t.half_log_snr - s.half_log_snr)


def _first(grid: Grid, s: Knot, t: Knot) -> Iterator[Row]:
    anchor, weight = _exponential(s, t)
    yield Row(to=t, anchor=anchor, history=(weight,))


def _second(grid: Grid, s: Knot, t: Knot) -> Iterator[Row]:
    middle = grid.between(s, t, 0.5)
    anchor, weight = _exponential(s, middle)
    yield Row(to=middle, anchor=anchor, history=(weight,), commit=False)
    # at r_1 = 1/2 the update is ε(middle) alone
    anchor, weight = _exponential(s, t)
    yield Row(to=t, anchor=anchor, history=(weight,))


def _third(grid: Grid, s: Knot, t: Knot) -> Iterator[Row]:
    h = t.half_log_snr - s.half_log_snr
    r1, r2 = 1 / 3, 2 / 3
    u1, u2 = grid.between(s, t, r1), grid.between(s, t, r2)
    anchor, weight = _exponential(s, u1)
    yield Row(to=u1, anchor=anchor, history=(weight,), commit=False)
    anchor, weight = _exponential(s, u2)
    slope = -u2.sigma * r2 / r1 * (r2 * h) * phi(2, r2 * h)
    yield Row(to=u2, anchor=anchor, history=(slope, weight - slope), commit=False)
    anchor, weight = _exponential(s, t)
    slope = -t.sigma / r2 * h * phi(2, h)
    yield Row(to=t, anchor=anchor, history=(slope, 0.0, weight - slope))


_STEPS = {1: _first, 2: _second, 3: _third}


@register("dpm-solver-2", order=2, evaluations=2, predicts="eps", reference=f"{_PAPER}, algorithm 1")
def dpm_solver_2(grid: Grid) -> Iterator[Row]:
    """Single-step DPM-Solver-2 with r_1 = 1/2: the midpoint in λ."""
    for s, t, evaluations in grid:
        yield from _STEPS[evaluations](grid, s, t)


@register("dpm-solver-3", order=3, evaluations=3, predicts="eps", reference=f"{_PAPER}, algorithm 2")
def dpm_solver_3(grid: Grid) -> Iterator[Row]:
    """Single-step DPM-Solver-3 with r_1 = 1/3, r_2 = 2/3."""
    for s, t, evaluations in grid:
        yield from _STEPS[evaluations](grid, s, t)
