"""Classical methods on the reverse SDE and the probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

from sdekit.grid import Grid
from sdekit.names import Between
from sdekit.process import Knot
from sdekit.solvers.registry import register
from sdekit.solvers.tableau import Draw, Row

_NOISE_LEVEL = Between(0, 10)


@register("euler-maruyama", order=1, predicts="score", reference="Song et al. 2021, eq. 6; Karras et al. 2022, eq. 6")
def euler_maruyama(grid: Grid, *, noise_level: Annotated[float, _NOISE_LEVEL] = 1.0) -> Iterator[Row]:
    """Euler–Maruyama in t on the reverse SDE: x += (f x − ½(1 + η²) g² s) Δt + η g √|Δt| z, η = noise_level."""
    for s, t, _ in grid:
        step, g = t.t - s.t, grid.process.diffusion(s.t)
        noise = Draw(noise_level * g * math.sqrt(-step), s.half_log_snr, t.half_log_snr)
        yield Row(
            to=t,
            anchor=1 + grid.process.drift_rate(s.t) * step,
            history=(-0.5 * (1 + noise_level**2) * g**2 * step,),
            noise=(noise,) if noise_level else (),
        )


@register("euler", order=1, predicts="flow", reference="Song et al. 2021, eq. 13")
def euler(grid: Grid) -> Iterator[Row]:
    """Euler's method in t on the probability-flow ODE: x += Δt dx/dt. (In σ/α, Euler's method is ``ddim``.)"""
    for s, t, _ in grid:
        yield Row(to=t, anchor=1.0, history=(t.t - s.t,))


def _noise_ratio(knot: Knot) -> float:
    return math.exp(-knot.half_log_snr)


@register(
    "heun", order=2, evaluations=2, predicts="eps", reference="Karras et al. 2022, algorithm 1 with σ(t) = t, s = 1"
)
def heun(grid: Grid) -> Iterator[Row]:
    """Heun's method in the noise-to-signal ratio: d(x/α)/d(σ/α) = ε, averaged over both ends of a step.

    For α = 1 this is the paper's deterministic sampler in σ. A rest of one evaluation is an Euler (DDIM) step.
    """
    for s, t, evaluations in grid:
        scale, step = t.alpha / s.alpha, t.alpha * (_noise_ratio(t) - _noise_ratio(s))
        yield Row(to=t, anchor=scale, history=(step,), commit=evaluations == 1)
        if evaluations == 2:
            yield Row(to=t, anchor=scale, history=(step / 2, step / 2))
