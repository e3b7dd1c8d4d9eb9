"""What can stand in a row of a comparison: a solver on a grid, an adaptive method, any function that samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from sdekit import parallel
from sdekit.adaptive import Adaptive, named, sample_adaptive
from sdekit.grid import Grid, GridSpec
from sdekit.identity import identify
from sdekit.noise import normal
from sdekit.parallel import Parallel
from sdekit.prediction import PREDICTIONS
from sdekit.process import Process
from sdekit.sampling import Model, as_rows, conditions_of, sample
from sdekit.solvers import Solver, get
from sdekit.solvers.registry import check_count

ADAPTIVE, OWN = "adaptive steps", "its own"
Tick = Callable[[float], object]


@dataclass(frozen=True)
class Job:
    """What every contender of a run is given: the same starts, conditions and batches."""

    model: Model
    shape: tuple[int, ...]
    seed: int
    batch_size: int | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Drawn(NamedTuple):
    """What a contender made: samples [n, *event], and what one of them took in the mean.

    Attributes:
        evaluations: of the network.
        rounds: calls of it one after another, where fewer than evaluations.
    """

    x: Tensor
    evaluations: float
    rounds: int | None = None


@runtime_checkable
class Contender(Protocol):
    """One row and column of a comparison.

    Attributes:
        solver, grid: what its cells are called.
        nfe: the network evaluations asked for; 0 where it decides for itself.
        stochastic: whether it draws noise after the start.
    """

    @property
    def solver(self) -> str: ...
    @property
    def grid(self) -> str: ...
    @property
    def nfe(self) -> int: ...
    @property
    def stochastic(self) -> bool: ...

    def table(self, process: Process) -> object:
        """All that decides what it does on this process. Raises ValueError where it cannot run there."""
        ...

    def draw(self, job: Job, tick: Tick) -> Drawn:
        """Samples; ``tick(n)`` tells of n evaluations made."""
        ...


@dataclass(frozen=True)
class Tabled:
    """A solver of the registry, or fitted, on a grid."""

    solver: str
    grid: str
    nfe: int
    rule: Solver = field(repr=False)
    times: GridSpec = field(repr=False)

    @property
    def stochastic(self) -> bool:
        return self.rule.stochastic

    def table(self, process: Process) -> object:
        plan = self.rule.plan(process, nfe=self.nfe, grid=self.times)
        return plan, PREDICTIONS[plan.predicts]

    def draw(self, job: Job, tick: Tick) -> Drawn:
        rows = self.rule.plan(job.model.process, nfe=self.nfe, grid=self.times).rows
        n, size = job.shape[0], job.batch_size or job.shape[0]
        share = self.nfe * n / (-(-n // size) * sum(row.commit for row in rows))

        def callback(*_: object) -> None:
            tick(share)

        solution = sample(
            job.model, job.shape, solver=self.rule, nfe=self.nfe, grid=self.times, seed=job.seed, callback=callback,
            batch_size=size, **job.conditions,
        )  # fmt: skip
        return Drawn(solution.x, self.nfe)


@dataclass(frozen=True)
class InRounds:
    """A solver of the registry on a grid, its evaluations made many at a time: ``nfe`` says what the run is."""

    solver: str
    grid: str
    nfe: int
    rule: Parallel = field(repr=False)
    times: GridSpec = field(repr=False)

    @property
    def stochastic(self) -> bool:
        return get(self.rule.solver).stochastic

    def table(self, process: Process) -> object:
        plan = get(self.rule.solver).plan(process, nfe=self.nfe, grid=self.times)
        return plan, self.rule.tolerance, self.rule.window

    def draw(self, job: Job, tick: Tick) -> Drawn:
        found = parallel.sample(
            job.model, job.shape, solver=self.rule.solver, nfe=self.nfe, grid=self.times, seed=job.seed,
            window=self.rule.window, tolerance=self.rule.tolerance, batch_size=job.batch_size, **job.conditions,
        )  # fmt: skip
        tick(found.nfe * len(found.x))
        return Drawn(found.x, found.nfe, found.rounds)


@dataclass(frozen=True)
class Adapting:
    """An adaptive method: its tolerance decides the evaluations of each sample, and its column is what it took."""

    solver: str
    rule: Adaptive = field(repr=False)
    grid: str = ADAPTIVE
    nfe: int = 0

    @property
    def stochastic(self) -> bool:
        return self.rule.rule.stochastic

    def table(self, process: Process) -> object:
        return self.rule, self.rule.rule

    def draw(self, job: Job, tick: Tick) -> Drawn:
        method, settings = self.rule.method, cast("dict[str, Any]", self.rule.settings)
        found = sample_adaptive(
            job.model, job.shape, method=method, seed=job.seed, batch_size=job.batch_size, **settings, **job.conditions
        )
        tick(float(found.nfe.sum()))
        return Drawn(found.x, found.nfe.double().mean().item())


@dataclass(frozen=True)
class Function:
    """Any sampler: ``function(model, start, nfe, **conditions)`` -> x at the data's end, from ``start`` at t_max.

    The start of sample i is that of every other contender with the same seed. Evaluations are counted where the model
    counts them, whatever was asked for; the function gets a batch at a time.

    Attributes:
        name: what its cells are called.
        stochastic: whether it draws noise of its own; then it is not measured against the ODE's end.
        grid: what its cells say of its times.

    >>> def euler(model, start, nfe):  # in x/α over σ/α, from the first time to the last in equal steps of t
    ...     process, x = model.process, start
    ...     times = [process.t_max + (process.t_min - process.t_max) * i / nfe for i in range(nfe + 1)]
    ...     for s, t in zip(times, times[1:]):
    ...         x = x + (t - s) * model.flow(x, s)
    ...     return x
    >>> Function("euler by hand", euler).stochastic
    False
    """

    name: str
    function: Callable[..., Tensor] = field(repr=False)
    stochastic: bool = False
    grid: str = OWN

    def contender(self, nfe: int) -> Contender:
        return _Called(self.name, self.grid, nfe, self.stochastic, self.function)


@dataclass(frozen=True)
class _Called:
    solver: str
    grid: str
    nfe: int
    stochastic: bool
    function: Callable[..., Tensor] = field(repr=False)

    def table(self, process: Process) -> object:
        return self.function

    def draw(self, job: Job, tick: Tick) -> Drawn:
        model, (n, *event), before = job.model, job.shape, job.model.nfe
        size, drawn = job.batch_size or job.shape[0], list[Tensor]()
        conditions = as_rows(model, job.conditions, n)
        for first in range(0, n, size):
            samples = torch.arange(first, min(first + size, n), device=model.device)
            start = normal(job.seed, 0, samples, event) * model.process.prior_std
            x = self.function(model, start, self.nfe, **conditions_of(conditions, n, first, size))
            if not isinstance(x, Tensor) or x.shape != start.shape:
                found = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
                raise ValueError(f"it returned {found} for a start of shape {list(start.shape)}: they must be equal")
            drawn.append(x.to(start.dtype))
            tick(float(self.nfe * len(x)))
        return Drawn(torch.cat(drawn), (model.nfe - before) / -(-n // size))


Rule = Solver | Adaptive | Parallel | Function
Spec = str | Rule | Callable[..., Tensor]


def contenders(solvers: Sequence[Spec], grids: GridSpec | Sequence[GridSpec], nfe: Sequence[int]) -> list[Contender]:
    """Every solver × grid × NFE, cheapest first; functions have no grid, and adaptive methods, last, no NFE either.

    Raises ValueError for an unknown name, a grid that is none, an nfe below 1, and two that have one name.
    """
    named_grids = _named_grids(grids)
    for axis, given in {"solvers": solvers, "nfe": nfe, "grid": named_grids}.items():
        if not given:
            raise ValueError(f"{axis}: none given, at least 1 is needed")
    for n in nfe:
        check_count("nfe", n, 1, "it counts network evaluations")
    rules, found = _named(solvers), list[Contender]()
    for n in dict.fromkeys(sorted(nfe)):
        for grid, times in named_grids.items():
            found += [Tabled(name, grid, n, rule, times) for name, rule in rules.items() if isinstance(rule, Solver)]
            found += [
                InRounds(name, grid, n, rule, times) for name, rule in rules.items() if isinstance(rule, Parallel)
            ]
        found += [rule.contender(n) for rule in rules.values() if isinstance(rule, Function)]
    return found + [Adapting(name, rule) for name, rule in rules.items() if isinstance(rule, Adaptive)]


def check_grids(process: Process, found: Sequence[Contender]) -> None:
    """A grid that is bad on this process is an error of the run, not of a cell."""
    grids = {one.grid: one.times for one in found if isinstance(one, Tabled | InRounds) and one.times != "auto"}
    for times in grids.values():
        Grid.make(process, times, 2 if isinstance(times, str) else len(times) - 1)


def _named(specs: Sequence[Spec]) -> dict[str, Rule]:
    """Each by what its cells are to call it: the name given, or that of a value with its options."""
    found: dict[str, Rule] = {}
    for label, rule in map(_read, specs):
        if found.setdefault(label, rule) != rule:
            raise ValueError(f"solvers: two different ones are called {label!r}; compare them in two runs")
    return found


def _read(spec: Spec) -> tuple[str, Rule]:
    if isinstance(spec, str):
        return spec, named(spec) or parallel.named(spec) or get(spec)
    if isinstance(spec, Solver | Adaptive | Parallel):
        return spec.label, spec
    if isinstance(spec, Function):
        return spec.name, spec
    if not callable(spec):
        raise ValueError(f"solvers: {spec!r} is no name, Solver, Adaptive, Parallel, Function or function")
    name = getattr(spec, "__name__", type(spec).__name__)
    return name, Function(name, spec)


def _named_grids(given: GridSpec | Sequence[GridSpec]) -> dict[str, GridSpec]:
    """Each grid by what its cells are to call it: its name, or ``"6 times 1 … 0.001 #ab12"``."""
    named_grids: dict[str, GridSpec] = {}
    for spec in _listed(given):
        if isinstance(spec, str):
            named_grids[spec] = spec
            continue
        times = tuple(float(t) for t in spec)
        if len(times) < 2:
            raise ValueError(f"grid={list(times)}: {len(times)} times given, a grid has at least 2")
        label = f"{len(times)} times {times[0]:g} … {times[-1]:g} #{identify(times)[:4]}"
        if named_grids.setdefault(label, times) != times:
            raise ValueError(f"grid: two different ones are called {label!r}; compare them in two runs")
    return named_grids


def _listed(given: GridSpec | Sequence[GridSpec]) -> Iterator[GridSpec]:
    one = isinstance(given, str) or any(isinstance(part, Real) for part in given)
    yield from cast("list[GridSpec]", [given] if one else list(given))
