"""Which solver is best: a metric's values in rows and columns, and which of them differ by more than chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from sdekit.comparison import ADAPTIVE, Comparison
from sdekit.jackknife import SIGNIFICANT, difference_error
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
    cells = [cell for cell in over_seeds(columned(result.cells)) if not (METRICS[metric].paired and cell.stochastic)]
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
    taken = round(costs["evaluations"]) if first.grid == ADAPTIVE else first.nfe
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
    slack = 2 * floor if METRICS[metric].paired else 0.0
    margin = slack if METRICS[metric].paired else SIGNIFICANT * spread
    best = measured[0]

    def worse(cell: Cell) -> bool:
        error = difference_error(cell.jackknife[metric], best.jackknife[metric])
        return cell.metrics[metric] - best.metrics[metric] > slack + SIGNIFICANT * error

    tied = [cell for cell in measured if not worse(cell) or cell.metrics[metric] <= floor + margin]
    alone = tied == [best] and best.metrics[metric] > floor + margin
    return {(cell.solver, cell.grid): BEST if alone else TIED for cell in tied}
