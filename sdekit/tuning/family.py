"""One fit for many numbers of evaluations: a ``Curve`` by Levenberg–Marquardt, judged as ``tune`` judges."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdekit.door import Count, Seed, Shape, door, record
from sdekit.grid import GridSpec
from sdekit.model import in_evaluation_mode
from sdekit.process import Process
from sdekit.sampling import Model, as_rows, check_conditions, check_shape
from sdekit.solvers.registry import Solver, check_count, full_steps
from sdekit.solvers.tableau import Plan
from sdekit.tuning.curve import COUNT, Curve, derivative
from sdekit.tuning.fit import Interrupted, Meter, Progress, prepare, starts_for
from sdekit.tuning.plan import no_rows
from sdekit.tuning.refine import LARGEST, PATIENCE, Errors, Free, Move, Problem, State, loss, surely_better
from sdekit.tuning.search import GRIDS
from sdekit.tuning.store import digests
from sdekit.tuning.table import Table
from sdekit.tuning.teacher import LAST, Endpoints

SOLVERS = ("ddim", "dpmpp-2m", "deis-2", "deis-3", "ipndm-2", "ipndm-3", "ipndm-4")
MEMORY = 4
"""The most predictions that one of ``SOLVERS`` uses in a row."""
FITTED, LEAST, MOST, BUDGET, LEAST_JACOBIAN = 8, 3, 100, 10_000, 32
KNEE = 0.5
"""Of the loss, in medians: with that of ``tune``, 5, few starts far away were mended at the cost of the median."""


@record
@dataclass(frozen=True)
class Family(Solver):
    """What ``tune_family`` returns, a value for ``solver=``: it runs with any number of evaluations of its range.

    Like ``Tuned`` it has its own times and ends with x_0.

    Attributes:
        curve: the numbers.
        least, most: the range.
        record: what it was fitted on, its errors, and what that cost, as ``save`` writes it.
    """

    curve: Curve = field(kw_only=True)
    least: int = field(kw_only=True)
    most: int = field(kw_only=True)
    record: Mapping[str, Any] = field(kw_only=True, repr=False, compare=False)

    @classmethod
    def make(cls, curve: Curve, least: int, most: int, record: Mapping[str, Any]) -> Family:
        name, paper = f"tuned-{least}-{most}", "fitted to a model"
        return cls(
            name, no_rows, order=0, predicts="x0", evaluations=1, reference=paper, split=full_steps(1),
            process=curve.process, curve=curve, least=least, most=most, record=record,
        )  # fmt: skip

    @property
    def stochastic(self) -> bool:
        return False

    def make_plan(self, process: Process, nfe: int | None, steps: int | None, grid: GridSpec, final: str) -> Plan:
        if process != self.process:
            raise ValueError(f"solver {self.name!r} was fitted for {self.process}: the model's process is {process}")
        if steps is not None or nfe is None or not self.least <= nfe <= self.most:
            raise ValueError(
                f"nfe={nfe}, steps={steps}: solver {self.name!r} runs with nfe from {self.least} to {self.most} alone"
            )
        if grid != "auto" or final not in ("auto", "reuse"):
            raise ValueError(
                f"grid={grid!r}, final={final!r}: solver {self.name!r} has its own times and ends with x_0; leave both"
                " 'auto'"
            )
        return self.curve.table(nfe).plan(process)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON, whole or not at all; ``sdekit.solvers.load`` reads it."""
        from sdekit.tuning.store import write_family

        write_family(self, path)


@door
@in_evaluation_mode
@torch.no_grad()
def tune_family(
    model: Model,
    shape: Shape,
    nfe: range = range(4, 21),
    *,
    starts: Count | None = None,
    budget: int | None = None,
    endpoints: Endpoints | None = None,
    batch_size: Count | None = None,
    seed: Seed = 0,
    progress: Progress | None = None,
    **conditions: Any,
) -> Family:
    """One solver for every number of evaluations of ``nfe``, from one fit: a value for ``solver=``.

    A grid and the weights of a multistep method on it are bent along one curve (``tuning.curve``) until the tables that
    it gives for six numbers of the range, evenly spread in log NFE, end where an accurate solve ends. The other numbers
    have no say. The half of the starts that no step saw picks the iterate; unless it lowers median and root mean
    square for each of the six, surely by a bootstrap, the curve stays straight.

    ``tune`` for one number of evaluations is nearer still; arguments and errors are as there, but ``nfe`` is a range
    from at least 3, and ``budget`` 10,000 evaluations for each of ``starts`` by default.

    >>> from sdekit.process import VP
    >>> from sdekit.targets import Gaussian
    >>> model = Gaussian(torch.zeros(2), torch.diag(torch.tensor([1.0, 0.1]))).model(VP())
    >>> family = tune_family(model, (1, 2), range(3, 5), starts=192, budget=5_000)
    >>> family.name, family.record["fitted"]
    ('tuned-3-4', [3, 4])
    """
    if not isinstance(nfe, range) or nfe.step != 1 or len(nfe) < 2 or nfe.start < LEAST or nfe.stop > MOST + 1:  # pyright: ignore
        raise ValueError(
            f"nfe={nfe!r}: it must be a range of at least 2 numbers from {LEAST} to {MOST}, as range(4, 21)"
        )
    event = tuple(check_shape(shape, None)[1:])
    if not event:
        raise ValueError(f"shape={tuple(shape)}: it must be [n, *event], with at least one dimension of event")
    starts = starts_for(math.prod(event)) if starts is None else starts
    budget = BUDGET * starts if budget is None else budget
    check_count("budget", budget, 0, "it counts network evaluations")
    check_count("starts", starts, 2 * COUNT, f"half of them are to determine {COUNT} free numbers, half to choose")
    check_conditions(model, conditions, tune_family)
    fitted = sorted({round(n) for n in np.geomspace(nfe.start, nfe.stop - 1, FITTED)})
    choices, sizes = len(SOLVERS) * len(GRIDS), {"train": starts - starts // 2, "validation": starts // 2}
    meter = Meter(progress, (2 * LAST + choices * sum(fitted)) * starts + budget)
    began = time.perf_counter()
    meter("teacher", 0)
    told = as_rows(model, conditions, starts)
    problem, teacher = prepare(model, event, sizes, endpoints, batch_size, seed, meter, told)
    jacobian = min(sizes["train"], max(LEAST_JACOBIAN, 8 * COUNT // max(1, problem.size)))
    fit = _Fit(replace(problem, jacobian=jacobian), fitted)
    about = {"event": list(event), "seed": seed, "starts": sizes, "teacher": teacher, **digests(model, event)}
    try:
        fit.run(lambda: meter.spent(), budget)
    except KeyboardInterrupt:
        raise Interrupted(fit.family(nfe, about, meter, began) if fit.first else None) from None
    return fit.family(nfe, about, meter, began)


class _Fit:
    """The curve now, the best so far, and the errors on the validation's starts that it began from, for each NFE."""

    def __init__(self, problem: Problem, fitted: Sequence[int]) -> None:
        self.problem, self.fitted = problem, fitted
        self.damping, self.scale, self.steps, self.idle = 1e-2, np.zeros(COUNT), 0, 0
        self.first: dict[int, Tensor] = {}
        self.units: dict[int, float] = {}
        self.best_score = self.lowest = 0.0

    def run(self, spent: Callable[[], int], budget: int) -> None:
        process, straight = self.problem.model.process, (0.0,) * COUNT
        found = [Curve(process, solver, grid, straight) for solver, grid in product(SOLVERS, GRIDS)]
        self.start = self.best = self.curve = min(found, key=self._search)
        self.first = self.best_errors = self._validate(self.start)
        began, cost = spent(), 0
        while self.idle < PATIENCE and spent() - began + cost <= budget:
            before = spent()
            if not self._step():
                return
            cost = spent() - before

    def _search(self, curve: Curve) -> float:
        problem = self.problem
        try:
            scores = [problem.errors(curve.table(n), problem.train, "search").score for n in self.fitted]
        except ValueError:  # a grid or a solver that does not take this range
            return math.inf
        return sum(math.log(max(score, 1e-300)) if math.isfinite(score) else math.inf for score in scores)

    def _validate(self, curve: Curve) -> dict[int, Tensor]:
        return {n: self.problem.run(curve.table(n), self.problem.validation) for n in self.fitted}

    def _step(self) -> bool:
        """One step of the curve, and what the validation says of it; False where none helps."""
        move, knees, before = self._move()
        while self.damping < LARGEST:
            curve = self.curve.bent((np.array(self.curve.numbers) + move.by(self.damping)).tolist())
            if self._loss(curve, knees) < before:
                self.curve, self.damping, self.steps = curve, max(self.damping / 5, 1e-9), self.steps + 1
                self._judge()
                return True
            self.damping *= 4
        return False

    def _move(self) -> tuple[Move, dict[int, float], float]:
        problem, curve = self.problem, self.curve
        normal, gradient, before = np.zeros((COUNT, COUNT)), np.zeros(COUNT), 0.0
        knees = dict[int, float]()
        for n in self.fitted:
            table = curve.table(n)
            errors = problem.run(table, problem.train)
            knees[n] = knee = KNEE * max(errors.median().item(), 1e-12)
            free = self._free(table)
            state = State(free, free.values(), errors, table, Errors.of(errors), steps=self.steps)
            squares, slopes = problem.normal_equations(state, table, knee)
            columns = derivative(curve, n, lambda other: self._free(other).values())
            unit = self.units.setdefault(n, knee)
            normal += columns @ squares @ columns.T / unit**2
            gradient += columns @ slopes / unit**2
            before += loss(errors, knee) / unit**2
        scale = np.maximum(normal.diagonal(), self.scale)
        self.scale = np.maximum(scale, 1e-14 * scale.max())
        return Move(normal, gradient, self.scale, np.array(curve.numbers)), knees, before

    def _free(self, table: Table) -> Free:
        return Free(table, tuple(self.problem.model.process.half_log_snr(t) for t in table.times), MEMORY)

    def _loss(self, curve: Curve, knees: Mapping[int, float]) -> float:
        """In units of what each number began with, so none gains at another's cost; infinite where no grid."""
        try:
            tables = {n: curve.table(n) for n in self.fitted}
        except ValueError:
            return math.inf
        train = self.problem.train
        return sum(loss(self.problem.run(table, train), knees[n]) / self.units[n] ** 2 for n, table in tables.items())

    def _judge(self) -> None:
        errors = self._validate(self.curve)
        scores = [Errors.of(errors[n]).score / Errors.of(first).score for n, first in self.first.items()]
        score = sum(math.log(max(score, 1e-300)) for score in scores) / len(scores)
        self.idle = 0 if score < self.lowest - 0.01 else self.idle + 1
        self.lowest = min(self.lowest, score)
        if score < self.best_score and all(surely_better(errors[n], first) for n, first in self.first.items()):
            self.best, self.best_errors, self.best_score = self.curve, errors, score

    def family(self, nfe: range, about: Mapping[str, Any], meter: Meter, began: float) -> Family:
        record = {
            "stage": "search" if self.best is self.start else "refined", "fitted": list(self.fitted),
            "start": {str(n): vars(Errors.of(errors)) for n, errors in self.first.items()},
            "validation": {str(n): vars(Errors.of(errors)) for n, errors in self.best_errors.items()},
            **about, "evaluations": meter.spent(), "seconds": round(time.perf_counter() - began, 1),
        }  # fmt: skip
        best = self.best
        for n in nfe:  # those between were never run
            best = best if whole(best, n) else self.start
        return Family.make(best, nfe.start, nfe.stop - 1, record)


def whole(curve: Curve, nfe: int) -> bool:
    """Whether the curve gives a table of ``nfe`` evaluations."""
    try:
        curve.table(nfe)
    except ValueError:
        return False
    return True
