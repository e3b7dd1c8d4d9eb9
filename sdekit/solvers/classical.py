"""Classical methods on the reverse SDE and the probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

from sdekit.grid import Grid
from sdekit.names import Between
from sdekit.process import Knot
from sdekit.solvers.dpm_solver import single_step
from sdekit.solvers.registry import register
from sdekit.solvers.tableau import Draw, Row, exponential

_NOISE_LEVEL = Between(0, 10)


@register(
    "euler-maruyama",
    order=1,
    predicts="score",
    invariant=False,
    reference="Song et al. 2021, eq. 6; Karras et al. 2022, eq. 6",
)
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


@register("euler", order=1, predicts="flow", invariant=False, reference="Song et al. 2021, eq. 13")
def euler(grid: Grid) -> Iterator[Row]:
    """Euler's method in t on the probability-flow ODE: x += Δt dx/dt. (In σ/α, Euler's method is ``ddim``.)"""
    for s, t, _ in grid:
        yield Row(to=t, anchor=1.0, history=(t.t - s.t,))


Stage = Callable[[Grid, Knot, Knot, float], Knot]
Move = Callable[[Knot, Knot], tuple[float, float]]


@dataclass(frozen=True)
class Variable:
    """The variable in which a Runge–Kutta method steps.

    ``between(grid, s, t, c)`` is the knot at the fraction c of the step, ``move(s, t)`` the factor of x and the weight
    of a constant prediction from s to t.
    """

    between: Stage
    move: Move


def noise_ratio_between(grid: Grid, s: Knot, t: Knot, fraction: float) -> Knot:
    """The knot at κ_s + fraction (κ_t − κ_s), κ = σ/α."""
    h = t.half_log_snr - s.half_log_snr
    return grid.process.knot_at(s.half_log_snr - math.log1p(fraction * math.expm1(-h)))


def time_between(grid: Grid, s: Knot, t: Knot, fraction: float) -> Knot:
    """The knot at t_s + fraction (t_t − t_s)."""
    return grid.process.knot(s.t + fraction * (t.t - s.t))


def constant_eps(s: Knot, t: Knot) -> tuple[float, float]:
    """x_t = (α_t/α_s) x_s + α_t (κ_t − κ_s) ε, κ = σ/α: Euler's step in κ, which is DDIM."""
    anchor, (weight,) = exponential("eps", s, t, 1)
    return anchor, weight


in_noise_ratio = Variable(noise_ratio_between, constant_eps)
in_time = Variable(time_between, lambda s, t: (1.0, t.t - s.t))

_STAGES: dict[int, list[list[float]]] = {
    1: [[1.0]],
    2: [[1.0], [1 / 2, 1 / 2]],
    3: [[1 / 2], [-1.0, 2.0], [1 / 6, 2 / 3, 1 / 6]],
    4: [[1 / 2], [0.0, 1 / 2], [0.0, 0.0, 1.0], [1 / 6, 1 / 3, 1 / 3, 1 / 6]],
}
"""Euler, Heun, Kutta and the classical method: weights of the predictions, oldest first, of each stage and the step."""


def runge_kutta(grid: Grid, s: Knot, t: Knot, stages: int, variable: Variable) -> Iterator[Row]:
    """One step of the Runge–Kutta method with 1 to 4 ``stages``, of as high an order, in ``variable``."""
    for weights in _STAGES[stages]:
        fraction, last = sum(weights), len(weights) == stages
        end = t if last or fraction == 1 else variable.between(grid, s, t, fraction)
        anchor, step = variable.move(s, end)
        history = tuple(step * weight / fraction for weight in reversed(weights))
        yield Row(to=end, anchor=anchor, history=history, commit=last)


@register(
    "heun", order=2, evaluations=2, predicts="eps", reference="Karras et al. 2022, algorithm 1 with σ(t) = t, s = 1"
)
def heun(grid: Grid) -> Iterator[Row]:
    """Heun's method in the noise-to-signal ratio: d(x/α)/d(σ/α) = ε, averaged over both ends of a step.

    For α = 1 this is the paper's deterministic sampler in σ. A rest of one evaluation is an Euler (DDIM) step.
    """
    for s, t, evaluations in grid:
        yield from runge_kutta(grid, s, t, evaluations, in_noise_ratio)


@register(
    "dpm-2",
    order=2,
    evaluations=2,
    predicts="eps",
    reference="Karras et al. 2022, algorithm 2 without churn; k-diffusion",
)
def dpm_2(grid: Grid) -> Iterator[Row]:
    """The midpoint method in σ/α with the middle at √(σσ')/√(αα'): x/α += Δ(σ/α) ε there.

    That middle is the midpoint in λ, so the table is the one of ``dpm-solver-2``.
    """
    for s, t, evaluations in grid:
        yield from single_step("eps", grid, s, t, evaluations)


@register(
    "rk4", order=4, evaluations=4, predicts="flow", invariant=False, reference="Kutta 1901; on Song et al. 2021, eq. 13"
)
def rk4(grid: Grid) -> Iterator[Row]:
    """The classical Runge–Kutta method in t on the probability-flow ODE (in σ/α: ``deis-rho-rk``).

    A rest of 1, 2 or 3 evaluations is a step of Euler's, Heun's or Kutta's method.
    """
    for s, t, evaluations in grid:
        yield from runge_kutta(grid, s, t, evaluations, in_time)
