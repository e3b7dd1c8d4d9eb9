"""DPM-Solver++: exponential integrators in λ for the data prediction, multistep."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

from sdekit.grid import Grid
from sdekit.names import Between, OneOf
from sdekit.solvers.registry import register
from sdekit.solvers.tableau import Draw, Row

_PAPER = "Lu et al. 2022 (DPM-Solver++)"


@register("dpmpp-2m", order=2, predicts="x0", reference=f"{_PAPER}, algorithm 2")
def dpmpp_2m(grid: Grid) -> Iterator[Row]:
    """x_t = (σ_t/σ_s) x_s − α_t (e^{−h} − 1) D, D = D_s + (D_s − D_{s−1})/(2r), r the last step over this one."""
    previous = 0.0
    for s, t, _ in grid:
        h = t.half_log_snr - s.half_log_snr
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
) -> Iterator[Row]:
    """x_t = (σ_t/σ_s) e^{−ηh} x_s + α_t (1 − e^{−(1+η)h}) D + σ_t √(1 − e^{−2ηh}) z, D as in ``dpmpp-2m``.

    η = 1 is the paper's; as in k-diffusion η scales g², so that it is the square of ``reverse``'s noise level.
    "midpoint" (the paper) weighs the difference D_s − D_{s−1} by half the step, "heun" by
    (1 + (e^{−(1+η)h} − 1)/((1+η)h)).
    """
    previous = 0.0
    for s, t, _ in grid:
        h = t.half_log_snr - s.half_log_snr
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
