r"""RePaint: replacement, with every step taken several times.

    x_t by the solver's step from x_s,   x_t[known] ← α y + σ z,
    then back: x_s ← (α_s/α_t) x_t + √(σ_s² − (α_s σ_t/α_t)²) z

(Lugmayr et al. 2022, algorithm 1.) Going back and forth lets the unknown elements take note of the known ones. As
steps and repeats share the evaluations, more repeats are fewer steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from sdekit.grid import GridSpec
from sdekit.inverse.methods.replacement import Replacement
from sdekit.inverse.registry import Posterior, Run, register
from sdekit.inverse.steps import one_step
from sdekit.names import OneOf
from sdekit.process import Knot, Process
from sdekit.solvers import Draw, Plan, Row, Solver
from sdekit.solvers.registry import check_count


@dataclass(frozen=True, eq=False)
class RePaint(Replacement):
    """A corrector of ``sample`` that replaces the known elements and takes each step ``resamplings`` times.

    Args:
        measurement, measured: as of ``Replacement``.
        resamplings: U of the paper; evaluations that do not divide go to the first steps.

    Raises ValueError for another operator than a ``Mask``, and a solver whose steps are not single ones with noise.
    """

    resamplings: int = 10

    def plan(
        self, solver: Solver, process: Process, nfe: int | None, steps: int | None, grid: GridSpec, final: str
    ) -> tuple[Plan, list[int]]:
        """The solver's table for fewer steps, each repeated; nothing is repeated where nothing is known."""
        if nfe is None or not self.measurement.y.numel():
            return super().plan(solver, process, nfe, steps, grid, final)
        check_count("nfe", nfe, 2, "a step and the denoising at the end")
        steps = max(1, (nfe - 1) // self.resamplings)
        once = solver.plan(process, steps=steps, grid=grid, final="denoise")
        counts = [(nfe - 1) // steps + (i < (nfe - 1) % steps) for i in range(steps)]
        rows = list(one_step("repaint", once, noisy=True))
        return replace(once, rows=(*_repeated(rows[:-1], counts), rows[-1][1])), []


def _repeated(rows: Sequence[tuple[Knot, Row]], counts: Sequence[int]) -> Iterator[Row]:
    """Each row as often as its count says, with the way back between. Every draw is named by a part of the λ-range."""
    low, high = rows[0][0].half_log_snr, rows[-1][1].to.half_log_snr
    total = 2 * sum(count - 1 for count in counts)
    edges = iter([low + (high - low) * i / max(1, total) for i in range(total + 1)])
    begin = next(edges)
    for (s, row), count in zip(rows, counts):
        yield row
        for _ in range(count - 1):
            middle, end = next(edges), next(edges)
            lost = s.sigma * math.sqrt(-math.expm1(2 * (s.half_log_snr - row.to.half_log_snr)))
            yield Row(to=s, anchor=s.alpha / row.to.alpha, noise=(Draw(lost, begin, middle),), evaluate=False)
            yield replace(row, noise=(replace(row.noise[0], start=middle, end=end),))
            begin = end


@register("repaint", reference="Lugmayr et al. 2022 (RePaint), algorithm 1", operators="mask")
def repaint(run: Run, *, resamplings: Annotated[int, OneOf(*range(1, 101))] = 10) -> Posterior:
    """Replacement with each step taken U times, back by the forward process between."""
    return run.sample(run.model, corrector=RePaint(run.measurement, run.measured, resamplings))
