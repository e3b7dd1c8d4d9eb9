"""Which solver is best: a metric's values in rows and columns, which of them differ by more than chance, and the
evaluations that a quality takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from sdekit.comparison import ADAPTIVE, Comparison
from sdekit.jackknife import SIGNIFICANT, difference_error, half_width
from sdekit.metrics import METRICS
from sdekit.results import Cell

BEST, TIED = "*", "="
_COSTS = ("evaluations", "seconds", "network_seconds")


@dataclass(frozen=True)
class Matrix:
    """One metric: a row for each solver (and grid), a column for each NFE; None where nothing was measured.

    Rows are sorted by the mean over columns of log(value / best of the column), the best first.

    Attributes:
        marks: for each value ``"*"``, ``"="`` or nothing; see ``marks``.
    """

    metric: str
    nfe: tuple[int, ...]
    rows: tuple[tuple[Cell, ...], ...]
    values: tuple[tuple[float | None, ...], ...]
    marks: tuple[tuple[str, ...], ...]

    @property
    def best(self) -> tuple[float | None, ...]:
        """The smallest value of each column."""
        return tuple(min((v for v in column if v is not None), default=None) for column in zip(*self.values))


def matrix(result: Comparison, metric: str) -> Matrix:
    """The metric's values as a table of solvers by NFE; solvers for which it is not defined are left out.

    >>> import torch
    >>> cells = [Cell("toy", "VP()", s, "logsnr", n, 8, 0, metrics={"rmse": v})
    ...          for s, n, v in [("ddim", 5, 2.0), ("ddim", 10, 1.0), ("heun", 10, 0.2)]]
    >>> table = matrix(Comparison(tuple(cells), {}, {}, {}, torch.zeros(1)), "rmse")
    >>> [row[0].solver for row in table.rows], table.nfe, table.best
    (['heun', 'ddim'], (5, 10), (2.0, 0.2))
    """
    cells = _defined(result, metric)
    nfe = tuple(sorted({cell.nfe for cell in cells}))
    groups: dict[tuple[str, str], dict[int, Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.solver, cell.grid), {})[cell.nfe] = cell
    rows = [tuple(group.values()) for group in groups.values()]
    values = [tuple(group[n].metrics.get(metric) if n in group else None for n in nfe) for group in groups.values()]
    order = sorted(range(len(rows)), key=_badness(values).__getitem__)
    floor, spread = result.floor.get(metric, 0.0), result.spread.get(metric, 0.0)
    marked = {n: marks([cell for cell in cells if cell.nfe == n], metric, floor, spread) for n in nfe}
    found = [tuple(marked[n].get(key, "") for n in nfe) for key in groups]
    return Matrix(
        metric, nfe, tuple(rows[i] for i in order), tuple(values[i] for i in order), tuple(found[i] for i in order)
    )


def columned(cells: Sequence[Cell]) -> list[Cell]:
    """The cells whose NFE was asked for: the others stand in no column."""
    return [cell for cell in cells if cell.grid != ADAPTIVE]


def over_seeds(cells: Sequence[Cell]) -> list[Cell]:
    """For each solver, grid and NFE one cell, with the means over seeds of all that was measured.

    Its jackknife is the mean of theirs, group by group: the data's groups are the same for each seed, so that their
    part of the error does not fall with more seeds, and the samples' groups are independent, so that theirs does. A
    seed that has no metrics leaves none, with its note: a mean over the seeds that went well would say too much.

    >>> cells = [Cell("toy", "VP()", "ddim", "logsnr", 5, 8, seed, metrics={"energy": v}, key=str(seed))
    ...          for seed, v in enumerate([1.0, 3.0])]
    >>> [(cell.metrics, cell.key) for cell in over_seeds(cells)]
    [({'energy': 2.0}, '0')]
    """
    groups: dict[tuple[str, str, int], list[Cell]] = {}
    for cell in cells:
        asked = 0 if cell.grid == ADAPTIVE else cell.nfe
        groups.setdefault((cell.solver, cell.grid, asked), []).append(cell)
    return [_mean(group) for group in groups.values()]


def _mean(cells: Sequence[Cell]) -> Cell:
    first = next((cell for cell in cells if cell.note), cells[0])
    if len(cells) == 1 or first.note:
        return first
    metrics = {name: fmean(cell.metrics[name] for cell in cells) for name in first.metrics}
    rest = {
        name: [fmean(values) for values in zip(*(cell.jackknife[name] for cell in cells))]
        for name in first.jackknife
        if all(len(cell.jackknife.get(name, ())) == len(first.jackknife[name]) for cell in cells)
    }
    costs = {
        name: fmean(getattr(cell, name) for cell in cells) for name in ("evaluations", "seconds", "network_seconds")
    }
    costs |= {"rounds": None if first.rounds is None else fmean(cell.rounds or 0 for cell in cells)}
    taken = round(costs["evaluations"] or 0) if first.grid == ADAPTIVE else first.nfe
    return replace(first, metrics=metrics, jackknife=rest, nfe=taken, **costs)


def _badness(values: Sequence[Sequence[float | None]]) -> list[float]:
    """For each row Σ log(value) over columns; a missing entry counts as twice its column's worst."""
    worst = [max((v for v in column if v is not None), default=1.0) for column in zip(*values)]
    filled = [[2 * w if v is None else v for v, w in zip(row, worst)] for row in values]
    return [sum(math.log(max(v, 1e-300)) for v in row) for row in filled]


def marks(cells: Sequence[Cell], metric: str, floor: float, spread: float) -> dict[tuple[str, str], str]:
    """What is known of the best of some cells of one NFE, by solver and grid.

    ``"*"``: its value is below each other's by more than ``SIGNIFICANT`` standard errors of the difference, and above
    the floor by as many of its spreads. Where none is, ``"="``: those of which either cannot be said, against the best
    or against the floor. The endpoint's own error shifts a paired value by as much: there a difference of values
    counts beyond twice the floor, and so does a value above it.

    Nothing is marked where a cell has no ``jackknife`` (a record of an older version, or too few samples).

    >>> cells = [Cell("toy", "VP()", name, "logsnr", 5, 20, 0, metrics={"energy": value},
    ...               jackknife={"energy": [value + 0.01, value - 0.01]})
    ...          for name, value in [("ddim", 2.0), ("heun", 1.0)]]
    >>> marks(cells, "energy", floor=0.5, spread=0.1), marks(cells, "energy", floor=0.9, spread=0.1)
    ({('heun', 'logsnr'): '*'}, {('heun', 'logsnr'): '='})
    """
    measured = sorted((cell for cell in cells if metric in cell.metrics), key=lambda cell: cell.metrics[metric])
    if len(measured) < 2 or not all(cell.jackknife.get(metric) for cell in measured):
        return {}
    best, seen = measured[0], _seen(metric, floor, spread)
    tied = [cell for cell in measured if not _worse(cell, best, metric, floor) or cell.metrics[metric] <= seen]
    alone = tied == [best] and best.metrics[metric] > seen
    return {(cell.solver, cell.grid): BEST if alone else TIED for cell in tied}


def _worse(cell: Cell, other: Cell, metric: str, floor: float) -> bool:
    """Whether its value is above the other's by more than chance, and than what the endpoint's own error allows."""
    slack = 2 * floor if METRICS[metric].paired else 0.0
    error = difference_error(cell.jackknife.get(metric, ()), other.jackknife.get(metric, ()))
    return cell.metrics[metric] - other.metrics[metric] > slack + SIGNIFICANT * error


def _seen(metric: str, floor: float, spread: float) -> float:
    """The value up to which a metric cannot be told from the floor."""
    return 3 * floor if METRICS[metric].paired else floor + SIGNIFICANT * spread


# -- places -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a cell stands among those of its NFE.

    Attributes:
        half: half of the 95% interval of ``value``; infinite where it is not known.
        first, last: the best and the worst rank that it can have: equal where every other cell is known to be better
            or worse, else it is tied.
        at_floor: whether the value cannot be told from the floor.
    """

    cell: Cell
    value: float
    half: float
    first: int
    last: int
    at_floor: bool

    @property
    def rank(self) -> str:
        """``"2"``, or ``"2–4"`` for a tie."""
        return f"{self.first}" if self.first == self.last else f"{self.first}–{self.last}"


def places(cells: Sequence[Cell], metric: str, floor: float, spread: float) -> list[Place]:
    """The cells of one NFE by value, the smallest first, each with the ranks that it can have.

    One is known to be better than another as a mark knows it: by more than ``SIGNIFICANT`` standard errors of the
    paired difference, where the other is above the floor.

    >>> cells = [Cell("toy", "VP()", name, "logsnr", 5, 20, 0, metrics={"energy": value},
    ...               jackknife={"energy": [value + 0.01 * i, value]})
    ...          for name, value, i in [("ddim", 2.0, 1), ("heun", 1.0, -1), ("euler", 1.005, 1)]]
    >>> [(place.rank, place.cell.solver) for place in places(cells, "energy", 0.1, 0.01)]
    [('1–2', 'heun'), ('1–2', 'euler'), ('3', 'ddim')]
    """
    measured = sorted((cell for cell in cells if metric in cell.metrics), key=lambda cell: cell.metrics[metric])
    first, last, seen = [1] * len(measured), [len(measured)] * len(measured), _seen(metric, floor, spread)
    for i, cell in enumerate(measured):
        for j, other in enumerate(measured[i + 1 :], start=i + 1):
            if other.metrics[metric] > seen and _worse(other, cell, metric, floor):
                first[j] += 1
                last[i] -= 1
    return [
        Place(
            cell, cell.metrics[metric], half_width(cell.jackknife.get(metric, ())), best, worst,
            cell.metrics[metric] <= seen,
        )
        for cell, best, worst in zip(measured, first, last)
    ]  # fmt: skip


def leaderboard(result: Comparison, metric: str) -> dict[int, list[Place]]:
    """``places`` for each NFE, of means over seeds; solvers for which the metric is not defined are left out."""
    cells = _defined(result, metric)
    floor, spread = result.floor.get(metric, 0.0), result.spread.get(metric, 0.0)
    columns = {n: [cell for cell in cells if cell.nfe == n] for n in sorted({cell.nfe for cell in cells})}
    found = {n: places(column, metric, floor, spread) for n, column in columns.items()}
    return {n: column for n, column in found.items() if column}


def _defined(result: Comparison, metric: str) -> list[Cell]:
    cells = over_seeds(columned(result.cells))
    return [cell for cell in cells if not (METRICS[metric].paired and cell.stochastic)]


# -- evaluations to reach a quality -----------------------------------------------------------------


@dataclass(frozen=True)
class Reach:
    """The evaluations from which on a solver's metric has a value or a smaller one.

    ``low`` and ``high`` are the ends of their 95% interval; NaN where the metric has none. 0 stands for the fewest that
    were measured or fewer, infinity for more than the most that were measured.
    """

    cell: Cell
    evaluations: float
    low: float
    high: float
    fewest: float
    most: float


def default_quality(result: Comparison, metric: str) -> tuple[float, int] | None:
    """The smallest value at the middle NFE (the lower of two), but not below the floor; and that NFE.

    None where nothing was measured there. It is chosen from the same samples that are then held against it.
    """
    columns = leaderboard(result, metric)
    if not columns:
        return None
    middle = list(columns)[(len(columns) - 1) // 2]
    value = max(columns[middle][0].value, result.floor.get(metric, 0.0))
    return (value, middle) if value > 0 else None


def reach(result: Comparison, metric: str, quality: float) -> list[Reach]:
    """For each solver and grid the evaluations at which the metric first falls to ``quality``; the fewest first.

    Between two of the numbers of evaluations that were measured log(metric) is linear in log(evaluations); values
    below a thousandth of the quality, negative ones among them, count as that. The interval's ends are where the lower
    and the upper ends of the values' 95% intervals fall to the quality: it holds the numbers of evaluations at which
    the metric cannot be told from the quality.

    Raises ValueError for a quality that is not positive and finite.

    >>> import torch
    >>> cells = [Cell("toy", "VP()", "ddim", "logsnr", n, 8, 0, metrics={"rmse": v}) for n, v in [(5, 4.0), (20, 1.0)]]
    >>> one, = reach(Comparison(tuple(cells), {}, {}, {}, torch.zeros(1)), "rmse", 2.0)
    >>> round(one.evaluations, 9), one.low
    (10.0, nan)
    """
    if not 0 < quality < math.inf:
        raise ValueError(f"quality={quality}: it must be positive and finite, to stand on a logarithmic axis")
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in _defined(result, metric):
        if metric in cell.metrics:
            groups.setdefault((cell.solver, cell.grid), []).append(cell)
    found = [_reach(sorted(group, key=taken), metric, quality) for group in groups.values()]
    return sorted(found, key=lambda one: one.evaluations)


def taken(cell: Cell) -> float:
    """The evaluations that a sample took; old records have those asked for alone."""
    return cell.evaluations or float(cell.nfe)


def _reach(cells: Sequence[Cell], metric: str, quality: float) -> Reach:
    n = [taken(cell) for cell in cells]
    values = [cell.metrics[metric] for cell in cells]
    halves = [half_width(cell.jackknife.get(metric, ())) for cell in cells]
    ends = (math.nan, math.nan)
    if all(map(math.isfinite, halves)):
        low, high = ([v + sign * half for v, half in zip(values, halves)] for sign in (-1, 1))
        ends = (_crossing(n, low, quality), _crossing(n, high, quality))
    return Reach(cells[0], _crossing(n, values, quality), *ends, n[0], n[-1])


def _crossing(n: Sequence[float], values: Sequence[float], quality: float) -> float:
    logs = [math.log(max(value / quality, 1e-3)) for value in values]
    if logs[0] <= 0:
        return 0.0
    for start, end, high, low in zip(n, n[1:], logs, logs[1:]):
        if low <= 0:
            return start * (end / start) ** (high / (high - low))
    return math.inf
