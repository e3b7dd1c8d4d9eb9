"""Karras et al.'s stochastic sampler: raise the noise a little, then a Heun step of the probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

from sdekit.grid import Grid
from sdekit.names import Between
from sdekit.process import Knot
from sdekit.solvers.registry import register
from sdekit.solvers.tableau import Draw, Row


def noise_ratio(knot: Knot) -> float:
    """κ = σ/α, the σ of Karras et al.'s coordinates."""
    return math.exp(-knot.half_log_snr)


def heun_step(s: Knot, t: Knot, evaluations: int, raised: Knot | None = None, z: Draw | None = None) -> Iterator[Row]:
    """Heun's method in κ from s to t (Euler's with one evaluation), or from ``raised``, to which noise ``z`` leads."""
    start, noise = raised or s, (z,) if z else ()
    if z:
        yield Row(to=start, anchor=start.alpha / s.alpha, noise=noise, evaluate=False, commit=False)
    carried = tuple(Draw(t.alpha / start.alpha * c.coefficient, c.start, c.end) for c in noise)
    scale, step = t.alpha / s.alpha, t.alpha * (noise_ratio(t) - noise_ratio(start))
    yield Row(to=t, anchor=scale, history=(step,), noise=carried, commit=evaluations == 1)
    if evaluations == 2:
        yield Row(to=t, anchor=scale, history=(step / 2, step / 2), noise=carried)


@register(
    "edm",
    order=2,
    evaluations=2,
    predicts="eps",
    pathwise=False,
    reference="Karras et al. 2022, algorithm 2 with σ(t) = t, s = 1",
)
def edm(
    grid: Grid,
    *,
    churn: Annotated[float, Between(0, 1000)] = 10.0,
    s_min: Annotated[float, Between(0, math.inf)] = 0.0,
    s_max: Annotated[float, Between(0, math.inf)] = math.inf,
    s_noise: Annotated[float, Between(0, 2)] = 1.0,
) -> Iterator[Row]:
    """Noise up from κ = σ/α to κ(1 + γ), then a Heun step to the next knot; churn = 0 is ``heun``.

    γ = min(churn/steps, √2 − 1) where s_min ≤ κ ≤ s_max, else 0; s_noise is the standard deviation of the
    added noise (other than 1 it biases the variance). κ never rises above the grid's first, so that the network is not
    asked outside its range: with s_max = ∞ the first step has no churn. The order shows once churn/steps is small.
    The noise of a step is named by that step's λ-interval, but a short step gets as much of it as a long one: path by
    path runs converge where neighbouring steps become equal, with order 1, and on uneven steps not at all. Which steps
    a window (s_min, s_max) takes depends on the grid, so that with a window that order is 1/2. ImageNet-64 in the
    paper: churn 40, s_min 0.05, s_max 50, s_noise 1.003.
    """
    for s, t, evaluations in grid:
        kappa = noise_ratio(s)
        gamma = min(churn / len(grid.evaluations), math.sqrt(2) - 1) if s_min <= kappa <= s_max else 0.0
        rise = min(math.log1p(gamma), s.half_log_snr - grid.knots[0].half_log_snr)
        if not rise:
            yield from heun_step(s, t, evaluations)
            continue
        raised = grid.process.knot_at(s.half_log_snr - rise)
        std = s_noise * raised.alpha * math.sqrt(noise_ratio(raised) ** 2 - kappa**2)
        yield from heun_step(s, t, evaluations, raised, Draw(std, s.half_log_snr, t.half_log_snr))
