"""DPM-Solver++ for the reverse SDE: single-step with two evaluations, and multistep of three."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from sdekit.grid import Grid
from sdekit.names import Between, OneOf
from sdekit.process import Knot
from sdekit.solvers.multistep import BELOW, FEW, lowered, order_at
from sdekit.solvers.registry import register
from sdekit.solvers.tableau import Draw, Row

_PAPER = "Lu et al. 2022 (DPM-Solver++)"


def split_draw(coefficient: float, knots: list[Knot]) -> tuple[Draw, ...]:
    """c z over [knots[0], knots[-1]] as the sum of its parts between the knots, so that no two intervals overlap.

    >>> from sdekit.process import VP
    >>> parts = split_draw(2.0, [VP().knot(t) for t in (0.9, 0.5, 0.3)])
    >>> round(sum(part.coefficient**2 for part in parts), 12)
    4.0
    """
    first = knots[0].half_log_snr
    clock = [math.expm1(2 * (knot.half_log_snr - first)) for knot in knots]
    return tuple(
        Draw(coefficient * math.sqrt((b - a) / clock[-1]), s.half_log_snr, t.half_log_snr)
        for s, t, a, b in zip(knots, knots[1:], clock, clock[1:])
    )


def _ancestral(s: Knot, t: Knot, eta: float) -> tuple[float, float, float]:
    """Factor of x_s, weight of a constant x_0 and standard deviation: down to σ_d, then up to σ_t by noise."""
    h = t.half_log_snr - s.half_log_snr
    lost = -math.expm1(-2 * h)
    down = h - 0.5 * math.log1p(-(eta**2) * lost)  # λ at σ_d = √(σ_t² − η² σ_t² (1 − σ_t²/σ_s²)), less λ_s, for α = 1
    return t.alpha / s.alpha * math.exp(-down), -t.alpha * math.expm1(-down), eta * t.sigma * math.sqrt(lost)


@register("dpmpp-sde", order=2, evaluations=2, predicts="x0", reference=f"{_PAPER}, algorithm 1 on the SDE of eq. 18")
def dpmpp_sde(
    grid: Grid, *, eta: Annotated[float, Between(0, 1)] = 1.0, r: Annotated[float, Between(0.1, 1)] = 0.5
) -> Iterator[Row]:
    """Single-step DPM-Solver++ for the SDE: a step to λ_s + r h, then one with (1 − 1/(2r)) D_s + D_r/(2r).

    Each is x_t = (α_t/α_s) e^{−H} x_s + α_t (1 − e^{−H}) D + η σ_t √(1 − e^{−2h}) z, an ancestral step as in
    k-diffusion's sampler of this name, with H = h − ½ log(1 − η² (1 − e^{−2h})), which is 2h for η = 1. z of the first
    step is a part of z of the second: drawn apart they would leave an error of first order. A rest of one evaluation
    is a first-order step.
    """
    for s, t, evaluations in grid:
        middle = grid.between(s, t, r) if r < 1 else t
        knots = [s, middle, t] if r < 1 else [s, t]
        if evaluations == 2:
            anchor, weight, std = _ancestral(s, middle, eta)
            noise = (Draw(std, s.half_log_snr, middle.half_log_snr),) if eta else ()
            yield Row(to=middle, anchor=anchor, history=(weight,), noise=noise, commit=False)
        anchor, weight, std = _ancestral(s, t, eta)
        new = weight / (2 * r)
        yield Row(
            to=t,
            anchor=anchor,
            history=(new, weight - new) if evaluations == 2 else (weight,),
            noise=split_draw(std, knots if evaluations == 2 else [s, t]) if eta else (),
        )


def _slopes(h: list[float], half: float) -> tuple[list[float], list[float]]:
    """Weights in the last predictions, newest first, of h D' and of D'' h²·``half``; h lists the steps, newest first.

    The divided differences as in k-diffusion's sampler: exact for parabolas when ``half`` is 1.
    """
    if len(h) == 2:
        r = h[1] / h[0]
        return [1 / r, -1 / r], [0.0, 0.0]
    r0, r1 = h[1] / h[0], h[2] / h[0]
    newer, older = [1 / r0, -1 / r0, 0.0], [0.0, 1 / r1, -1 / r1]
    second = [2 * half * (a - b) / (r0 + r1) for a, b in zip(newer, older)]
    return [a + (a - b) * r0 / (r0 + r1) for a, b in zip(newer, older)], second


def _vary(eta: float, curvature: str, lower_order_below: float) -> Mapping[str, Any]:
    return {"order": lowered(3 if curvature == "exact" and not eta else 2, lower_order_below)}


@register("dpmpp-3m-sde", order=2, predicts="x0", vary=_vary, reference=f"{_PAPER}, appendix D, for the SDE of eq. 18")
def dpmpp_3m_sde(
    grid: Grid,
    *,
    eta: Annotated[float, Between(0, 2)] = 1.0,
    curvature: Annotated[str, OneOf("published", "exact")] = "published",
    lower_order_below: Annotated[float, BELOW] = FEW,
) -> Iterator[Row]:
    """x_t = (σ_t/σ_s) e^{−ηh} x_s + α_t [(1 − e^{−H}) D + ψ_2 hD' − ψ_3 h²D''] + σ_t √(1 − e^{−2ηh}) z, H = (1 + η) h.

    ψ_2 = 1 − (1 − e^{−H})/H, ψ_3 = ψ_2/H − 1/2 (negative), D' and D'' by differences over the last three predictions.
    "published" (k-diffusion's sampler of this name) weighs D'' by half: that is what papers report. "exact" integrates
    the parabola; it is of order 3 where η = 0, but with noise of order 2 like the other, since the differences contain
    the noise of past steps.
    """
    steps: list[float] = []
    for i, (s, t, _) in enumerate(grid):
        h = t.half_log_snr - s.half_log_snr
        full, steps = (1 + eta) * h, [h, *steps][: order_at(grid, i, 3, lower_order_below)]
        psi_2 = 1 + math.expm1(-full) / full
        weights = [-math.expm1(-full)]
        if len(steps) > 1:
            first, second = _slopes(steps, {"published": 0.5, "exact": 1.0}[curvature])
            weights = [psi_2 * a - (psi_2 / full - 0.5) * b for a, b in zip(first, second)]
            weights[0] -= math.expm1(-full)
        std = t.sigma * math.sqrt(-math.expm1(-2 * eta * h))
        yield Row(
            to=t,
            anchor=t.sigma / s.sigma * math.exp(-eta * h),
            history=tuple(t.alpha * weight for weight in weights),
            noise=(Draw(std, s.half_log_snr, t.half_log_snr),) if eta else (),
        )
