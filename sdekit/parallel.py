r"""A run's evaluations many at a time, in few rounds: parallel in time, for whoever has more device than patience.

A table is a triangular system: the state at each evaluation is a combination of the start, the noise and the
predictions before it. Given a guess of all predictions, one walk over the rows, without the network, gives all states;
the network at all of them, in one batch, gives better predictions. Each such round makes at least one more evaluation
exact, and far more once the guess is near (Picard iteration: Shih et al. 2023, ParaDiGMS, algorithm 1). Two things make
the rounds few, for every solver of the registry, stochastic ones included, since their noise is the same in each round:

- what is held through a walk is v = α ε − σ x_0, which is 0 where the data are N(0, 1), not the prediction that the
  table is written for: x moves, and ε = (α v + σ x)/(α² + σ²) moves with it;
- v is taken as linear in x along the last rounds' changes, evaluation by evaluation: V + Σ_i Y_i ⟨Q_i, x − X⟩, with Q_i
  an orthonormal basis of those changes of x and Y_i what v did along it. That is the multisecant form of Anderson
  acceleration (Fang & Saad 2009), block by block of the triangle (as Tang et al. 2024, ParaTAA).
"""

from __future__ import annotations

import math
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import islice, takewhile
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sdekit.door import Count, Device, Evaluations, FloatDtype, Place, Positive, Seed, Shape, door, record
from sdekit.grid import GridSpec
from sdekit.model import in_evaluation_mode
from sdekit.names import lookup, parse, unknown
from sdekit.noise import SOURCES, Draws
from sdekit.prediction import convert
from sdekit.process import Knot, Process
from sdekit.sampling import (
    Model,
    as_rows,
    batched,
    check_conditions,
    check_device,
    check_shape,
    combine,
    conditions_of,
    progress_bar,
    space_of,
    start_of,
)
from sdekit.solvers import Solver, get
from sdekit.solvers.registry import check_count
from sdekit.solvers.tableau import Plan

_MEMORY = 3
"""Changes of earlier rounds that are remembered: on the digits network 2, 3, 5 and 8 took as many rounds (±1)."""
_PARALLEL = 1e-3
Tell = Callable[[int], object]


@record
@dataclass(frozen=True)
class ParallelSolution:
    """What ``sample`` returns.

    Attributes:
        x: samples [n, *event].
        rounds: calls of the network one after another, in the batch that took most.
        nfe: network evaluations that each sample took, on the average of the batches.
        seed: the seed that repeats the run.
        sigma: σ of the noise that x still carries.
        space: as in ``sampling.Solution``.
    """

    x: Float[Tensor, "n *event"]
    rounds: int
    nfe: float
    seed: int
    sigma: float
    space: str = "data"


@door
@dataclass(frozen=True)
class Parallel:
    """A solver run in parallel, as a row of ``compare``: ``"parallel(solver='ddim', tolerance=0.01)"`` in words.

    Attributes:
        solver: a name, or a ``Solver``.
        tolerance, window: as in ``sample``.

    >>> Parallel("ddim", tolerance=0.01).label
    "parallel(solver='ddim', tolerance=0.01)"
    """

    solver: str | Solver = "auto"
    _: KW_ONLY
    tolerance: Positive = 3e-5
    window: Count = 128

    def __post_init__(self) -> None:
        get(self.solver)
        _check(self.window, self.tolerance)

    @property
    def label(self) -> str:
        """What its cells are called."""
        own = {"solver": self.solver if isinstance(self.solver, str) else self.solver.label}
        own |= {"tolerance": self.tolerance, "window": self.window}
        kept = {name: value for name, value in own.items() if value != getattr(Parallel, name)}
        return f"parallel({', '.join(f'{name}={value!r}' for name, value in kept.items())})"


@door
def named(spec: str) -> Parallel | None:
    """What ``"parallel(solver='ddim', window=32)"`` says; None for another name.

    Raises ValueError for a text that cannot be read, and for an unknown setting or value.

    >>> named("ddim") is None
    True
    """
    name, options = parse(spec)
    if name != "parallel":
        return None
    if wrong := [option for option in options if option not in ("solver", "tolerance", "window")]:
        raise unknown("option of parallel", wrong[0], ("solver", "tolerance", "window"))
    return Parallel(**options)


def _check(window: int, tolerance: float) -> None:
    check_count("window", window, 1, "it is how many evaluations are made at once")
    if not tolerance > 0:
        raise ValueError(f"tolerance={tolerance}: it must be above 0")


@door
@in_evaluation_mode
@torch.no_grad()
def sample(
    model: Model,
    shape: Shape,
    *,
    solver: str | Solver = "auto",
    nfe: Evaluations | None = None,
    steps: Evaluations | None = None,
    grid: GridSpec = "auto",
    seed: Seed | None = None,
    noise: str = "independent",
    start: Tensor | None = None,
    final: str = "auto",
    window: Count = 128,
    tolerance: Positive = 3e-5,
    progress: bool = False,
    batch_size: Count | None = None,
    first: Place = 0,
    dtype: FloatDtype = torch.float32,
    device: Device | None = None,
    **conditions: Any,
) -> ParallelSolution:
    """The samples of ``sdekit.sample`` with the same arguments, in fewer calls of the network, each of a larger batch.

    A batch of b samples calls the network with b·window states at a time and holds some ten times as many. The device
    is asked once a round how far the run is.

    Args:
        model, shape, solver, nfe, steps, grid, seed, noise, start, final, progress, batch_size, first, dtype, device,
            conditions: as in ``sdekit.sample``; nfe and steps say what the run is, not what it takes.
        window: how many of the run's evaluations are made at once.
        tolerance: an evaluation's state counts as found when a round changes no sample's by more than this, in the
            root mean square and in units of √(α² + σ²). Its own error is then some tenth of the change.

    Raises ValueError as ``sdekit.sample`` does, and for a window below 1 or a tolerance that is not positive.

    >>> import sdekit as sk
    >>> model = sk.targets.GaussianMixture(torch.tensor([[-1.0], [1.0]]), torch.tensor([0.3, 0.3])).model(sk.VP())
    >>> run = {"solver": "ddim", "nfe": 100, "grid": "time", "seed": 0}
    >>> found, one_by_one = sample(model, (4, 1), **run), sk.sample(model, (4, 1), **run)
    >>> torch.allclose(found.x, one_by_one.x, atol=1e-4), found.rounds < 20
    (True, True)
    """
    source = lookup("noise", noise, SOURCES)
    n, *event = check_shape(shape, start)
    size = n if batch_size is None else batch_size
    check_count("batch_size", size, 1, "it is how many samples run at once")
    check_count("first", first, 0, "it is the number of the first sample")
    _check(window, tolerance)
    check_conditions(model, conditions, sample)
    conditions = as_rows(model, conditions, n)
    seed = secrets.randbits(63) if seed is None else seed
    where = check_device(model, device)
    dtype = dtype if start is None else start.dtype
    plan = get(solver).plan(model.process, nfe=nfe, steps=steps, grid=grid, final=final).to(where, dtype, event).fused
    found, before = list[tuple[Tensor, int, int]](), model.nfe
    batches = range(0, n, size)
    with progress_bar(progress, len(batches) * plan.nfe) as advance:
        for place in batches:
            samples = first + torch.arange(place, min(place + size, n), device=where)
            draw = source(seed, plan.intervals, samples, event, dtype)
            x = start_of(plan, seed, samples, event, dtype) if start is None else start[place : place + size].to(where)
            network = _network(model, conditions_of(conditions, n, place, size), len(x))
            found.append(_rounds(plan, x, draw, network, model.process, window, tolerance, advance))
    parts, rounds, evaluations = zip(*found)
    each = sum(asked * len(part) for asked, part in zip(evaluations, parts)) / n
    each *= (model.nfe - before) / sum(rounds)  # two at each, where guidance calls two networks
    return ParallelSolution(torch.cat(parts), max(rounds), each, seed, plan.rows[-1].to.sigma, space_of(model))


Network = Callable[[Tensor, Sequence[float]], Tensor]
Near = Callable[[int, Tensor], Tensor]  # v at a state near the i-th one
Known = tuple[Tensor, Tensor]  # states [places, n, …] and v there
Answer = Callable[[int, Tensor, Knot], Tensor]


def _network(model: Model, conditions: Mapping[str, Any], n: int) -> Network:
    """v [places, n, …] at states [places, n, …] and a time for each place, in one call."""
    rows = batched(conditions, n)

    def network(states: Tensor, times: Sequence[float]) -> Tensor:
        t = torch.tensor(times, dtype=torch.float64).to(states.device, non_blocking=True).repeat_interleave(n)
        repeated = {name: value.repeat(len(times), *[1] * (value.ndim - 1)) for name, value in rows.items()}
        return model.predict("v", states.flatten(0, 1), t, **{**conditions, **repeated}).view_as(states)

    return network


@dataclass(frozen=True)
class _Place:
    """Where a walk over the rows stands: before ``row``, at the state x of the knot ``here``."""

    row: int
    here: Knot
    x: Tensor
    anchor: Tensor
    history: tuple[Tensor, ...] = ()


def _walk(plan: Plan, place: _Place, answer: Answer, draw: Draws) -> Iterator[_Place]:
    """From ``place`` on, before each evaluation and at the end; ``answer(i, x, knot)`` is the i-th of them."""
    here, x, anchor, history = place.here, place.x, place.anchor, deque(place.history, maxlen=plan.memory)
    asked = 0
    for number, row in enumerate(plan.rows[place.row :], place.row):
        if row.evaluate:
            yield _Place(number, here, x, anchor, tuple(history))
            prediction = answer(asked, x, here)
            history.appendleft(prediction if row.linear is None else prediction - row.linear * x)
            asked += 1
        x, here = combine(row, anchor, history, draw), row.to
        anchor = x if row.commit else anchor
    yield _Place(len(plan.rows), here, x, anchor)


def _rounds(
    plan: Plan, x: Tensor, draw: Draws, network: Network, process: Process, window: int, tolerance: float, tell: Tell
) -> tuple[Tensor, int, int]:
    """The end of the run from x, the rounds that it took and the evaluations of each sample."""

    def walk(place: _Place, v: Near) -> Iterator[_Place]:
        def answer(i: int, x: Tensor, knot: Knot) -> Tensor:
            c_x, c_v = convert("v", plan.predicts, process, knot.t)
            return x * c_x + v(i, x) * c_v

        return _walk(plan, place, answer, draw)

    places, past, rounds, evaluations = [_Place(0, plan.start, x, x)], list[Known](), 0, 0
    guess = torch.zeros_like(x)  # v of N(0, 1) data
    while places[0].row < len(plan.rows):
        places += islice(walk(places[-1], _constant(guess)), 1, window + 2 - len(places))
        asked = [place for place in places[:window] if place.row < len(plan.rows)]
        states = torch.stack([place.x for place in asked])
        v = network(states, [place.here.t for place in asked])
        better = [*islice(walk(places[0], _linear(states, v, past)), len(asked) + 1)]
        found = _found(places, better, tolerance)
        past = [(old[found:], old_v[found:]) for old, old_v in [*past, (states, v)][-_MEMORY:]]
        places, guess, rounds, evaluations = better[found:], v[-1], rounds + 1, evaluations + len(asked)
        tell(found)
    return places[0].x, rounds, evaluations


def _constant(v: Tensor) -> Near:
    return lambda i, x: v


def _linear(states: Tensor, v: Tensor, past: Sequence[Known]) -> Near:
    """v near ``states``: linear along the changes since the rounds before, constant across them."""
    flat_states, flat_v = (both.reshape(*both.shape[:2], -1) for both in (states, v))
    basis = list[Known]()
    for old_states, old_v in reversed(past):
        if not (known := len(old_states)):
            continue
        q, y = torch.zeros_like(flat_states), torch.zeros_like(flat_v)
        q[:known] = old_states.flatten(2) - flat_states[:known]
        y[:known] = old_v.flatten(2) - flat_v[:known]
        length = q.norm(dim=-1, keepdim=True)
        for other_q, other_y in basis:
            part = _inner(other_q, q)
            q, y = q - part * other_q, y - part * other_y
        rest = q.norm(dim=-1, keepdim=True)
        # what is left of a change along the others is rounding; where nothing changed, 0/0
        factor = torch.where(rest > _PARALLEL * length, 1 / rest, 0)
        basis.append((_finite(q * factor), _finite(y * factor)))

    def near(i: int, x: Tensor) -> Tensor:
        value, change = flat_v[i], x.reshape(flat_v[i].shape) - flat_states[i]
        for q, y in basis if i else ():  # at the first it is known, whatever became of the others
            value = value + _inner(q[i], change) * y[i]
        return value.view_as(x)

    return near


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def _finite(x: Tensor) -> Tensor:
    """A guess that ran away may not keep those of the next rounds from being finite."""
    return torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)


def _found(places: Sequence[_Place], better: Sequence[_Place], tolerance: float) -> int:
    """How many places from the first on are passed: the next is exact, those after it where they no longer move."""
    if len(better) < 3:
        return 1
    old, new = (torch.stack([place.x for place in some[2:]]) for some in (places, better))
    moved = (new - old).reshape(*new.shape[:2], -1).square().mean(-1).sqrt().amax(1).tolist()
    scales = [math.hypot(place.here.alpha, place.here.sigma) for place in better[2:]]
    return 1 + sum(1 for _ in takewhile(lambda both: both[0] <= tolerance * both[1], zip(moved, scales)))
