"""``tune``: the stages one after the other, each kept where starts that no stage was fitted on say so."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sdekit.door import Count, Evaluations, Seed, Shape, door, shown
from sdekit.model import in_evaluation_mode
from sdekit.sampling import Model, as_rows, check_conditions, check_shape
from sdekit.solvers.registry import check_count
from sdekit.tuning.plan import Tuned
from sdekit.tuning.refine import SCALARS, Errors, Problem, State, cost_of_columns, free_count, precision
from sdekit.tuning.search import CANDIDATES, Candidate, candidates, ranked
from sdekit.tuning.store import digests
from sdekit.tuning.teacher import LAST, Endpoints, Pairs, solve, starts

Progress = Callable[[str, int, int], None]
LEAST_JACOBIAN, MOST_STARTED, ROUND, STEPS_EACH = 32, 8, 4, 12
LEAST_STARTS, MOST_STARTS, NUMBERS = 200, 2000, 12_800
BUDGET = 5000
"""Evaluations of the refinement for each start."""


def starts_for(size: int) -> int:
    """How many starts ``tune`` takes for data of ``size`` numbers.

    >>> starts_for(2), starts_for(16), starts_for(64), starts_for(3 * 512 * 512)
    (2000, 800, 200, 200)
    """
    return max(LEAST_STARTS, min(MOST_STARTS, NUMBERS // size))


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during ``tune``: ``plan`` is the best so far by the validation, None before there was one."""

    def __init__(self, plan: Any) -> None:
        super().__init__("interrupted " + ("during the search" if plan is None else "with a plan"))
        self.plan = plan


@door
@in_evaluation_mode
@torch.no_grad()
def tune(
    model: Model,
    shape: Shape,
    nfe: Evaluations,
    *,
    starts: Count | None = None,
    budget: int | None = None,
    memory: Count = 4,
    choices: Sequence[tuple[str, str]] = CANDIDATES,
    endpoints: Endpoints | None = None,
    batch_size: Count | None = None,
    seed: Seed = 0,
    progress: Progress | None = None,
    **conditions: Any,
) -> Tuned:
    r"""The best deterministic solver of ``nfe`` evaluations for this model: a value for ``solver=``.

    A solver is a table: the times told to the network, and the weights of x and of each prediction in every row. From
    starts N(0, σ²) at t_max an accurate solve, checked against one of twice the step, says where the flow ends. Then

    1. ``choices`` of the registry are tried on half of the starts;
    2. from the best of them times and weights are fitted together to the ends (``refine``), several in a race;
    3. the half of the starts that nothing was fitted on picks among all iterates, by the geometric mean of the
       errors' median and root mean square. Only one that lowers both, surely by a bootstrap over those starts, can
       take the place of the solver that it began from.

    Args:
        model: a ``ScoreModel``, or what wraps one, guidance included.
        shape: [n, *event], as for ``sample``; only the event counts.
        nfe: network evaluations, at least 2.
        starts: how many the teacher solves for. By default 200, and more where the data have fewer than 64
            dimensions, so that together they have 12,800, at most 2,000.
        budget: evaluations of the refinement, each of one start; by default 5,000 for each of ``starts``. ``progress``
            is told the whole cost before anything.
        memory: how many of the newest predictions have free weights in a row.
        choices: pairs of a solver and a grid to begin from.
        endpoints: ``f(start, **conditions)`` that gives the ends to fit, instead of an accurate solve.
        batch_size: starts run at once.
        seed: of the starts. They are others than those of ``sample``, for any seeds.
        progress: called as ``progress(what, done, total)``, in evaluations of one start; ``total`` is the most.
        conditions: passed to the network; with a row for each of ``starts``, or as they are.

    Raises ValueError for nfe below 2, fewer training starts than free numbers, a teacher that does not converge and no
    choice that is deterministic; ``Interrupted`` at Ctrl-C, with the best plan so far.

    Sources: Tong et al. 2024 (LD3) for the times told to the network; Shaul et al. 2024 (bespoke non-stationary
    solvers) for tables with a free weight of every prediction; the steps are Marquardt's (1963).

    >>> from sdekit.process import VP
    >>> from sdekit.targets import Gaussian
    >>> model = Gaussian(torch.zeros(2), torch.diag(torch.tensor([1.0, 0.1]))).model(VP())
    >>> plan = tune(model, (1, 2), nfe=3, starts=60, budget=20_000, choices=[("ddim", "time")])
    >>> plan.nfe, plan.record["validation"]["rmse"] < 0.1 * plan.record["start"]["validation"]["rmse"]
    (3, True)
    """
    check_count("nfe", nfe, 2, "one evaluation leaves nothing to tune")
    check_count("memory", memory, 1, "a row uses at least the prediction just made")
    event = tuple(check_shape(shape, None)[1:])
    if not event:
        raise ValueError(f"shape={tuple(shape)}: it must be [n, *event], with at least one dimension of event")
    if not choices:
        raise ValueError("choices=(): at least one solver with its grid is needed to begin with")
    starts = starts_for(math.prod(event)) if starts is None else starts
    budget = BUDGET * starts if budget is None else budget
    free = free_count(nfe, min(memory, nfe))
    check_count("budget", budget, 0, "it counts network evaluations")
    wanted = f"half of them are to determine {free} free numbers of nfe={nfe}, half to choose"
    check_count("starts", starts, 2 * free, wanted)
    check_conditions(model, conditions, tune)
    found = candidates(model.process, nfe, choices)
    held, train = starts // 2, starts - starts // 2
    limit = 2 * LAST * starts + len(found) * nfe * (train + held) + budget
    meter, began = Meter(progress, limit), time.perf_counter()
    meter("teacher", 0)
    sizes = {"train": train, "validation": held}
    conditions = as_rows(model, conditions, starts)
    problem, teacher = prepare(model, event, sizes, endpoints, batch_size, seed, meter, conditions)
    problem = replace(problem, jacobian=min(train, max(LEAST_JACOBIAN, SCALARS * free // max(1, problem.size))))
    about: dict[str, Any] = {"event": list(event), "seed": seed, "starts": sizes, "teacher": teacher}
    about |= digests(model, event)
    race = _Race(problem, min(memory, nfe), meter.spent, budget)
    try:
        race.run(found)
    except KeyboardInterrupt:
        raise Interrupted(race.plan(about, began) if race.states else None) from None
    return race.plan(about, began)


class Meter:
    """Counts evaluations of one start and tells ``progress``."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def __call__(self, what: str, more: int) -> None:
        self.done += more
        if self.progress is not None:
            self.progress(what, min(self.done, self.total), self.total)

    def spent(self) -> int:
        return self.done


def prepare(
    model: Model, event: tuple[int, ...], sizes: dict[str, int], endpoints: Endpoints | None, batch_size: int | None,
    seed: int, meter: Meter, conditions: dict[str, Any],
) -> tuple[Problem, dict[str, Any]]:  # fmt: skip
    """The pairs of both streams, and what the record says of the teacher."""
    x = torch.cat([starts(model, event, stream, n, seed) for stream, n in sizes.items()])
    if endpoints is not None:
        try:
            inspect.signature(endpoints).bind(x, **conditions)
        except TypeError as error:
            raise ValueError(f"endpoints: it is called with the starts and the conditions: {error}") from None
        try:
            end, teacher = endpoints(x, **conditions), {"evaluations": 0, "gap": 0.0}
        except RuntimeError as error:
            raise ValueError(f"endpoints: it fails on starts {list(x.shape)}, {x.dtype}: {error}") from error
    else:
        end, gap, nfe = solve(model, x, conditions, batch_size, meter)
        teacher = {"evaluations": nfe, "gap": gap}
    if not isinstance(end, Tensor) or end.shape != x.shape or not bool(end.isfinite().all()):
        raise ValueError(
            f"endpoints: {shown(end)} for starts {list(x.shape)}: a tensor of that shape, finite, is needed"
        )
    pairs = Pairs.of(x, end.to(x.dtype), conditions)
    train, validation = pairs.part(0, sizes["train"]), pairs.part(sizes["train"], sizes["validation"])
    difference = precision(model, train)
    return Problem(model, train, validation, difference, len(train.start), meter, batch_size), teacher


@dataclass
class _Race:
    """Fits from the best candidates: each gets some steps, the better half goes on, until one is left."""

    problem: Problem
    memory: int
    spent: Callable[[], int]
    budget: int
    states: tuple[State, ...] = ()
    origins: tuple[tuple[Candidate, Errors], ...] = ()

    def run(self, found: Sequence[Candidate]) -> None:
        problem, nfe = self.problem, found[0].table.nfe
        order = ranked(found, lambda table: problem.errors(table, problem.train, "search").score)
        began = self.spent()
        columns = cost_of_columns(problem.begin(order[0].table, self.memory).free.first_rows, nfe)
        step = problem.jacobian * (nfe + columns) + nfe * (3 * len(problem.train.start) + len(problem.validation.start))
        size = max(1, min(MOST_STARTED, self.budget // step // STEPS_EACH))
        for first in range(0, len(order), size):
            if not self._heat(order[first : first + size], lambda: self.spent() - began + step <= self.budget):
                return

    def _heat(self, entrants: Sequence[Candidate], affordable: Callable[[], bool]) -> bool:
        """Some steps for each, then for the better half, until all are done; False once the budget is spent."""
        left = list(range(len(self.states), len(self.states) + len(entrants)))
        for one in entrants:
            state = self.problem.begin(one.table, self.memory)
            self.states, self.origins = (*self.states, state), (*self.origins, (one, state.validation))
        while left:
            for i in left:
                target = self.states[i].steps + ROUND
                while not self.states[i].done and self.states[i].steps < target:
                    if not affordable():
                        return False
                    after = self.problem.step(self.states[i])
                    self.states = (*self.states[:i], after, *self.states[i + 1 :])
            better = sorted(left, key=lambda i: self.states[i].validation.score)[: max(1, len(left) // 2)]
            left = [i for i in better if not self.states[i].done]
        return True

    def plan(self, about: dict[str, Any], began: float) -> Tuned:
        """The best that is no worse than its start in either error, or the best start."""
        problem = self.problem
        fitted = [(state.validation.score, i, True) for i, state in enumerate(self.states) if state.improved]
        unfitted = [(first.score, i, False) for i, (_, first) in enumerate(self.origins)]
        _, i, refined = min(fitted + unfitted)
        (one, first), state = self.origins[i], self.states[i]
        table, validation = (state.best, state.validation) if refined else (one.table, first)
        error, untuned = problem.errors(table, problem.train), problem.errors(one.table, problem.train)
        record = {
            "stage": "refined" if refined else "search", "start": {"solver": one.solver, "grid": one.grid,
            "train": vars(untuned), "validation": vars(first)}, "train": vars(error), "validation": vars(validation),
            **about, "evaluations": self.spent(), "seconds": round(time.perf_counter() - began, 1),
        }  # fmt: skip
        return Tuned.make(table, problem.model.process, record)
