"""The solver that a fit returns: one table for one process and one number of evaluations."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sdekit.door import door
from sdekit.grid import Grid, GridSpec
from sdekit.process import Process
from sdekit.solvers.registry import Solver, full_steps
from sdekit.solvers.tableau import Plan, Row
from sdekit.tuning.table import Table


def no_rows(grid: Grid) -> Iterator[Row]:
    """x_{i+1} = a_i x_i + Σ b_ij F_j, fitted to a model for one number of evaluations."""
    raise ValueError("a tuned solver is one table from t_max to the denoised end, and has no steps between other times")


@door
@dataclass(frozen=True)
class Tuned(Solver):
    """What ``tune`` returns, a value for ``solver=``: it runs with its own number of evaluations, on its own times.

    It ends with x_0: what goes on from a state of the process (``encode``, ``log_prob``, a corrector, ``final="none"``)
    refuses it.

    Attributes:
        table: the numbers.
        record: what it was fitted on, its errors, and what that cost, as ``save`` writes it.
    """

    table: Table = field(kw_only=True)
    record: Mapping[str, Any] = field(kw_only=True, repr=False, compare=False)

    @classmethod
    def make(cls, table: Table, process: Process, record: Mapping[str, Any]) -> Tuned:
        name, paper = f"tuned-{table.nfe}", "fitted to a model"
        return cls(
            name, no_rows, order=0, predicts=table.predicts, evaluations=1, reference=paper, split=full_steps(1),
            process=process, table=table, record=record,
        )  # fmt: skip

    @property
    def nfe(self) -> int:
        """Its network evaluations."""
        return self.table.nfe

    @property
    def stochastic(self) -> bool:
        return False

    def make_plan(self, process: Process, nfe: int | None, steps: int | None, grid: GridSpec, final: str) -> Plan:
        if process != self.process:
            raise ValueError(f"solver {self.name!r} was fitted for {self.process}: the model's process is {process}")
        for name, given in (("nfe", nfe), ("steps", steps)):
            if given not in (None, self.nfe):
                raise ValueError(f"{name}={given}: solver {self.name!r} was fitted for {self.nfe} evaluations alone")
        if grid != "auto":
            raise ValueError(f"grid={grid!r}: solver {self.name!r} has its own times; leave grid='auto'")
        if final not in ("auto", "reuse"):
            raise ValueError(f"final={final!r}: solver {self.name!r} ends with x_0 by its own last row; use 'auto'")
        return self.table.plan(process)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON, whole or not at all; ``sdekit.solvers.load`` reads it.

        Raises ValueError where the process is one of your own, which a file cannot hold.
        """
        from sdekit.tuning.store import write

        write(self, path)
