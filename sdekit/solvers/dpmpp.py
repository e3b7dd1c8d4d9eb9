"""DPM-Solver++: exponential integrators in λ for the data prediction, multistep."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Annotated

from sdekit.grid import Grid
from sdekit.names import Between, OneOf
from sdekit.solvers.dpm_solver import all_single_steps, published_multistep, single_step
from sdekit.solvers.multistep import BELOW, FEW, START, lowered, multistep, order_at, start_split
from sdekit.solvers.registry import register
from sdekit.solvers.tableau import Draw, Row

_PAPER = "Lu et al. 2022 (DPM-Solver++)"


@register("dpmpp-2m", order=2, predicts="x0", reference=f"{_PAPER}, algorithm 2")
def dpmpp_2m(grid: Grid, *, lower_order_below: Annotated[float, BELOW] = FEW) -> Iterator[Row]:
    """x_t = (σ_t/σ_s) x_s − α_t (e^{−h} − 1) D, D = D_s + (D_s − D_{s−1})/(2r), r the last step over this one."""
    previous = 0.0
    for i, (s, t, _) in enumerate(grid):
        h, previous = t.half_log_snr - s.half_log_snr, previous if order_at(grid, i, 2, lower_order_below) == 2 else 0.0
        weight = -t.alpha * math.expm1(-h)
        slope = weight * h / (2 * previous) if previous else 0.0
        yield Row(to=t, anchor=t.sigma / s.sigma, history=(weight + slope, -slope) if previous else (weight,))
        previous = h


@register("dpmpp-2m-sde", order=2, predicts="x0", reference=f"{_PAPER}, eq. 19 (SDE-DPM-Solver++(2M))")
def dpmpp_2m_sde(
    grid: Grid,
    *,
    eta: Annotated[float, Between(0, 2)] = 1.0,
    correction: Annotated[str, OneOf("midpoint", "heun")] = "midpoint",
    lower_order_below: Annotated[float, BELOW] = FEW,
) -> Iterator[Row]:
    """x_t = (σ_t/σ_s) e^{−ηh} x_s + α_t (1 − e^{−(1+η)h}) D + σ_t √(1 − e^{−2ηh}) z, D as in ``dpmpp-2m``.

    η = 1 is the paper's; as in k-diffusion η scales g², so that it is the square of ``reverse``'s noise level.
    "midpoint" (the paper) weighs the difference D_s − D_{s−1} by half the step, "heun" by
    (1 + (e^{−(1+η)h} − 1)/((1+η)h)).
    """
    previous = 0.0
    for i, (s, t, _) in enumerate(grid):
        h, previous = t.half_log_snr - s.half_log_snr, previous if order_at(grid, i, 2, lower_order_below) == 2 else 0.0
        full = (1 + eta) * h
        weight = -t.alpha * math.expm1(-full)
        per_step = {"midpoint": weight / 2, "heun": t.alpha + t.alpha * math.expm1(-full) / full}[correction]
        slope = per_step * h / previous if previous else 0.0
        std = t.sigma * math.sqrt(-math.expm1(-2 * eta * h))
        yield Row(
            to=t,
            anchor=t.sigma / s.sigma * math.exp(-eta * h),
            history=(weight + slope, -slope) if previous else (weight,),
            noise=(Draw(std, s.half_log_snr, t.half_log_snr),) if eta else (),
        )
        previous = h


@register("dpmpp-2s", order=2, evaluations=2, predicts="x0", reference=f"{_PAPER}, algorithm 1")
def dpmpp_2s(grid: Grid) -> Iterator[Row]:
    """Single-step DPM-Solver++(2S), r_1 = 1/2: x_t = (σ_t/σ_s) x_s − α_t (e^{−h} − 1) D at the midpoint in λ."""
    yield from all_single_steps("x0", grid)


@register("dpmpp-3s", order=3, evaluations=3, predicts="x0", reference=f"{_PAPER}, released code (single-step)")
def dpmpp_3s(grid: Grid) -> Iterator[Row]:
    """Single-step DPM-Solver++(3S), r_1 = 1/3, r_2 = 2/3: ``dpm-solver-3`` for the data prediction."""
    yield from all_single_steps("x0", grid)


@register("dpmpp-3m", order=2, predicts="x0", reference=f"{_PAPER}, released code (multistep)")
def dpmpp_3m(grid: Grid, *, lower_order_below: Annotated[float, BELOW] = FEW) -> Iterator[Row]:
    """Multistep DPM-Solver++(3M) as it is shipped everywhere: a quadratic in λ whose second coefficient counts half.

    Order 2, and not 3, because of that half; ``dpmpp-3m-corrected`` counts it whole.
    """
    yield from multistep(grid, 3, published_multistep("x0"), partial(single_step, "x0"), lower_order_below)


@register(
    "dpmpp-3m-corrected",
    order=3,
    predicts="x0",
    vary=lambda start, lower_order_below: {"order": lowered(3, lower_order_below), "split": start_split(3, start)},
    reference=f"{_PAPER}, released code, with the factor 2 that its multistep D_2 lacks",
)
def dpmpp_3m_corrected(
    grid: Grid, *, start: Annotated[str, START] = "lower-order", lower_order_below: Annotated[float, BELOW] = FEW
) -> Iterator[Row]:
    """``dpmpp-3m`` with the quadratic integrated exactly: order 3, as the paper states."""
    yield from multistep(
        grid, 3, published_multistep("x0", quadratic=1.0), partial(single_step, "x0"), lower_order_below
    )
