r"""Replacement: after each step the known elements are put where the forward process would have them.

    x_t[known] ← α y + σ z

(Song et al. 2021, appendix I.2; Sohl-Dickstein et al. 2015.) The measurement's noise is not asked for, as in the paper:
y is taken as the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sdekit.correction import Correct, Score
from sdekit.grid import GridSpec
from sdekit.inverse.conditioned import check_linear
from sdekit.inverse.measurement import Measurement
from sdekit.inverse.operators import Mask
from sdekit.inverse.registry import Posterior, Run, register
from sdekit.noise import key, normal
from sdekit.process import Knot, Process
from sdekit.solvers import Plan, Solver

_STREAM = 0x4EB1


@dataclass(frozen=True, eq=False)
class Replacement:
    """A corrector of ``sample`` that replaces the known elements after each step of any solver.

    Args:
        measurement: of a ``Mask``.
        measured: a measurement for each sample [n, *measured], by its number in the run.

    Raises ValueError for another operator.
    """

    measurement: Measurement
    measured: Tensor | None = None

    def __post_init__(self) -> None:
        check_linear("replacement", self.measurement)
        if not isinstance(self.measurement.operator, Mask):
            raise ValueError(f"operator: replacement takes a Mask, not {type(self.measurement.operator).__name__}")

    def plan(
        self, solver: Solver, process: Process, nfe: int | None, steps: int | None, grid: GridSpec, final: str
    ) -> tuple[Plan, list[int]]:
        """The solver's own table."""
        final = "denoise" if final == "auto" else final
        return solver.plan(process, nfe=nfe, steps=steps, grid=grid, final=final), []

    def correct(self, counts: Sequence[int], score: Score, seed: int, samples: Tensor) -> Correct:
        """What ``march`` calls after each step of one batch; no host read."""
        mask = self.measurement.operator
        assert isinstance(mask, Mask)
        places, step = mask.places.to(samples.device), iter(range(1 << 30))

        def correct(before: Knot, here: Knot, x: Tensor) -> Tensor:
            own = None if self.measured is None else self.measured.to(x.device)[samples]
            y = self.measurement.rows(x, own)
            z = normal(key(seed, _STREAM), next(step), samples, y.shape[1:], x.dtype)
            return x.flatten(1).index_copy(1, places, here.alpha * y + here.sigma * z).reshape(x.shape)

        return correct


@register("replacement", reference="Song et al. 2021, appendix I.2", operators="mask")
def replacement(run: Run) -> Posterior:
    """After each step x[known] ← α y + σ z."""
    return run.sample(run.model, corrector=Replacement(run.measurement, run.measured))
