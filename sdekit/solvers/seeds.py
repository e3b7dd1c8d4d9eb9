"""SEEDS: exponential integrators in λ for the noise prediction, on the reverse SDE, single-step."""

from __future__ import annotations

import math
from collections.abc import Iterator

from sdekit.grid import Grid
from sdekit.process import Knot
from sdekit.solvers.registry import register
from sdekit.solvers.tableau import Draw, Row, phi

_PAPER = "Gonzalez et al. 2023 (SEEDS)"


def _step(s: Knot, t: Knot) -> tuple[float, float]:
    """Factor of x_s and weight of a constant ε: α_t/α_s and −2σ_t (e^h − 1)."""
    return t.alpha / s.alpha, -2 * t.sigma * math.expm1(t.half_log_snr - s.half_log_snr)


def _noise(knots: list[Knot]) -> tuple[Draw, ...]:
    """The SDE's noise √2 α_t ∫ e^{−λ} dw from knots[0] to knots[-1] = t, a draw for each part.

    The part from λ_a to λ_b has the variance σ_t² (e^{2(λ_t − λ_a)} − e^{2(λ_t − λ_b)}).
    """
    end = knots[-1]
    left = [math.exp(2 * (end.half_log_snr - knot.half_log_snr)) for knot in knots]
    return tuple(
        Draw(end.sigma * math.sqrt(a - b), s.half_log_snr, t.half_log_snr)
        for s, t, a, b in zip(knots, knots[1:], left, left[1:])
    )


def _first(grid: Grid, s: Knot, t: Knot) -> Iterator[Row]:
    anchor, weight = _step(s, t)
    yield Row(to=t, anchor=anchor, history=(weight,), noise=_noise([s, t]))


def _second(grid: Grid, s: Knot, t: Knot) -> Iterator[Row]:
    middle = grid.between(s, t, 0.5)
    anchor, weight = _step(s, middle)
    yield Row(to=middle, anchor=anchor, history=(weight,), noise=_noise([s, middle]), commit=False)
    anchor, weight = _step(s, t)
    yield Row(to=t, anchor=anchor, history=(weight,), noise=_noise([s, middle, t]))


def _third(grid: Grid, s: Knot, t: Knot) -> Iterator[Row]:
    h, r1, r2 = t.half_log_snr - s.half_log_snr, 1 / 3, 2 / 3
    u1, u2 = grid.between(s, t, r1), grid.between(s, t, r2)
    anchor, weight = _step(s, u1)
    yield Row(to=u1, anchor=anchor, history=(weight,), noise=_noise([s, u1]), commit=False)
    anchor, weight = _step(s, u2)
    slope = -2 * u2.sigma * r2 / r1 * (r2 * h) * phi(2, r2 * h)
    yield Row(to=u2, anchor=anchor, history=(slope, weight - slope), noise=_noise([s, u1, u2]), commit=False)
    anchor, weight = _step(s, t)
    slope = -2 * t.sigma / r2 * h * phi(2, h)
    yield Row(to=t, anchor=anchor, history=(slope, 0.0, weight - slope), noise=_noise([s, u1, u2, t]))


_STEPS = {1: _first, 2: _second, 3: _third}


def _seeds(grid: Grid) -> Iterator[Row]:
    for s, t, evaluations in grid:
        yield from _STEPS[evaluations](grid, s, t)


@register("seeds-1", order=1, predicts="eps", reference=f"{_PAPER}, algorithm 1")
def seeds_1(grid: Grid) -> Iterator[Row]:
    """x_t = (α_t/α_s) x_s − 2σ_t (e^h − 1) ε + σ_t √(e^{2h} − 1) z: exponential Euler on the reverse SDE."""
    yield from _seeds(grid)


@register("seeds-2", order=2, evaluations=2, predicts="eps", reference=f"{_PAPER}, algorithm 2")
def seeds_2(grid: Grid) -> Iterator[Row]:
    """``seeds-1`` to the middle in λ, then the whole step with ε there and the noise of both halves."""
    yield from _seeds(grid)


@register("seeds-3", order=2, evaluations=3, predicts="eps", reference=f"{_PAPER}, algorithm 3")
def seeds_3(grid: Grid) -> Iterator[Row]:
    """DPM-Solver-3's stages (r_1 = 1/3, r_2 = 2/3) on the reverse SDE, with the noise of each third."""
    yield from _seeds(grid)
