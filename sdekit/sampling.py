"""The loop: run a solver's table on a model."""

from __future__ import annotations

import inspect
import secrets
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sdekit.correction import Correct, Langevin
from sdekit.door import Count, Device, Evaluations, FloatDtype, Place, Rows, Seed, Shape, door, record
from sdekit.grid import GridSpec
from sdekit.misfit import warn_of_start
from sdekit.model import in_evaluation_mode
from sdekit.names import lookup, unknown
from sdekit.noise import SOURCES, Draws, normal
from sdekit.process import Knot, Process
from sdekit.solvers import Solver, get
from sdekit.solvers.registry import check_count
from sdekit.solvers.tableau import Plan, Row

Callback = Callable[[int, float, Tensor], None]


@runtime_checkable
class Model(Protocol):
    """What the loop asks of a model; ``ScoreModel`` is one, and so is whatever wraps it."""

    nfe: int

    @property
    def process(self) -> Process: ...

    @property
    def device(self) -> torch.device: ...

    def predict(self, kind: str, x: Tensor, t: float | Tensor, /, **conditions: Any) -> Tensor: ...


class Wrapper:
    """What a model around another has of it: the process and the device.

    >>> from sdekit import VP, ScoreModel
    >>> class Halved(Wrapper):
    ...     def __init__(self, model):
    ...         self.model = model
    >>> Halved(ScoreModel(lambda x, t: x, VP())).process == VP()
    True
    """

    model: Model

    @property
    def process(self) -> Process:
        """The process of the model inside."""
        return self.model.process

    @property
    def device(self) -> torch.device:
        """The device of the model inside."""
        return self.model.device


@record
@dataclass(frozen=True)
class Solution:
    """What ``sample`` returns.

    Attributes:
        x: samples [n, *event].
        nfe: network evaluations that each sample took.
        t: the times of ``trajectory``; the denoised state stands at t = 0.
        trajectory: states at those times [len(t), n, *event] with ``keep="all"``, otherwise None.
        seed: the seed that repeats the run.
        sigma: σ of the noise that x still carries: 0 where it was denoised, which under ``VE`` t = 0 does not say.
        space: ``"latents"`` where the model is one of latents (``latent``), whose decoder makes data of x.
    """

    x: Float[Tensor, "n *event"]
    nfe: int
    t: tuple[float, ...]
    trajectory: Float[Tensor, "times n *event"] | None
    seed: int
    sigma: float
    space: str = "data"


def space_of(model: object) -> str:
    """What the states of a model are, or of the model that it wraps: ``"data"``, or ``"latents"`` of a ``Latent``."""
    while model is not None and not hasattr(model, "space"):
        model = getattr(model, "model", None)
    return getattr(model, "space", "data")


@door
def march(
    plan: Plan,
    model: Model,
    x: Annotated[Tensor, Rows(1)],
    draw: Draws,
    correct: Correct | None = None,
    look: bool = True,
    **conditions: Any,
) -> Iterator[tuple[Knot, Tensor]]:
    """Run the plan's rows from x and yield each committed (knot, x). Differentiable; no host read.

    The network stays in the mode it is in; ``model.evaluating`` puts it into evaluation mode.

    ``draw(start, end)`` gives the unit Wiener increment over that λ-interval, of x's shape.
    ``correct(before, knot, x)`` gives what takes the place of x after each step, except where x is denoised.
    ``look``: whether what is yielded before the end is looked at: a row's ``shown`` is made only then.

    >>> from sdekit import ScoreModel, VP
    >>> plan = get("ddim").plan(VP(), nfe=3, final="none")
    >>> model, no_noise = ScoreModel(lambda x, t: x, VP()), lambda start, end: torch.zeros(1, 2)
    >>> states = march(plan, model, torch.ones(1, 2), no_noise)
    >>> len(list(states))
    3
    """
    plan = plan.to(x.device, x.dtype, x.shape[1:])
    anchor, here, before = x, plan.start, plan.start
    history: deque[Tensor] = deque(maxlen=plan.memory)
    for row in plan.rows:
        if row.evaluate:
            F = model.predict(plan.predicts, x, here.t, **conditions)  # noqa: N806
            history.appendleft(F if row.linear is None else F - row.linear * x)
        x, here = combine(row, anchor, history, draw), row.to
        if row.commit:
            x = correct(before, here, x) if correct is not None and here.sigma > 0 else x
            shown = row.shown if look else None
            state = (here, x) if shown is None else (shown.to, combine(shown, anchor, history, draw))
            anchor, before = x, here
            yield state


def combine(row: Row, anchor: Tensor, history: Iterable[Tensor], draw: Draws) -> Tensor:
    """anchor·x + Σ_j b_j F_{−j} + shift + Σ_k c_k z_k."""
    x = anchor * row.anchor
    terms = [*zip(row.history, history), *((c.coefficient, draw(c.start, c.end)) for c in row.noise)]
    for factor, term in terms:
        x = x + factor * term if isinstance(factor, Tensor) else x.add_(term, alpha=factor)
    return x if row.shift is None else x + row.shift


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
    corrector: Langevin | None = None,
    start: Tensor | None = None,
    final: str = "auto",
    keep: str = "last",
    callback: Callback | None = None,
    progress: bool = False,
    batch_size: Count | None = None,
    first: Place = 0,
    dtype: FloatDtype = torch.float32,
    device: Device | None = None,
    **conditions: Any,
) -> Solution:
    """Draw samples: solve from t_max to t_min with a solver of the registry.

    Networks run in evaluation mode and come back in the mode they were in.

    Args:
        model: a ``ScoreModel``, or what wraps one.
        shape: [n, *event] of the samples.
        solver: a name in ``solvers.names()``, with options as in ``"ddim(eta=0.5)"``, or a ``Solver``. ``"auto"`` picks
            one, deterministic, by the number of evaluations, and its grid.
        nfe: network evaluations for each sample, exact, that of a final denoising among them.
        steps: the number of steps, instead of ``nfe``.
        grid: a name in ``grid.GRIDS`` or the times, decreasing; ``"auto"`` is the solver's own (``Solver.grid``).
        seed: sample i gets the same noise for the same seed, whatever ``batch_size`` or device; None draws one.
            Samples are then equal to the bit where the network's own results do not depend on the batch's size.
        noise: ``"independent"`` draws each interval's normals anew; ``"brownian"`` takes them from one path for each
            (seed, sample), the same for every grid and every solver (``noise.path``).
        corrector: Langevin corrections after each step (``correction.Langevin``), counted in ``nfe``.
        start: the state at the grid's first time [n, *event]; by default σ(t_max) times normal numbers.
        final: how the noise left at t_min is taken off: ``"reuse"`` by the predictions made on the way, at no
            evaluation, ``"denoise"`` by one more at t_min, ``"none"`` not at all: the state at t_min, which is what
            ``log_prob`` and ``encode`` take. ``"auto"`` reuses in runs of fewer than 20 evaluations that end at
            σ/α ≤ 0.02, and evaluates in others.
        keep: ``"all"`` keeps the state at every knot in ``trajectory``.
        callback: called as ``callback(step, t, x)`` after each step of each batch.
        progress: show a progress bar on stderr.
        batch_size: samples run at once (default: all).
        first: the number of the first sample: several calls, in any processes, make one set (``distributed``).
        dtype: of the state; ignored where ``start`` gives one.
        device: of the state; by default the model's.
        conditions: passed to the network; a tensor, numpy array or list whose first dimension is n is split with the
            batch and reaches the network as a tensor, anything else as it is.

    Raises ValueError for an unknown name, a budget too small, a bad grid, a list of n that holds no numbers, or shapes
    or devices that do not fit. Warns (``misfit.MisfitWarning``) where samples on the CPU lie so far from 0 that the
    start N(0, σ²) misses their mean.

    >>> from sdekit import ScoreModel, VP
    >>> model = ScoreModel(lambda x, t: x, VP(), predicts="eps")
    >>> out = sample(model, (4, 2), solver="ddim", nfe=5, seed=0)
    >>> out.x.shape, out.nfe
    (torch.Size([4, 2]), 5)
    """
    if keep not in ("last", "all"):
        raise unknown("keep", keep, ("last", "all"))
    source = lookup("noise", noise, SOURCES)
    n, *event = check_shape(shape, start)
    size = n if batch_size is None else batch_size
    check_count("batch_size", size, 1, "it is how many samples run at once")
    check_count("first", first, 0, "it is the number of the first sample")
    check_conditions(model, conditions, sample)
    conditions = as_rows(model, conditions, n)
    seed = secrets.randbits(63) if seed is None else seed
    where = check_device(model, device)
    dtype = dtype if start is None else start.dtype
    plan, corrections = _plan(get(solver), corrector, model.process, nfe, steps, grid, final)
    plan = plan.to(where, dtype, event)
    rows = plan.fused if corrector is None else plan  # corrections need the states between themselves
    look = keep == "all" or callback is not None
    before, batches = model.nfe, range(0, n, size)
    kept: Tensor | None = None
    with progress_bar(progress, len(batches) * sum(row.commit for row in plan.rows)) as advance:
        for place in batches:
            samples = first + torch.arange(place, min(place + size, n), device=where)
            draw = source(seed, plan.intervals, samples, event, dtype)
            x = start_of(plan, seed, samples, event, dtype) if start is None else start[place : place + size].to(where)
            parts = conditions_of(conditions, n, place, size)
            correct = corrector and corrector.correct(corrections, _score(model, parts), seed, samples)
            states = [x]
            for step, (knot, x) in enumerate(march(rows, model, x, draw, correct, look, **parts)):
                states = [*states, x] if keep == "all" else [x]
                if callback is not None:
                    callback(step, knot.t, x)
                advance()
            kept = _place(kept, states, place, n)
    assert kept is not None
    solution = _solution(plan, kept, keep, (model.nfe - before) // len(batches), seed, space_of(model))
    if start is None:
        warn_of_start(model.process, solution.x)
    return solution


def _plan(
    solver: Solver,
    corrector: Langevin | None,
    process: Process,
    nfe: int | None,
    steps: int | None,
    grid: GridSpec,
    final: str,
) -> tuple[Plan, list[int]]:
    if corrector is None:
        return solver.plan(process, nfe=nfe, steps=steps, grid=grid, final=final), []
    return corrector.plan(solver, process, nfe, steps, grid, final)


def _score(model: Model, conditions: Mapping[str, Any]) -> Callable[[Tensor, float], Tensor]:
    return lambda x, t: model.predict("score", x, t, **conditions)


def _place(kept: Tensor | None, states: list[Tensor], place: int, n: int) -> Tensor:
    """A batch's states in their rows of what is kept [states, n, *event]: joined in the end, they were held twice."""
    if len(states[0]) == n:
        return torch.stack(states) if len(states) > 1 else states[0][None]
    if kept is None:
        kept = states[0].new_empty(len(states), n, *states[0].shape[1:])
    for all_of_them, x in zip(kept, states):
        all_of_them[place : place + len(x)] = x
    return kept


def _solution(plan: Plan, kept: Tensor, keep: str, nfe: int, seed: int, space: str) -> Solution:
    knots = (plan.start, *(row.to for row in plan.rows if row.commit))
    times, sigma = tuple(knot.t for knot in knots), knots[-1].sigma
    if keep == "all":
        return Solution(kept[-1].clone(), nfe, times, kept, seed, sigma, space)
    return Solution(kept[0], nfe, times[-1:], None, seed, sigma, space)


def start_of(plan: Plan, seed: int, samples: Tensor, event: Sequence[int], dtype: torch.dtype) -> Tensor:
    """σ at the plan's start times normal numbers."""
    return normal(seed, 0, samples, event, dtype) * plan.start.sigma


def conditions_of(conditions: Mapping[str, Any], n: int, first: int, size: int) -> dict[str, Any]:
    """The conditions of one batch: of those with a row for each sample, the part from ``first`` on."""
    return {**conditions, **{name: rows[first : first + size] for name, rows in batched(conditions, n).items()}}


def as_rows(model: Model, conditions: Mapping[str, Any], n: int) -> dict[str, Any]:
    """The conditions, of which lists and numpy arrays with a row for each of n samples are tensors on the device.

    Raises ValueError for a list of n that is no array of numbers: nothing could split it with the batch.
    """
    sized = {name: c for name, c in conditions.items() if isinstance(c, list) or (isinstance(c, np.ndarray) and c.ndim)}
    return {**conditions, **{name: _tensor(name, c, model.device) for name, c in sized.items() if len(c) == n}}


def _tensor(name: str, rows: list[Any] | np.ndarray, device: torch.device) -> Tensor:
    try:
        return torch.as_tensor(rows, device=device)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"{name}: a {type(rows).__name__} of {len(rows)}, one entry for each sample, that is no array of numbers:"
            " give a tensor whose first dimension counts the samples"
        ) from None


def batched(conditions: Mapping[str, Any], n: int) -> dict[str, Tensor]:
    """The conditions with a row for each sample: tensors whose first dimension is n."""
    return {name: c for name, c in conditions.items() if isinstance(c, Tensor) and c.ndim > 0 and c.shape[0] == n}


def check_shape(shape: Sequence[int], start: Tensor | None) -> list[int]:
    """``shape`` as a list; ValueError where it is no shape, or ``start`` does not fit it."""
    sizes = list(shape)
    if not sizes or any(not isinstance(size, int) or size < 1 for size in sizes):
        raise ValueError(f"shape={tuple(sizes)}: it must be [n, *event], whole numbers of at least 1")
    if start is not None and list(start.shape) != sizes:
        raise ValueError(f"start has shape {list(start.shape)}, shape says {sizes}: they must be equal")
    if start is not None and not start.is_floating_point():
        raise ValueError(f"start has dtype {start.dtype}: it must be a floating-point type")
    return sizes


def check_device(model: Model, device: torch.device | str | None) -> torch.device:
    """The device of the state; ValueError where the network's parameters are on one of another type."""
    own = model.device
    where = torch.device(own if device is None else device)
    fixed = isinstance(net := getattr(model, "net", None), torch.nn.Module) and any(True for _ in net.parameters())
    if fixed and where.type != own.type:
        raise ValueError(f"device={str(where)!r}, but the network's parameters are on {str(own)!r}: move one of them")
    return where


def check_conditions(model: Model, conditions: Mapping[str, Any], function: Callable[..., Any]) -> None:
    """A misspelt argument of ``function`` would reach the network: name it before the run."""
    net = getattr(model, "net", None)
    if not conditions or net is None:
        return
    known = inspect.signature(net.forward if isinstance(net, torch.nn.Module) else net).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for name in conditions:
        if name not in known:
            own = [word for word in inspect.signature(function).parameters if word != "conditions"]
            kind = f"argument of {function.__name__} or of the network"
            raise unknown(kind, name, [*own, *list(known)[2:]])


@contextmanager
def progress_bar(show: bool, total: int, what: str = "sampling") -> Generator[Callable[..., object]]:
    """A bar on stderr where ``show``; what it yields is called for each of ``total`` steps, or for several at once."""
    if not show:
        yield lambda steps=1: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda steps=1: bar.advance(task, steps)
