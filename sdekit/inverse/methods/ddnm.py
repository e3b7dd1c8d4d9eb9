r"""DDNM: the predicted x_0 with its measured part replaced.

    x̂_0 ← x̂_0 + λ_t A⁺ (y − A x̂_0)

(Wang, Yu & Zhang 2023; λ = 1 for measurements without noise, algorithm 1.) DDNM+ for noise σ_y, in its form with
numbers: in a step x_t = b x̂_0 + … + c z the noise of y enters with b λ σ_y, so that λ = min(1, c/(b σ_y)), and what is
drawn has c² − (b λ σ_y)² left, in every direction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from sdekit.grid import Grid
from sdekit.inverse.conditioned import Point, Spectral, noise_std
from sdekit.inverse.measurement import Measurement
from sdekit.inverse.registry import Posterior, Run, register
from sdekit.inverse.steps import one_step
from sdekit.prediction import convert
from sdekit.process import Knot, Process
from sdekit.sampling import Model
from sdekit.solvers import Plan, Row, Solver


class DDNM(Spectral):
    """``model`` with x_0 + λ A⁺(y − A x_0) for x_0. No gradients.

    Args:
        model: any model.
        measurement: of a linear operator, with Gaussian noise, which is not asked for its size.
        shares: λ at each time of the run; 1 where it says nothing.

    Raises ValueError for another measurement.
    """

    differentiates = False

    def __init__(self, model: Model, measurement: Measurement, shares: Mapping[float, float] | None = None) -> None:
        super().__init__(model, measurement)
        self.shares: Mapping[float, float] = {} if shares is None else shares

    def change(self, at: Point) -> Tensor:
        share = 1.0 if isinstance(at.t, Tensor) else self.shares.get(at.t, 1.0)
        return share * self.spectrum.gain(self.residual(at), 1.0, 0.0, at.x0.shape[1:])


def shares(plan: Plan, process: Process, std: float) -> dict[float, float]:
    """λ at each time of a plan of single steps: min(1, c/(b σ_y)), b of x_0 and c of the noise; 1 at the end."""
    found: dict[float, float] = {}
    for s, row in one_step("ddnm", plan):
        found[s.t] = _share(row, process, s, plan.predicts, std) if row.to.sigma > 0 else 1.0
    return found


def _share(row: Row, process: Process, s: Knot, predicts: str, std: float) -> float:
    b = _factor(row, process, s, predicts)
    c = math.hypot(*(draw.coefficient for draw in row.noise))  # pyright: ignore[reportArgumentType]
    return 1.0 if b * std <= c else c / (b * std)


def _factor(row: Row, process: Process, s: Knot, predicts: str) -> float:
    """b: how much of x_0 is in what the row makes, its prediction being linear in x_0."""
    return abs(float(row.history[0]) * float(convert("x0", predicts, process, s.t)[1]))  # pyright: ignore


def quieter(solver: Solver, process: Process, std: float) -> Solver:
    """The solver with c² − (b λ σ_y)² for the variance c² of its noise."""

    def rows(grid: Grid, **options: Any) -> Iterator[Row]:
        here = grid.knots[0]
        for row in solver.rows(grid, **options):
            spent = (
                _factor(row, process, here, solver.predicts) * std * _share(row, process, here, solver.predicts, std)
            )
            c = math.hypot(*(draw.coefficient for draw in row.noise))  # pyright: ignore[reportArgumentType]
            left = math.sqrt(max(0.0, 1 - (spent / c) ** 2)) if c else 0.0
            noise = tuple(replace(draw, coefficient=left * draw.coefficient) for draw in row.noise)
            yield replace(row, noise=noise)
            here = row.to

    return replace(solver, rows=rows, name=f"{solver.name}, quieter", vary=None)


@register("ddnm", reference="Wang, Yu & Zhang 2023 (DDNM), algorithm 1, and DDNM+ for noise")
def ddnm(run: Run) -> Posterior:
    """x̂_0 + λ A⁺ (y − A x̂_0), with λ and the noise of the steps by σ_y."""
    plain, process = DDNM(run.model, run.measurement), run.model.process
    std = noise_std(run.measurement)
    if std == 0 or not len(plain.spectrum.s):
        return run.sample(plain)
    return run.sample(
        DDNM(run.model, run.measurement, shares(run.plan, process, std)), quieter(run.solver, process, std)
    )
