r"""A deterministic run as numbers alone: where each evaluation is made, and how the state before the next one is put
together.

With F_j what the network predicts in its j-th evaluation, at the state x_j and told the time t_j,

    x_{i+1} = a_i x_i + Σ_{j ≤ i} b_ij F_j,        i = 0 … N − 1,        x_N the sample.

Every explicit deterministic solver of N evaluations is such a table, multi-stage and corrected ones too: their states
are linear in x_0 and in the predictions so far (the non-stationary solvers of Shaul et al. 2024, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sdekit.door import door
from sdekit.prediction import convert
from sdekit.process import Process
from sdekit.sampling import Model
from sdekit.solvers.tableau import DATA, Plan, Row


@door
@dataclass(frozen=True)
class Table:
    """N evaluations and the N rows between them; ``history[i]`` holds b_i0 … b_ii, oldest first.

    Attributes:
        predicts: the kind of prediction that F is.
        times: what the network is told at each evaluation, from t_max, decreasing.
        anchor: a_i.
        history: b_ij.
    """

    predicts: str
    times: tuple[float, ...]
    anchor: tuple[float, ...]
    history: tuple[tuple[float, ...], ...]

    @property
    def nfe(self) -> int:
        return len(self.times)

    def plan(self, process: Process) -> Plan:
        """The table as a plan, which ends with x_0.

        >>> from sdekit.process import VP
        >>> Table("x0", (1.0,), (0.0,), ((1.0,),)).plan(VP()).nfe
        1
        """
        knots = [process.knot(t) for t in self.times]
        rows = [
            Row(to=to, anchor=anchor, history=weights[::-1])
            for to, anchor, weights in zip([*knots[1:], DATA], self.anchor, self.history)
        ]
        return Plan(knots[0], tuple(rows), self.predicts)

    @classmethod
    def of(cls, plan: Plan, process: Process) -> Table:
        """The table, in predictions of x_0, of a plan that ends with x_0, whatever its rows are.

        In x_0 no weight is large where ε is nearly x, and a fit began there gets further.

        Raises ValueError for a plan that draws noise, is fitted to the data's shape, evaluates twice at one time or
        back towards noise, or forgets where it began and remembers it later.

        >>> from sdekit.process import VP
        >>> from sdekit.solvers import get
        >>> table = Table.of(get("unipc-2").plan(VP(), nfe=4), VP())
        >>> table.nfe, table.predicts, len(table.history[3])
        (4, 'x0', 4)
        """
        if plan.intervals or plan.tensors or any(row.linear or row.shift for row in plan.rows):
            raise ValueError("only a deterministic plan of numbers is a table")
        times, states = _states(plan, process)
        if any(not later < earlier for earlier, later in zip(times, times[1:])):
            raise ValueError(f"evaluations at t={times}: the times of a table must fall")
        anchors, history = list[float](), list[tuple[float, ...]]()
        for i, (before, after) in enumerate(zip(states, states[1:])):
            if before[0] == 0 != after[0]:
                raise ValueError(f"row {i} brings back a start that the row before it dropped")
            anchors.append(float(after[0] / before[0]) if before[0] else 0.0)
            history.append(tuple((after[1:] - anchors[-1] * before[1:])[: i + 1].tolist()))
        return cls("x0", tuple(times), tuple(anchors), tuple(history))


def _states(plan: Plan, process: Process) -> tuple[list[float], list[np.ndarray]]:
    """The times of the evaluations; x at each and at the end, as factors of (x at t_max, D_0 … D_{N−1}), D = x0."""
    unit = np.eye(1 + plan.nfe)
    x = anchor = unit[0]
    times, states, made, here = list[float](), list[np.ndarray](), list[np.ndarray](), plan.start
    for row in plan.rows:
        if row.evaluate:
            c_x, c_D = convert("x0", plan.predicts, process, here.t)  # noqa: N806
            times.append(here.t)
            states.append(x)
            made.append(c_x * x + c_D * unit[len(times)])
        x, here = np.asarray(row.anchor) * anchor, row.to
        for weight, F in zip(row.history, reversed(made)):  # noqa: N806
            x = x + weight * F
        anchor = x if row.commit else anchor
    return times, [*states, x]


@dataclass(frozen=True)
class Path:
    """A run: the states before each evaluation, the predictions there, and the end, each [n, *event]."""

    states: tuple[Tensor, ...]
    predictions: tuple[Tensor, ...]
    end: Tensor


def follow(model: Model, table: Table, x: Tensor, conditions: dict[str, object], before: Path | None = None) -> Path:
    """Run the table from x, or on from ``before``, whose predictions stand for the first ones.

    >>> from sdekit import ScoreModel, VP
    >>> model = ScoreModel(lambda x, t: x, VP(), predicts="x0")
    >>> table = Table("x0", (1.0, 0.5), (0.5, 0.0), ((0.25,), (0.0, 1.0)))
    >>> follow(model, table, torch.ones(1, 1), {}).end.item()
    0.75
    """
    states = list(before.states) if before else list[Tensor]()
    made = list(before.predictions) if before else list[Tensor]()
    for i in range(len(made), table.nfe):
        states.append(x)
        made.append(model.predict(table.predicts, x, table.times[i], **conditions))
        x = combine(table.anchor[i], table.history[i], x, made)
    return Path(tuple(states), tuple(made), x)


def combine(anchor: float, history: Sequence[float], x: Tensor, made: Sequence[Tensor]) -> Tensor:
    """a x + Σ_j b_j F_j."""
    x = x * anchor
    for weight, F in zip(history, made):  # noqa: N806
        if weight:
            x = torch.add(x, F, alpha=weight)
    return x
