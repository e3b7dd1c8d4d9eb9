r"""Steps versus quality: every solver, grid and budget on one model, measured against real data.

The noise is the same for every cell: sample i of each solver starts at the same state. Paired metrics
compare a deterministic solver with the accurate end of the probability-flow ODE from that state, the others compare the
set with real data. Both ends are denoised at t_min alike, so that no cell wins by where it stops.

Each finished cell is one line of ``results.jsonl`` at once; a run with the same ``out`` computes only the rest, and
several processes with the same ``out`` share it out. A cell is taken from there only where all that decides it is the
same: the model's code, weights, attributes and wrappers (``identity``), its conditions, and what it gives at a few
fixed points; the data and the feature map; the solver's table.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sdekit.comparison.clock import network_seconds, timed
from sdekit.comparison.contenders import Contender, Job, Spec, Tabled, Tick, check_grids, contenders
from sdekit.comparison.ruler import Features, Ruler, checked_data, chosen
from sdekit.door import Count, FileName, door, record
from sdekit.grid import GridSpec
from sdekit.identity import STATES, Behaviour, UnidentifiedError, behaviour, identify
from sdekit.jackknife import GROUPS
from sdekit.misfit import warn_of_start
from sdekit.model import in_evaluation_mode
from sdekit.results import OUT_OF_MEMORY, PREVIEW, Cell, Previews, Store
from sdekit.sampling import Model, as_rows, check_conditions, conditions_of, space_of
from sdekit.solvers import get
from sdekit.solvers.registry import check_count
from sdekit.targets import Target

Samples = Float[Tensor, "_ *_"] | np.ndarray
Progress = Callable[[str, int, int], None]

# one solver of each kind: what a first comparison shows; ``solvers.names()`` has them all
DEFAULT_SOLVERS = (
    "auto", "ddim", "ddpm", "dpm-solver-2", "dpm-solver-3", "dpmpp-2m", "dpmpp-2m-sde", "euler", "euler-maruyama",
    "heun", "unipc-2",
)  # fmt: skip
# solver, NFE and grid of the endpoint that stands for the exact one, and of the check of its first CHECKED samples
ENDPOINT = ("dpm-solver-3", 150, "logsnr")
CHECK = ("unipc-2", 200, "logsnr")
CHECKED = 64
BATCH = 1024  # samples run at once unless it is said


@record
@dataclass(frozen=True)
class Comparison:
    """What ``compare`` returns.

    Attributes:
        cells: in the order by NFE, then grid, solver and seed; those whose evaluations are their own affair are last.
        floor: for metrics against real data, their value for another set of real data of the same size:
            nothing generated can be told from real data below it. For paired ones, the endpoint's own error.
        spread: the floor's standard deviation over sets of real data of that size.
        samples: the first ``PREVIEW`` samples of each cell, by its key.
        real: as many of ``reference``.
        space: ``"latents"`` where the model is one of latents (``latent``): all distances are between latents.
    """

    cells: tuple[Cell, ...]
    floor: Mapping[str, float]
    spread: Mapping[str, float]
    samples: Mapping[str, Tensor] = field(repr=False)
    real: Tensor = field(repr=False)
    space: str = "data"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during ``compare``: ``result`` holds every finished cell."""

    def __init__(self, result: Comparison) -> None:
        super().__init__(f"interrupted after {len(result.cells)} cells")
        self.result = result


@door
@in_evaluation_mode
@torch.no_grad()
def compare(
    model: Model,
    reference: Samples,
    *,
    solvers: Sequence[Spec] = DEFAULT_SOLVERS,
    nfe: Sequence[int] = (5, 10, 20, 50),
    grid: GridSpec | Sequence[GridSpec] = "auto",
    samples: Count = 512,
    seed: int | Sequence[int] = 0,
    real: Samples | None = None,
    features: Features | None = None,
    metrics: str | Sequence[str] | None = None,
    law: Target | None = None,
    train: Samples | None = None,
    target: str = "model",
    out: FileName | None = None,
    batch_size: Count | None = None,
    progress: Progress | None = None,
    **conditions: Any,
) -> Comparison:
    r"""Measure each solver × grid × NFE × seed on ``model`` by metrics of ``metrics.METRICS``.

    Args:
        model: a ``ScoreModel``, or what wraps one; samples are drawn on its device, measured on the CPU.
        reference: real data [m, *event], best not seen in training; a tensor or a numpy array. For a model of latents,
            their latents: ``model.encode(data)``; the records then call the target ``"…, latents"``.
        solvers: names, with options as in ``"ddim(eta=0.5)"``, or ``Solver`` values, such as one fitted to the model,
            which the cells name alike; by default ``DEFAULT_SOLVERS``. An adaptive method, as in
            ``"dpm-solver-23(rtol=0.01)"``, is a row whose NFE is what it took; ``"parallel(solver='ddim')"`` runs one
            in parallel and counts rounds beside evaluations. Any other sampler is a function
            f(model, start, nfe, **conditions) -> x, or a ``Function`` with a name of its own.
        nfe: network evaluations, exact. A solver that cannot use so few gives a cell with a note.
        grid: names or times, such as ``fit_gits`` returns, one or several; ``"auto"`` is each solver's own. Times
            are called by their number, ends and a digest; at an NFE that their number does not fit, cells have a note.
        samples: size of each generated set; small ones bias distances upwards, the floor alike.
        seed: of the starts and of all noise, the same for every solver; several are measured each, and the report
            shows their mean.
        real: more real data, for the floor: as many of it as ``samples``. None splits ``reference`` in halves.
        features: f(x [n, *event]) -> [n, k] for metrics in a feature space (the Fréchet distance).
        metrics: names in ``metrics.METRICS``; by default ``metrics.DEFAULT``, the cheap ones.
        law: the data's exact law, of ``sdekit.targets``, for metrics that need its density or modes.
        train: data that the network was trained on, for metrics that look for copies of them.
        target: what the records call the model.
        out: a folder for ``results.jsonl`` and samples. A model or feature map that holds what cannot be read, such
            as a generator or a lock, is warned of: its cells are computed again in each run. The same call in other
            processes, on any machine that sees the folder, takes its share of the cells.
        batch_size: samples run at once; by default at most ``BATCH``, so that memory does not grow with them.
        progress: called as ``progress(what, done, total)``, in network evaluations.
        conditions: as in ``sample``: what has a row for each of ``samples`` is split with the batch.

    Raises ValueError for unknown names, a bad grid, nfe or samples too small, and data that are empty, too few, not
    finite or no floating-point [m, *event]; ``Interrupted`` at Ctrl-C. A cell that runs out of memory, does not arrive
    or gives NaN carries a note in the place of metrics.

    >>> from sdekit.process import VP
    >>> from sdekit.targets import Gaussian
    >>> target = Gaussian(torch.zeros(2), torch.eye(2))
    >>> result = compare(target.model(VP()), target.sample(64), solvers=["ddim"], nfe=[5], samples=32)
    >>> sorted(result.cells[0].metrics)
    ['energy', 'frechet', 'median_error', 'q90_error', 'rmse', 'sliced_wasserstein']
    """
    check_count("samples", samples, 2, "a distance between sets needs at least 2")
    rows, seeds = contenders(solvers, grid, nfe), _seeds(seed)
    check_grids(model.process, rows)
    check_conditions(model, conditions, compare)
    conditions = as_rows(model, conditions, samples)
    data = checked_data("reference", reference)
    warn_of_start(model.process, data)
    more = None if real is None else checked_data("real", real)
    given = {"law": law, "train": None if train is None else checked_data("train", train)}
    given = {name: thing for name, thing in given.items() if thing is not None}
    measured = chosen(metrics, given)
    embedding = _identity("features", features, out) + "".join(_identity(name, given[name], out) for name in given)
    ruler = Ruler.make(data, more, features, samples, embedding, measured, given)
    size = min(samples, BATCH) if batch_size is None else batch_size
    jobs = [Job(model, (samples, *data.shape[1:]), one, size, conditions) for one in seeds]
    store = Store(None if out is None else Path(out))
    store.retry()
    target = target if space_of(model) == "data" else f"{target}, {space_of(model)}"
    run = _Run(jobs, target, ruler, _network(model, conditions, out), store, _Ticker(progress))
    planned = run.tasks(rows)
    left = [key for key in planned if key not in store.cells]
    run.ticker.total = run.cost([planned[key] for key in left])
    try:
        store.compute(left, lambda key: store.add(run.measure(key, planned[key])))
    except KeyboardInterrupt:
        raise Interrupted(run.result([key for key in planned if key in store.cells])) from None
    return run.result(list(planned))


def _seeds(seed: int | Sequence[int]) -> list[int]:
    seeds = [seed] if isinstance(seed, int) else list(seed)
    for one in seeds:
        check_count("seed", one, 0, "it numbers the noise")
    if not seeds:
        raise ValueError("seed: none given, at least 1 is needed")
    return list(dict.fromkeys(seeds))


@dataclass(frozen=True)
class _Task:
    """A cell to measure: the digest of what its row does, where it cannot run why, and whether it draws noise."""

    row: Contender
    job: Job
    plan: str
    note: str
    stochastic: bool


@dataclass(frozen=True)
class _Run:
    """What all cells of a comparison share; a job for each seed."""

    jobs: Sequence[Job]
    target: str
    ruler: Ruler
    network: str
    store: Store
    ticker: _Ticker

    def tasks(self, rows: Sequence[Contender]) -> dict[str, _Task]:
        """The cells to measure by their keys."""
        found = dict[str, _Task]()
        for row in rows:
            (plan, note), stochastic = self._table(row), row.stochastic
            asked = repr((row.solver, row.grid, row.nfe, plan, note, self.shared))
            for job in self.jobs:  # some microseconds each: every process does this for every cell
                key = sha256(f"{asked} {self.endpoint_keys[job.seed]}".encode()).hexdigest()[:16]
                found[key] = _Task(row, job, plan, note, stochastic)
        return found

    def _table(self, row: Contender) -> tuple[str, str]:
        """The digest of what the row does, and, where there is none, why it cannot run."""
        try:
            return _identity("solvers", row.table(self.jobs[0].model.process), self.store.folder), ""
        except ValueError as error:
            return "", str(error)

    def _cell(self, key: str, task: _Task, **known: Any) -> Cell:
        row, job = task.row, task.job
        facts: dict[str, Any] = {
            "target": self.target, "process": self.process, "solver": row.solver, "grid": row.grid, "nfe": row.nfe,
            "samples": job.shape[0], "seed": job.seed, "stochastic": task.stochastic, "note": task.note,
            "device": self.device, "versions": _versions(), "network": self.network,
            "data": self.ruler.digest, "plan": task.plan, "behaviour": self.behaviour, "key": key,
        }  # fmt: skip
        return Cell(**{**facts, **known})

    @cached_property
    def process(self) -> str:
        return str(self.jobs[0].model.process)

    @cached_property
    def device(self) -> str:
        return str(self.jobs[0].model.device)

    @cached_property
    def shared(self) -> str:
        """The digest of what decides every cell."""
        measured = (self.ruler.digest, GROUPS, *sorted(self.ruler.metrics))
        return identify((self.target, self.network, self.behaviour, *measured))

    @cached_property
    def endpoint_keys(self) -> dict[int, str]:
        """By seed."""
        process = self.jobs[0].model.process
        plans = [get(name).plan(process, nfe=nfe, grid=grid) for name, nfe, grid in (ENDPOINT, CHECK)]
        decides = identify((self.network, self.behaviour, plans))  # once: a plan has hundreds of parts
        return {job.seed: f"endpoint-{identify((decides, job.shape, job.seed))}" for job in self.jobs}

    @cached_property
    def behaviour(self) -> Behaviour:
        """What the model gives at a few points: it tells models apart that ``network`` does not."""
        if self.store.folder is None:
            return ()
        job = self.jobs[0]
        found = behaviour(job.model, job.shape[1:], **conditions_of(job.conditions, job.shape[0], 0, STATES))
        return self.store.settled(self.network, found)

    @cached_property
    def call_seconds(self) -> float:
        """Of one evaluation of all samples of a cell by the bare network."""
        return network_seconds(self.jobs[0])

    def cost(self, tasks: Sequence[_Task]) -> int:
        """Network evaluations of those cells, as far as it is known, with the endpoints that they need."""
        tasks = [task for task in tasks if not task.note]
        seeds = {task.job.seed for task in tasks if not task.stochastic} if self.ruler.paired else set[int]()
        fresh = sum(job.seed in seeds and not self.store.has(self.endpoint_keys[job.seed]) for job in self.jobs)
        n = self.jobs[0].shape[0]
        return sum(task.row.nfe * n for task in tasks) + fresh * (ENDPOINT[1] * n + CHECK[1] * min(CHECKED, n))

    def endpoint(self, job: Job) -> tuple[Tensor | None, dict[str, float]]:
        """The exact ODE's end from each start (None where it diverged) and its own error."""

        def both() -> dict[str, Tensor]:
            n, checked = job.shape[0], min(CHECKED, job.shape[0])
            few = conditions_of(job.conditions, n, 0, checked)
            part = replace(job, shape=(checked, *job.shape[1:]), conditions=few)
            return {
                "x": _draw(ENDPOINT, job, self.ticker.start("exact endpoint")),
                "check": _draw(CHECK, part, self.ticker.start("check of the endpoint")),
            }

        found = self.store.once(self.endpoint_keys[job.seed], both)
        if not all(bool(x.isfinite().all()) for x in found.values()):
            return None, {}
        return found["x"], self.ruler.against_endpoint(found["x"][: len(found["check"])], found["check"])

    def measure(self, key: str, task: _Task) -> Cell:
        """The cell with its metrics; its samples are kept."""
        row, job = task.row, task.job
        if task.note:
            return self._cell(key, task)
        endpoint, error = (None, {}) if task.stochastic or not self.ruler.paired else self.endpoint(job)
        tick = self.ticker.start(f"{row.solver}, {row.grid}, NFE {row.nfe or '…'}")
        try:
            (x, evaluations, rounds), seconds, peak = timed(row, job, tick)
            network = self.call_seconds * evaluations
        except Exception as failure:
            if (note := _note(failure, row)) is None:
                raise
            return self._cell(key, task, note=note)
        known: dict[str, Any] = {
            "nfe": row.nfe or round(evaluations), "evaluations": evaluations, "rounds": rounds,
            "floor": {**self.ruler.floor, **error},
            "seconds": round(seconds, 6), "network_seconds": round(network, 6), "peak_memory": peak,
        }  # fmt: skip
        if lost := int((~x.isfinite()).flatten(1).any(1).sum()):
            known["note"] = f"diverged: {lost} of {len(x)} samples hold NaN or infinity"
        else:
            known |= self._metrics(x, endpoint)
        return self._cell(key, task, **known, preview=self.store.keep(key, x))

    def _metrics(self, x: Tensor, endpoint: Tensor | None) -> dict[str, Any]:
        metrics, rest = self.ruler.against_data(x), self.ruler.left_out(x)
        if endpoint is not None:
            metrics = self.ruler.against_endpoint(x, endpoint) | metrics
            rest |= self.ruler.against_endpoint_left_out(x, endpoint)
        return {"metrics": metrics, "jackknife": rest}

    def result(self, keys: Sequence[str]) -> Comparison:
        """What has been measured."""
        cells = [self.store.cells[key] for key in keys]
        floors = [cell.floor for cell in cells if cell.floor]
        known = {name: [floor[name] for floor in floors if name in floor] for name in self.ruler.paired}
        floor = {**self.ruler.floor, **{name: max(values) for name, values in known.items() if values}}
        space = space_of(self.jobs[0].model)
        previews = Previews(self.store, keys)
        return Comparison(tuple(cells), floor, self.ruler.spread, previews, self.ruler.data[:PREVIEW], space)


def _draw(rule: tuple[str, int, str], job: Job, tick: Tick) -> Tensor:
    name, nfe, grid = rule
    (row,) = contenders([name], grid, [nfe])
    return row.draw(job, tick).x.cpu()


def _note(failure: Exception, row: Contender) -> str | None:
    """Why a cell has no metrics; None for what is no affair of the cell, but an error of the run."""
    reason = f"{type(failure).__name__}: {' '.join(str(failure).split())}"
    if isinstance(failure, MemoryError | torch.OutOfMemoryError) or "not enough memory" in reason:
        return f"{OUT_OF_MEMORY}: {reason}"
    return None if isinstance(row, Tabled) else f"failed: {reason}"


class _Ticker:
    """Counts network evaluations and tells ``progress``."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress, self.total, self.done = progress, 0, 0.0

    def start(self, label: str) -> Tick:
        """A function to call with the evaluations made; those that nobody planned are added to the total."""

        def tick(more: float) -> None:
            self.done += more
            self.total = max(self.total, round(self.done))
            if self.progress is not None:
                self.progress(label, round(self.done), self.total)

        tick(0)
        return tick


def _identity(name: str, thing: object, out: object) -> str:
    """Its digest; where it has none, one that no other run has, so that nothing stored is taken for it."""
    try:
        return identify(thing)
    except UnidentifiedError as error:
        if out is not None:
            why = f"{name}: {error}: its cells in out={str(out)!r} will be computed again by each run"
            warnings.warn(why, stacklevel=4)
        return f"unidentified-{secrets.token_hex(8)}"


def _network(model: Model, conditions: Mapping[str, Any], out: object) -> str:
    """The digest of the model with its conditions."""
    network = _identity("model", model, out)
    return identify((network, _identity("conditions", conditions, out))) if conditions else network


@cache
def _versions() -> dict[str, str]:
    found = {name: [*metadata.distributions(name=name)] for name in ("sdekit", "torch")}
    return {name: one[0].version if one else "not installed" for name, one in found.items()}
