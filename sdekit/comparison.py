r"""Steps versus quality: every solver, grid and budget on one model, measured against real data.

The noise is the same for every cell: sample i of each solver starts at the same state. Paired metrics
compare a deterministic solver with the accurate end of the probability-flow ODE from that state, the others compare the
set with real data. Both ends are denoised at t_min alike, so that no cell wins by where it stops.

Each finished cell is one line of ``results.jsonl`` at once; a run with the same ``out`` computes only the rest. A
cell is taken from there only where all that decides it is the same: the model's code, weights, attributes and wrappers
(``identity``), and what it gives at a few fixed points; the data and the feature map; the solver's table.
"""

from __future__ import annotations

import math
import secrets
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import metadata
from itertools import product
from numbers import Real
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sdekit.data import as_tensor
from sdekit.grid import Grid, GridSpec
from sdekit.identity import Behaviour, UnidentifiedError, behaviour, identify
from sdekit.jackknife import GROUPS, left_out, standard_error
from sdekit.metrics import METRICS, Metric
from sdekit.misfit import warn_of_start
from sdekit.model import evaluating, in_evaluation_mode
from sdekit.noise import normal
from sdekit.prediction import PREDICTIONS
from sdekit.results import PREVIEW, Cell, Store
from sdekit.sampling import Callback, Model, sample, space_of
from sdekit.solvers import Solver, get
from sdekit.solvers.registry import check_count

Samples = Float[Tensor, "_ *_"] | np.ndarray
Progress = Callable[[str, int, int], None]
Features = Callable[[Tensor], Tensor]

# one solver of each kind: what a first comparison shows; ``solvers.names()`` has them all
DEFAULT_SOLVERS = (
    "auto", "ddim", "ddpm", "dpm-solver-2", "dpm-solver-3", "dpmpp-2m", "dpmpp-2m-sde", "euler", "euler-maruyama",
    "heun", "unipc-2",
)  # fmt: skip
FLOOR_DRAWS = 8  # subsets of the real data over which the floor is averaged
# solver, NFE and grid of the endpoint that stands for the exact one, and of the check of its first CHECKED samples
ENDPOINT = ("dpm-solver-3", 150, "logsnr")
CHECK = ("unipc-2", 200, "logsnr")
CHECKED = 64


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` returns.

    Attributes:
        cells: in the order they were computed: by NFE, then grid, then solver.
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


@in_evaluation_mode
@torch.no_grad()
def compare(
    model: Model,
    reference: Samples,
    *,
    solvers: Sequence[str | Solver] = DEFAULT_SOLVERS,
    nfe: Sequence[int] = (5, 10, 20, 50),
    grid: GridSpec | Sequence[GridSpec] = "auto",
    samples: int = 512,
    seed: int = 0,
    real: Samples | None = None,
    features: Features | None = None,
    target: str = "model",
    out: str | Path | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    r"""Measure each solver × grid × NFE on ``model`` by every metric in ``metrics.METRICS``.

    Args:
        model: a ``ScoreModel``, or what wraps one; samples are drawn on its device, measured on the CPU.
        reference: real data [m, *event], best not seen in training; a tensor or a numpy array. For a model of latents,
            their latents: ``model.encode(data)``; the records then call the target ``"…, latents"``.
        solvers: names, with options as in ``"ddim(eta=0.5)"``, or ``Solver`` values, such as one fitted to the model,
            which the cells name alike; by default ``DEFAULT_SOLVERS``.
        nfe: network evaluations, exact. A solver that cannot use so few gives a cell with a note.
        grid: names or times, such as ``fit_gits`` returns, one or several; ``"auto"`` is each solver's own. Times
            are called by their number, ends and a digest; at an NFE that their number does not fit, cells have a note.
        samples: size of each generated set; small ones bias distances upwards, the floor alike.
        real: more real data, for the floor: as many of it as ``samples``. None splits ``reference`` in halves.
        features: f(x [n, *event]) -> [n, k] for metrics in a feature space (the Fréchet distance).
        target: what the records call the model.
        out: a folder for ``results.jsonl`` and samples. A model or feature map that holds what cannot be read, such
            as a generator or a lock, is warned of: its cells are computed again in each run.
        batch_size: samples run at once.
        progress: called as ``progress(what, done, total)``, in network evaluations.

    Raises ValueError for unknown names, a bad grid, nfe or samples too small, and data that are empty, too few, not
    finite or no floating-point [m, *event]; ``Interrupted`` at Ctrl-C.

    >>> from sdekit.process import VP
    >>> from sdekit.targets import Gaussian
    >>> target = Gaussian(torch.zeros(2), torch.eye(2))
    >>> result = compare(target.model(VP()), target.sample(64), solvers=["ddim"], nfe=[5], samples=32)
    >>> sorted(result.cells[0].metrics)
    ['energy', 'frechet', 'rmse', 'sliced_wasserstein']
    """
    check_count("samples", samples, 2, "a distance between sets needs at least 2")
    data = _data("reference", reference)
    warn_of_start(model.process, data)
    more = None if real is None else _data("real", real)
    ruler = _Ruler.make(data, more, features, samples, _identity("features", features, out))
    named, grids, space = _named(solvers), _named_grids(grid), space_of(model)
    target = target if space == "data" else f"{target}, {space}"
    network, store = _identity("model", model, out), Store(None if out is None else Path(out))
    run = _Run(model, (samples, *data.shape[1:]), seed, batch_size, target, ruler, network, named, grids, store)
    cells = run.cells(list(named), list(grids), nfe)
    todo = [cell for cell in cells if cell.key not in store.cells]
    ticker = _Ticker(progress, sum(cell.nfe * samples for cell in todo if not cell.note))
    floor, finished = dict(ruler.floor), list[Cell]()

    def result() -> Comparison:
        previews = {cell.key: found["x"] for cell in finished if (found := store.load(cell.key))}
        return Comparison(tuple(finished), floor, ruler.spread, previews, ruler.data[:PREVIEW], space)

    try:
        endpoint, error = run.endpoint(ticker, needed=any(not (cell.stochastic or cell.note) for cell in todo))
        floor.update(error)
        for cell in cells:
            if cell.key not in store.cells:
                store.add(*run.measure(replace(cell, floor=dict(floor)), endpoint, ticker))
            finished.append(store.cells[cell.key])
    except KeyboardInterrupt:
        raise Interrupted(result()) from None
    return result()


@dataclass(frozen=True)
class _Ruler:
    """Real data to measure against, and what it measures on more real data."""

    data: Tensor
    embedded: Tensor
    features: Features | None
    digest: str
    floor: Mapping[str, float]
    spread: Mapping[str, float]

    @classmethod
    def make(
        cls, reference: Tensor, real: Tensor | None, features: Features | None, samples: int, embedding: str
    ) -> _Ruler:
        if real is None:
            reference, real = reference[::2], reference[1::2]
        if min(len(reference), len(real)) < 2:
            raise ValueError(f"reference, real: {len(reference)} and {len(real)} samples: each needs at least 2")
        reference, real = reference.cpu(), real.cpu()
        bare = cls(reference, _embed(features, reference), features, "", {}, {})
        # one subset where it takes all of the real data: any other would be the same
        subsets = range(FLOOR_DRAWS if len(real) > samples else 1)
        orders = [normal(i, 0, torch.arange(len(real)), (), torch.float64).argsort() for i in subsets]
        values = [bare.against_data(real[order[:samples]]) for order in orders]
        table = {name: torch.tensor([value[name] for value in values], dtype=torch.float64) for name in values[0]}
        floor = {name: row.mean().item() for name, row in table.items()}
        if len(real) > samples:  # subsets share samples, and differ by less than sets drawn anew
            spread = {name: row.std().item() / math.sqrt(1 - samples / len(real)) for name, row in table.items()}
        else:
            spread = {name: standard_error(rest) for name, rest in bare.left_out(real).items() if rest}
        return replace(bare, digest=identify((reference, real, embedding)), floor=floor, spread=spread)

    def against_data(self, x: Tensor) -> dict[str, float]:
        return {name: metric.distance(*sets).item() for name, (metric, sets) in self._sets(x).items()}

    def left_out(self, x: Tensor) -> dict[str, list[float]]:
        return {name: left_out(metric.distance, *sets, paired=False) for name, (metric, sets) in self._sets(x).items()}

    def _sets(self, x: Tensor) -> dict[str, tuple[Metric, tuple[Tensor, Tensor]]]:
        """What each metric that is not paired compares."""
        pairs = {False: (x, self.data), True: (_embed(self.features, x), self.embedded)}
        return {name: (metric, pairs[metric.features]) for name, metric in METRICS.items() if not metric.paired}


def _named(solvers: Sequence[str | Solver]) -> dict[str, str | Solver]:
    """Each solver by what its cells are to call it: the name given, or that of a ``Solver`` with its options."""
    named: dict[str, str | Solver] = {}
    for spec in solvers:
        label = spec if isinstance(spec, str) else spec.label
        if get(named.setdefault(label, spec)) != get(spec):
            raise ValueError(f"solvers: two different ones are called {label!r}; compare them in two runs")
    return named


def _named_grids(given: GridSpec | Sequence[GridSpec]) -> dict[str, GridSpec]:
    """Each grid by what its cells are to call it: its name, or ``"6 times 1 … 0.001 #ab12"``."""
    one = isinstance(given, str) or any(isinstance(part, Real) for part in given)
    named: dict[str, GridSpec] = {}
    for spec in cast("list[GridSpec]", [given] if one else list(given)):
        if isinstance(spec, str):
            named[spec] = spec
            continue
        times = tuple(float(t) for t in spec)
        if len(times) < 2:
            raise ValueError(f"grid={list(times)}: {len(times)} times given, a grid has at least 2")
        label = f"{len(times)} times {times[0]:g} … {times[-1]:g} #{identify(times)[:4]}"
        if named.setdefault(label, times) != times:
            raise ValueError(f"grid: two different ones are called {label!r}; compare them in two runs")
    return named


def _data(name: str, given: Tensor | np.ndarray) -> Tensor:
    """Real data as a tensor, checked."""
    x = as_tensor(given)
    if x.ndim < 2 or not x.is_floating_point():
        raise ValueError(
            f"{name} has shape {list(x.shape)} and dtype {x.dtype}: it must be floating-point [m, *event], with [m, 1]"
            " for m numbers"
        )
    if not bool(x.isfinite().all()):
        raise ValueError(f"{name} holds NaN or infinity: every entry must be finite")
    return x


@dataclass(frozen=True)
class _Run:
    """What all cells of a comparison share."""

    model: Model
    shape: tuple[int, ...]
    seed: int
    batch_size: int | None
    target: str
    ruler: _Ruler
    network: str
    solvers: Mapping[str, str | Solver]
    grids: Mapping[str, GridSpec]
    store: Store

    def cells(self, solvers: Sequence[str], grids: Sequence[str], nfe: Sequence[int]) -> list[Cell]:
        """The cells to measure, cheapest first; one that has no plan carries a note."""
        for name, given in {"solvers": solvers, "nfe": nfe, "grid": grids}.items():
            if not given:
                raise ValueError(f"{name}: none given, at least 1 is needed")
        for grid in [self.grids[name] for name in grids if name != "auto"]:
            # a bad grid is an error of the run, not of a cell
            Grid.make(self.model.process, grid, 2 if isinstance(grid, str) else len(grid) - 1)
        for n in nfe:
            check_count("nfe", n, 1, "it counts network evaluations")
        axes = product(dict.fromkeys(sorted(nfe)), dict.fromkeys(grids), dict.fromkeys(solvers))
        return [self._cell(solver, grid, n) for n, grid, solver in axes]

    def _cell(self, spec: str, grid: str, nfe: int) -> Cell:
        solver, process = get(self.solvers[spec]), self.model.process
        try:
            table = solver.plan(process, nfe=nfe, grid=self.grids[grid])
            plan, note = identify((table, PREDICTIONS[table.predicts])), ""
        except ValueError as error:
            plan, note = "", str(error)
        shared = (self.network, self.behaviour, self.ruler.digest, self._endpoint_key, plan, note, GROUPS, *METRICS)
        key = identify((spec, grid, nfe, self.shape, self.seed, self.target, *shared))
        return Cell(
            self.target, str(process), spec, grid, nfe, self.shape[0], self.seed, solver.stochastic, note=note,
            device=str(self.model.device), versions=_versions(), network=self.network, data=self.ruler.digest,
            plan=plan, behaviour=self.behaviour, key=key,
        )  # fmt: skip

    @cached_property
    def _endpoint_key(self) -> str:
        plans = [get(name).plan(self.model.process, nfe=nfe, grid=grid) for name, nfe, grid in (ENDPOINT, CHECK)]
        return identify((self.network, self.behaviour, self.shape, self.seed, plans))

    @cached_property
    def behaviour(self) -> Behaviour:
        """What the model gives at a few points: it tells models apart that ``network`` does not."""
        if self.store.folder is None:
            return ()
        return self.store.settled(self.network, behaviour(self.model, self.shape[1:]))

    def endpoint(self, ticker: _Ticker, *, needed: bool) -> tuple[Tensor | None, dict[str, float]]:
        """The exact ODE's end from each start (None where it diverged or is not needed) and its own error."""
        key = f"endpoint-{self._endpoint_key}"
        found = self.store.load(key)
        if not found and needed:
            checked = min(CHECKED, self.shape[0])
            ticker.total += ENDPOINT[1] * self.shape[0] + CHECK[1] * checked
            x = self._draw(*ENDPOINT, self.shape[0], ticker, "exact endpoint")
            found = {"x": x, "check": self._draw(*CHECK, checked, ticker, "check of the endpoint")}
            self.store.save(key, found)
        if not found or not all(bool(x.isfinite().all()) for x in found.values()):
            return None, {}
        return found["x"], _paired(found["x"][: len(found["check"])], found["check"])

    def measure(self, cell: Cell, endpoint: Tensor | None, ticker: _Ticker) -> tuple[Cell, Tensor | None]:
        """The cell with its metrics, and its samples."""
        if cell.note:
            return cell, None
        label = f"{cell.solver}, {cell.grid}, NFE {cell.nfe}"
        began = time.perf_counter()
        x = self._draw(cell.solver, cell.nfe, cell.grid, cell.samples, ticker, label)
        cell = replace(cell, seconds=round(time.perf_counter() - began, 4))
        if lost := int((~x.isfinite()).flatten(1).any(1).sum()):
            return replace(cell, note=f"diverged: {lost} of {len(x)} samples hold NaN or infinity"), x
        metrics, rest = self.ruler.against_data(x), self.ruler.left_out(x)
        if endpoint is not None and not cell.stochastic:
            metrics = _paired(x, endpoint) | metrics
            pairs = {name: metric for name, metric in METRICS.items() if metric.paired}
            rest |= {name: left_out(metric.distance, x, endpoint, paired=True) for name, metric in pairs.items()}
        return replace(cell, metrics=metrics, jackknife=rest), x

    def _draw(self, solver: str, nfe: int, grid: str, n: int, ticker: _Ticker, label: str) -> Tensor:
        rule, grid_or_times = self.solvers.get(solver, solver), self.grids.get(grid, grid)
        rows = get(rule).plan(self.model.process, nfe=nfe, grid=grid_or_times).rows
        size = self.batch_size or n
        callback = ticker.start(label, nfe * n / (-(-n // size) * sum(row.commit for row in rows)))
        return sample(
            self.model, (n, *self.shape[1:]), solver=rule, nfe=nfe, grid=grid_or_times, seed=self.seed,
            callback=callback, batch_size=size,
        ).x.cpu()  # fmt: skip


class _Ticker:
    """Counts network evaluations and tells ``progress``."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0.0

    def start(self, label: str, evaluations: float) -> Callback:
        """A callback for ``sample`` that counts ``evaluations`` at each step of each batch."""

        def tick(*_: object, more: float = evaluations) -> None:
            self.done += more
            if self.progress is not None:
                self.progress(label, round(self.done), self.total)

        tick(more=0)
        return tick


def _paired(x: Tensor, endpoint: Tensor) -> dict[str, float]:
    return {name: metric.distance(x, endpoint).item() for name, metric in METRICS.items() if metric.paired}


def _embed(features: Features | None, x: Tensor) -> Tensor:
    if features is None:
        return x
    parameter = next(features.parameters(), x) if isinstance(features, nn.Module) else x
    with evaluating(features):
        return torch.cat([features(part.to(parameter)).cpu() for part in x.split(1024)])


def _identity(name: str, thing: object, out: str | Path | None) -> str:
    """Its digest; where it has none, one that no other run has, so that nothing stored is taken for it."""
    try:
        return identify(thing)
    except UnidentifiedError as error:
        if out is not None:
            why = f"{name}: {error}: its cells in out={str(out)!r} will be computed again by each run"
            warnings.warn(why, stacklevel=4)
        return f"unidentified-{secrets.token_hex(8)}"


def _versions() -> dict[str, str]:
    found = {name: [*metadata.distributions(name=name)] for name in ("sdekit", "torch")}
    return {name: one[0].version if one else "not installed" for name, one in found.items()}
