"""The registry: a solver is a function from a grid to rows, with its name, order and citation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import count
from typing import Any

from sdekit.door import Count, Evaluations, door
from sdekit.grid import Grid, GridSpec, identified, without_data
from sdekit.names import Option, check_options, lookup, options_of, parse
from sdekit.prediction import PREDICTIONS, convert
from sdekit.process import VP, Process, remembered
from sdekit.solvers.final import resolve, reuse
from sdekit.solvers.tableau import DATA, Plan, Row

Rows = Callable[..., Iterator[Row]]
Split = Callable[[int], Sequence[int]]
Vary = Callable[..., Mapping[str, Any]]


@door
@dataclass(frozen=True)
class Solver:
    """A solver: ``rows(grid, **options)`` yields its table.

    Attributes:
        order: the global order that it has on every grid, as a test measures it on equal and on uneven steps; for a
            stochastic solver the weak order on Gaussian data.
        predicts: the prediction its rows are written for.
        evaluations: network evaluations of one full step.
        reference: paper and equation.
        split: evaluations of each step for a budget; by default full steps and one step for the rest.
        invariant: whether x/α depends on the knots' λ alone, so that every process gives the same samples. A method
            that steps in t, or in a table's β, is not.
        pathwise: for a stochastic solver, whether runs on one Brownian path come to one limit as the steps are refined,
            with strong order 1 at least. A method that draws as much noise in a short step as in a long one does not.
        grid: the grid that it runs on where none is asked for.
        options: the values chosen, where they differ from the defaults.
        vary: the attributes that depend on the options, ``vary(**every_option)``; ``get`` sets them.
        choose: the solver that runs in this one's place, ``choose(evaluations, own_grid)``; see ``at``.
        process: the one process it is for, where it was fitted to a model; None for every process.
    """

    name: str
    rows: Rows = field(repr=False)
    order: int
    predicts: str
    evaluations: int
    reference: str
    split: Split = field(repr=False)
    invariant: bool = True
    pathwise: bool = True
    grid: str = "logsnr"
    options: tuple[tuple[str, Any], ...] = ()
    vary: Vary | None = field(default=None, repr=False)
    choose: Callable[[int, bool], Solver] | None = field(default=None, repr=False)
    process: Process | None = None

    def at(self, evaluations: int, grid: GridSpec = "auto") -> Solver:
        """The solver that runs with that many evaluations: itself, unless it is a choice of others, as ``auto`` is.

        Where ``grid`` is not ``"auto"`` the choice is one for a grid that is given.

        >>> get("ddim").at(10).name
        'ddim'
        """
        return self.choose(evaluations, grid == "auto") if self.choose else self

    @property
    def available(self) -> dict[str, Option]:
        """Every option with its default and rule."""
        return options_of(getattr(self.rows, "__func__", self.rows))  # a method's cache must not hold its object

    @property
    def summary(self) -> str:
        """The first line of the solver's docstring."""
        return (inspect.getdoc(self.rows) or "").partition("\n")[0]

    @property
    def label(self) -> str:
        """The name with the options chosen, as ``get`` takes it.

        >>> get("ddim(eta=0.5)").label
        'ddim(eta=0.5)'
        """
        chosen = ", ".join(f"{name}={value!r}" for name, value in self.options)
        return f"{self.name}({chosen})" if chosen else self.name

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise with these options."""
        return bool(self.plan(self.process or VP(), steps=3).intervals)

    @door
    def plan(
        self,
        process: Process,
        *,
        nfe: Evaluations | None = None,
        steps: Evaluations | None = None,
        grid: GridSpec = "auto",
        final: str = "auto",
    ) -> Plan:
        """The table of a run of ``nfe`` evaluations or of ``steps`` steps.

        Args:
            nfe: evaluations in all, that of a final denoising among them; exact. A rest that is too small
                for a full step becomes one step of lower order.
            steps: steps, each with its full number of evaluations, instead of ``nfe``.
            grid: a grid's name or its times; times alone say the number of steps. ``"auto"`` is the solver's own.
                A last time 0 below t_min is the final denoising, which leads there: it counts as no step.
            final: ``"reuse"`` ends with x_0 by the predictions made on the way (``final.reuse``), ``"denoise"`` with
                x_0 as predicted at t_min (one evaluation), ``"none"`` at x(t_min); ``"auto"`` is one of the first
                two, by what was measured (``final.resolve``).

        Raises ValueError for a budget too small, or an nfe and a grid that contradict each other.

        >>> get("ddim").plan(VP(), nfe=5).nfe
        5
        """
        return _plan(self, process, nfe, steps, *identified(grid), final)

    def make_plan(self, process: Process, nfe: int | None, steps: int | None, grid: GridSpec, final: str) -> Plan:
        grid = grid if final == "none" else without_data(process, grid)
        final = resolve(final, process, nfe, steps, grid)
        last = int(final == "denoise")
        budget = self._budget(nfe, steps, grid, last)
        rule = self.at(sum(budget), grid)
        knots = Grid.make(process, rule.grid if grid == "auto" else grid, budget)
        rows = list(rule.rows(knots, **dict(rule.options)))
        if last:
            c_x, c_F = convert(rule.predicts, "x0", process, knots.knots[-1].t)  # noqa: N806
            rows.append(Row(to=DATA, anchor=c_x, history=(c_F,)))
        plan = Plan(knots.knots[0], tuple(rows), rule.predicts)
        if final == "reuse":
            plan = replace(plan, rows=(*plan.rows, reuse(process, plan, _points(rule, plan))))
        if plan.nfe != sum(budget) + last:
            raise ValueError(
                f"solver {self.name!r} uses {plan.nfe - last} evaluations where {sum(budget)} were planned"
            )
        return plan

    def _budget(self, nfe: int | None, steps: int | None, grid: GridSpec, last: int) -> Sequence[int]:
        if nfe is not None and steps is not None:
            raise ValueError(f"nfe={nfe} and steps={steps}: give one of them")
        if nfe is not None:
            check_count("nfe", nfe, 1 + last, f"{self.name!r} needs one for a step" + " and one to denoise" * last)
            return self.split(nfe - last)
        if steps is None:
            if isinstance(grid, str):
                raise ValueError("nfe or steps: give one of them, or a grid of explicit times")
            steps = len(grid) - 1
        check_count("steps", steps, 1, "a run takes at least one step")
        # the largest budget that makes this many steps
        return next(self.split(b - 1) for b in count(steps + 1) if len(self.split(b)) > steps)


def _points(rule: Solver, plan: Plan) -> int:
    """How many predictions the end is extrapolated from: as many as keep the order, or one where noise is drawn."""
    return 1 if plan.intervals else max(rule.order, min(2, plan.memory))


@remembered(64)
def _plan(
    solver: Solver, process: Process, nfe: int | None, steps: int | None, grid: GridSpec, key: object, final: str
) -> Plan:
    # a run's table is the same for every batch and seed; ``key`` tells two grids of one name apart
    return solver.make_plan(process, nfe, steps, grid, final)


_SOLVERS: dict[str, Solver] = {}
FITTED: dict[str, str] = {}
"""Solvers that are no table until they are fitted to a model, and the call that fits them."""


def check_count(name: str, value: object, low: int, why: str) -> None:
    """Raise ValueError unless ``value`` is a whole number of at least ``low``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"{name}={value!r}: it must be a whole number of at least {low}; {why}")


@dataclass(frozen=True)
class _FullSteps:  # a solver is pickled with it, which a function made in a function cannot be
    evaluations: int

    def __call__(self, budget: int) -> list[int]:
        whole, rest = divmod(budget, self.evaluations)
        return [self.evaluations] * whole + [rest] * (rest > 0)


@dataclass(frozen=True)
class _Starting:
    evaluations: int
    steps: int

    def __call__(self, budget: int) -> list[int]:
        first = self.evaluations * self.steps
        return [*_FullSteps(self.evaluations)(min(budget, first)), *[1] * (budget - first)]


@door
@lru_cache
def full_steps(evaluations: int) -> Split:
    """Steps of ``evaluations`` each, and one step for the rest (Lu et al. 2022, DPM-Solver-fast's rule).

    >>> full_steps(2)(5)
    [2, 2, 1]
    """
    return _FullSteps(evaluations)


@door
@lru_cache
def starting(evaluations: int, steps: int) -> Split:
    """The first ``steps`` steps of ``evaluations`` each, as far as the budget goes, then steps of one.

    >>> starting(3, 2)(5), starting(3, 2)(8)
    ([3, 2], [3, 3, 1, 1])
    """
    return _Starting(evaluations, steps)


@door
def register(
    name: str,
    *,
    order: int,
    predicts: str,
    reference: str,
    evaluations: Count = 1,
    split: Split | None = None,
    invariant: bool = True,
    pathwise: bool = True,
    vary: Vary | None = None,
    choose: Callable[[int, bool], Solver] | None = None,
) -> Callable[[Rows], Rows]:
    """Register ``rows(grid, **options)`` under ``name``; see ``Solver``.

    A solver's options are its keyword-only parameters, each ``Annotated`` with ``Between`` or ``OneOf``.
    The same function (by module and name) may be registered again, as a notebook's cell does when it is run again: the
    newest takes the name. Raises ValueError for a name that another function has.
    """

    def add(rows: Rows) -> Rows:
        if name in _SOLVERS and _place(_SOLVERS[name].rows) != _place(rows):
            raise ValueError(
                f"a solver named {name!r} is registered already, by {_SOLVERS[name].rows.__module__}."
                f"{_SOLVERS[name].rows.__qualname__}: only the function of that module and name may be registered"
                " again; choose another name"
            )
        lookup("prediction", predicts, PREDICTIONS)
        options_of(rows)
        split_or_full = split or full_steps(evaluations)
        _SOLVERS[name] = Solver(
            name,
            rows,
            order,
            predicts,
            evaluations,
            reference,
            split_or_full,
            invariant=invariant,
            pathwise=pathwise,
            vary=vary,
            choose=choose,
        )
        return rows

    return add


def _place(rows: Rows) -> tuple[object, ...]:
    """What says that a function is another one defined anew; two lambdas have the same name."""
    code = getattr(rows, "__code__", None)
    line = (code.co_filename, code.co_firstlineno) if code is not None and rows.__name__ == "<lambda>" else ()
    return rows.__module__, rows.__qualname__, *line


def names() -> list[str]:
    """The registered solvers, sorted.

    >>> "ddim" in names()
    True
    """
    return sorted(_SOLVERS)


@door
def get(solver: str | Solver) -> Solver:
    """The solver of that name, with options as in ``"ddim(eta=0.5)"``.

    Raises ValueError for an unknown name, option, or value.

    >>> get("ddim").stochastic, get("ddim(eta=1.0)").stochastic
    (False, True)
    """
    if isinstance(solver, Solver):
        return solver
    name, options = parse(solver)
    if name in FITTED:
        raise ValueError(f"solver {name!r} has to be fitted to a model first: {FITTED[name]} returns it, for solver=")
    found = lookup("solver", name, _SOLVERS)
    if not options and found.vary is None:
        return found
    available = found.available
    check_options(name, available, options)
    every = {option: options.get(option, known.default) for option, known in available.items()}
    varied = found.vary(**every) if found.vary else {}
    return replace(found, options=tuple(sorted(options.items())), **varied)
