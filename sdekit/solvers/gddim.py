"""gDDIM: DDIM's reasoning for any amount of noise in the reverse SDE."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

from sdekit.grid import Grid
from sdekit.names import Between
from sdekit.solvers.registry import register
from sdekit.solvers.tableau import Draw, Row


@register("gddim", order=1, predicts="eps", reference="Zhang, Tao & Chen 2023 (gDDIM), proposition 6")
def gddim(grid: Grid, *, noise_level: Annotated[float, Between(0, 2)] = 0.5) -> Iterator[Row]:
    """The exact solution of the reverse SDE of that noise level for one data point, at the data point predicted.

    x_t = (α_t/α_s) (x_s − σ_s (1 − e^{−(1+η²)h}) ε) + σ_t √(1 − e^{−2η²h}) z, η = noise_level: the case of a scalar
    covariance. η = 0 is ``ddim``, η = 1 ``ddpm``; between them the noise differs from that of DDIM's η.
    """
    for s, t, _ in grid:
        h, rate = t.half_log_snr - s.half_log_snr, noise_level**2
        scale, std = t.alpha / s.alpha, t.sigma * math.sqrt(-math.expm1(-2 * rate * h))
        yield Row(
            to=t,
            anchor=scale,
            history=(scale * s.sigma * math.expm1(-(1 + rate) * h),),
            noise=(Draw(std, s.half_log_snr, t.half_log_snr),) if noise_level else (),
        )
