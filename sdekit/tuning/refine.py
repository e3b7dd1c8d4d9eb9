r"""The second and third stage: times and coefficients by Levenberg–Marquardt, on what the network gives alone.

A table's end is a smooth function of its numbers θ, so near one the residuals r_i (the end less the teacher's) are
linear in them: each step minimises

    Σ_i w_i ‖r_i + J_i δ‖² + Σ_k μ_k δ_k² + Σ_k ρ_k (θ_k + δ_k − θ⁰_k)²

with w the weights of a pseudo-Huber loss, which lets go of the few starts that lie on a watershed, and μ_k and ρ_k in
units of the diagonal of JᵀJ (Marquardt 1963): ρ holds what no start determines at the solver that the fit began from.

J is taken by differences. What changes a later row leaves the run before it as it is, and a differenced network needs
no gradient: it may be compiled, quantised or a wrapper of any kind, and no graph is held in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sdekit.sampling import Model
from sdekit.tuning.table import Path, Table, combine, follow
from sdekit.tuning.teacher import Pairs, distance

KNEE = 5.0
"""Where the loss turns from a square into a line: this often the median error."""
RIDGE = 1e-6
SCALARS = 32
"""The Jacobian is taken on so many numbers of the ends for each free one, at most on all of the training's."""
PATIENCE = 5
DRAWS, SURE = 100, 0.95
LARGEST = 1e8  # damping at which no step is left
_HELD = 1 << 24  # numbers of the Jacobian held at once: 128 MB

Tick = Callable[[str, int], None]


@dataclass(frozen=True)
class Errors:
    """Of a set of starts: the median and the root mean square of their RMS errors."""

    median: float
    rmse: float

    @classmethod
    def of(cls, each: Tensor) -> Errors:
        return cls(each.median().item(), each.square().mean().sqrt().item())

    @property
    def score(self) -> float:
        """Their geometric mean: a median alone forgets the tail, a root mean square is little else."""
        value = math.sqrt(self.median * self.rmse)
        return value if math.isfinite(value) else math.inf


def surely_better(errors: Tensor, others: Tensor) -> bool:
    """Whether median and root mean square are below the others' in 95% of the draws of a paired bootstrap.

    >>> others = torch.linspace(1, 2, 100)
    >>> surely_better(0.9 * others, others), surely_better(torch.cat([0.9 * others[1:], torch.ones(1) * 9]), others)
    (True, False)
    """
    picks = torch.randint(len(errors), (DRAWS, len(errors)), generator=torch.Generator().manual_seed(0))
    ours, theirs = errors[picks], others[picks]
    median = (ours.median(1).values < theirs.median(1).values).double().mean()
    rmse = (ours.square().sum(1) < theirs.square().sum(1)).double().mean()
    return min(median.item(), rmse.item()) >= SURE


@dataclass(frozen=True)
class Free:
    """Which numbers of a table are free, as a vector: λ told to the network, then row by row a and the newest b.

    Attributes:
        start: the table of which all other numbers stay.
        half_log_snr: λ of its times.
        memory: how many of the newest predictions have free weights in each row.
    """

    start: Table
    half_log_snr: tuple[float, ...]
    memory: int

    @property
    def first_rows(self) -> list[int]:
        """For each free number the first row that it changes; a time told at evaluation i changes row i."""
        told = list(range(1, self.start.nfe))
        return told + [i for i in range(self.start.nfe) for _ in range(1 + min(i + 1, self.memory))]

    def values(self) -> np.ndarray:
        rows = [[a, *b[-self.memory :]] for a, b in zip(self.start.anchor, self.start.history)]
        return np.array([*self.half_log_snr[1:], *(value for row in rows for value in row)])

    def table(self, values: np.ndarray, time: Callable[[float], float]) -> Table:
        """The table with these numbers; ``time`` gives the time at λ."""
        count = self.start.nfe - 1
        times = (self.start.times[0], *(time(float(value)) for value in values[:count]))
        rest, anchors, history = iter(values[count:].tolist()), list[float](), list[tuple[float, ...]]()
        for weights in self.start.history:
            anchors.append(next(rest))
            kept = max(0, len(weights) - self.memory)
            history.append((*weights[:kept], *(next(rest) for _ in weights[kept:])))
        return Table(self.start.predicts, times, tuple(anchors), tuple(history))


def free_count(nfe: int, memory: int) -> int:
    """How many numbers are free.

    >>> free_count(5, 5), free_count(15, 4)
    (24, 83)
    """
    return nfe - 1 + sum(1 + min(i + 1, memory) for i in range(nfe))


@dataclass(frozen=True)
class State:
    """Where a fit stands.

    Attributes:
        free, values: the free numbers, and their values now.
        first: the errors on the validation's starts at the solver it began from.
        damping: μ in units of ``scale``, the largest diagonal of JᵀJ so far.
        steps: steps taken.
        idle: steps since the validation last improved; ``stuck`` where no step helps any more.
        best, validation: the best table by the validation, and its errors there; the solver it began from until a table
            is surely better.
    """

    free: Free
    values: np.ndarray
    first: Tensor
    best: Table
    validation: Errors
    damping: float = 1e-2
    scale: np.ndarray | None = None
    steps: int = 0
    idle: int = 0
    stuck: bool = False

    @property
    def improved(self) -> bool:
        """Whether a table was better than the solver it began from."""
        return self.best is not self.free.start

    @property
    def done(self) -> bool:
        return self.stuck or self.idle >= PATIENCE


@dataclass(frozen=True)
class Problem:
    """A model, the pairs to fit and those to choose by, and how to difference the network.

    Attributes:
        difference: the relative step of the differences, by the network's precision.
        jacobian: how many starts the Jacobian is taken on.
    """

    model: Model
    train: Pairs
    validation: Pairs
    difference: float
    jacobian: int
    tick: Tick
    batch_size: int | None = None

    @property
    def size(self) -> int:
        """Numbers in one sample."""
        return self.train.start[0].numel()

    def begin(self, start: Table, memory: int) -> State:
        levels = tuple(self.model.process.half_log_snr(t) for t in start.times)
        free = Free(start, levels, memory)
        first = self.run(start, self.validation)
        return State(free, free.values(), first, start, Errors.of(first))

    def run(self, table: Table, pairs: Pairs, what: str = "refine") -> Tensor:
        """The error of each start [n], float64 on the CPU."""
        self.tick(what, table.nfe * len(pairs.start))
        return torch.cat([
            distance(follow(self.model, table, part.start, part.conditions).end, part.end)
            for part in pairs.parts(self.batch_size)
        ])  # fmt: skip

    def errors(self, table: Table, pairs: Pairs, what: str = "refine") -> Errors:
        return Errors.of(self.run(table, pairs, what))

    def table(self, free: Free, values: np.ndarray) -> Table:
        return free.table(values, self.model.process.t_of_half_log_snr)

    def step(self, state: State) -> State:
        """One step, and what the validation says of it."""
        table = self.table(state.free, state.values)
        errors = self.run(table, self.train)
        knee = KNEE * max(errors.median().item(), 1e-12)
        normal, gradient = self.normal_equations(state, table, knee)
        scale = np.maximum(normal.diagonal(), state.scale if state.scale is not None else 0)
        scale = np.maximum(scale, 1e-14 * scale.max())
        moved = Move(normal, gradient, scale, state.values - state.free.values())
        before, damping = loss(errors, knee), state.damping
        while damping < LARGEST:
            values = state.values + moved.by(damping)
            if self._allowed(values, state.free):
                after = loss(self.run(self.table(state.free, values), self.train), knee)
                if after < before:
                    return self._judged(replace(state, values=values, damping=max(damping / 5, 1e-9), scale=scale))
            damping *= 4
        return replace(state, stuck=True)

    def _judged(self, state: State) -> State:
        table = self.table(state.free, state.values)
        errors, state = self.run(table, self.validation), replace(state, steps=state.steps + 1)
        found = Errors.of(errors)
        if found.score < state.validation.score and surely_better(errors, state.first):
            idle = 0 if found.score < 0.99 * state.validation.score else state.idle + 1
            return replace(state, best=table, validation=found, idle=idle)
        return replace(state, idle=state.idle + 1)

    def _allowed(self, values: np.ndarray, free: Free) -> bool:
        """Whether the times told still fall, within the process's range."""
        levels = [free.half_log_snr[0], *values[: free.start.nfe - 1]]
        last = self.model.process.half_log_snr(self.model.process.t_min)
        return bool(np.isfinite(values).all() and (np.diff(levels) > 1e-6).all() and levels[-1] <= last)

    def normal_equations(self, state: State, table: Table, knee: float) -> tuple[np.ndarray, np.ndarray]:
        """JᵀWJ and JᵀWr over some of the training's starts, in parts that fit the memory."""
        order = np.random.default_rng(state.steps).permutation(len(self.train.start))[: self.jacobian]
        pairs = self.train.take(torch.as_tensor(np.sort(order), device=self.train.start.device))
        count = len(state.values)
        size = max(1, min(_HELD // (count * self.size), self.batch_size or len(pairs.start)))
        normal, gradient = np.zeros((count, count)), np.zeros(count)
        for part in pairs.parts(size):
            columns, residual = self._jacobian(state, table, part)
            weight = (1 + (residual.square().mean(1) / knee**2)).pow(-0.25)[:, None]
            columns, residual = (columns * weight).flatten(1), (residual * weight).flatten()
            normal += (columns @ columns.T).double().cpu().numpy()
            gradient += (columns @ residual).double().cpu().numpy()
        return normal, gradient

    def _jacobian(self, state: State, table: Table, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """∂(end)/∂θ [free, n, d] and the residual [n, d]."""
        path = follow(self.model, table, pairs.start, pairs.conditions)
        columns = list[Tensor]()
        last = self.model.process.half_log_snr(self.model.process.t_min)
        for k, row in enumerate(state.free.first_rows):
            direction = self._direction(state.free, path, k, row)
            size = self.difference if direction is None else self.difference * _ratio(path, row, direction)
            size = -size if direction is None and state.values[k] + size > last else size
            values = state.values.copy()
            values[k] += size
            changed = self._ahead(self.table(state.free, values), path, row, direction, size, pairs)
            columns.append(((changed - path.end) / size).flatten(1))
        self.tick("refine", len(pairs.start) * (table.nfe + cost_of_columns(state.free.first_rows, table.nfe)))
        return torch.stack(columns), (path.end - pairs.end).flatten(1)

    def _direction(self, free: Free, path: Path, k: int, row: int) -> Tensor | None:
        """What the state after ``row`` moves along where a coefficient changes; None for a time told."""
        first = free.start.nfe - 1
        if k < first:
            return None
        k -= first + sum(1 + min(i + 1, free.memory) for i in range(row))
        return path.states[row] if k == 0 else path.predictions[max(0, row + 1 - free.memory) + k - 1]

    def _ahead(self, table: Table, path: Path, row: int, direction: Tensor | None, size: float, pairs: Pairs) -> Tensor:
        """The end of a table that differs from the path's from ``row`` on."""
        if direction is None:  # a time told: that evaluation is made anew
            before = Path(path.states[:row], path.predictions[:row], path.end)
            return follow(self.model, table, path.states[row], pairs.conditions, before).end
        before = Path(path.states[: row + 1], path.predictions[: row + 1], path.end)
        x = combine(table.anchor[row], table.history[row], path.states[row], before.predictions)
        return follow(self.model, table, x, pairs.conditions, before).end


def cost_of_columns(first_rows: Sequence[int], nfe: int) -> int:
    """Evaluations of the differences: from the first evaluation that changes on."""
    told = nfe - 1
    return sum(nfe - row - (k >= told) for k, row in enumerate(first_rows))


def _ratio(path: Path, row: int, direction: Tensor) -> float:
    """The size of the state after ``row`` in units of the direction's."""
    after = path.states[row + 1] if row + 1 < len(path.states) else path.end
    sizes = [value.square().mean().sqrt().item() for value in (after, direction)]
    return sizes[0] / sizes[1] if min(sizes) > 0 else 1.0


def loss(errors: Tensor, knee: float) -> float:
    """The pseudo-Huber loss, in the mean over starts; infinite where one is not finite."""
    value = (2 * knee**2 * ((1 + (errors / knee).square()).sqrt() - 1)).mean().item()
    return value if math.isfinite(value) else math.inf


@dataclass(frozen=True)
class Move:
    """The normal equations of one step."""

    normal: np.ndarray
    gradient: np.ndarray
    scale: np.ndarray
    moved: np.ndarray

    def by(self, damping: float) -> np.ndarray:
        """δ for that damping, by least squares in columns of unit length."""
        unit = 1 / np.sqrt(self.scale)
        held = RIDGE * self.scale
        matrix = self.normal * np.outer(unit, unit) + np.diag(np.full(len(unit), damping + RIDGE))
        if not np.isfinite(matrix).all():
            return np.full(len(unit), np.nan)
        return -unit * np.linalg.solve(matrix, unit * (self.gradient + held * self.moved))


def precision(model: Model, pairs: Pairs) -> float:
    """The step of the differences that suits the network's own precision: 1e-6 where it resolves it, else 1e-3."""
    x, t = pairs.start[:8], model.process.t_max
    part = pairs.part(0, 8)
    base, near, far = (model.predict("x0", x * (1 + h), t, **part.conditions) for h in (0.0, 1e-6, 1e-3))
    fine, rough = (near - base) / 1e-6, (far - base) / 1e-3
    error, size = ((fine - rough).square().mean().sqrt().item(), rough.square().mean().sqrt().item())
    return 1e-6 if x.dtype == torch.float64 and error <= 0.01 * size else 1e-3
