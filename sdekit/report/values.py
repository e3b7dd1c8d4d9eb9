"""The tables of the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from sdekit.comparison import ADAPTIVE, Cell, Comparison
from sdekit.metrics import METRICS
from sdekit.ranking import Place, Reach, default_quality, leaderboard, matrix, over_seeds, reach, taken
from sdekit.report.charts import rows_of, several_grids
from sdekit.report.numbers import evaluations, number, shown

_WORDS = ("rank", "solver", "grid")


def table(
    result: Comparison, caption: str, head: Sequence[str], rows: Iterable[tuple[Cell, Sequence[str]]], key: str = ""
) -> str:
    """A table whose rows the filters find by their number in ``rows_of``; first entries are names. All is text."""
    numbers = {row: i for i, row in enumerate(rows_of(result))}
    place = f' id="{key}"' if key else ""
    kinds = [' class="word"' * (one in _WORDS) for one in head]
    columns = "".join(f'<th scope="col"{kind}>{escape(one)}</th>' for one, kind in zip(head, kinds))
    body = "".join(
        f'<tr data-row="{numbers[cell.solver, cell.grid]}"><th scope="row">{escape(entries[0])}</th>'
        + "".join(f"<td{kind}>{escape(entry)}</td>" for entry, kind in zip(entries[1:], kinds[1:]))
        + "</tr>"
        for cell, entries in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(caption)}"><table{place}>'
        f"<caption>{escape(caption)}</caption><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _beside(tables: Sequence[str]) -> str:
    return f'<div class="beside">{"".join(tables)}</div>'


def _named(result: Comparison, cell: Cell) -> list[str]:
    """The solver, and its grid where there are several."""
    return [cell.solver + " ~" * cell.stochastic, cell.grid][: len(_head(result))]


def _head(result: Comparison) -> list[str]:
    return ["solver", "grid"][: 1 + several_grids(result)]


def _value(cell: Cell, metric: str) -> str:
    value, half = shown(cell, metric)
    return f"{value} ± {half}" if half else value


def values(result: Comparison, metric: str, key: str) -> str:
    """Solvers by NFE, as in ``tables``, with intervals and marks."""
    found = matrix(result, metric)
    rows: list[tuple[Cell, list[str]]] = []
    for row, marks in zip(found.rows, found.marks):
        cells = {cell.nfe: cell for cell in row}
        entries = [_entry(cells.get(n), metric, mark) for n, mark in zip(found.nfe, marks)]
        rows.append((row[0], [*_named(result, row[0]), *entries]))
    head = [*_head(result), *[f"NFE {n}" for n in found.nfe]]
    return (
        table(result, METRICS[metric].label, head, rows, key)
        if rows
        else f'<p id="{key}">The values are in the table of adaptive steps.</p>'
    )


def _entry(cell: Cell | None, metric: str, mark: str) -> str:
    if cell is None:
        return ""
    return _value(cell, metric) + mark if metric in cell.metrics else "n/a"


def leaders(result: Comparison, metric: str) -> str:
    """The ranks at each NFE, folded away."""
    head = ["rank", *_head(result), "value", "floor"]
    tables = [
        table(result, f"NFE {n}", head, [(place.cell, _place(result, place, metric)) for place in places])
        for n, places in leaderboard(result, metric).items()
    ]
    return f"<details><summary>Leaderboard by NFE</summary>{_beside(tables)}</details>" if tables else ""


def _place(result: Comparison, place: Place, metric: str) -> list[str]:
    rank = place.rank + " (tie)" * (place.first != place.last)
    return [rank, *_named(result, place.cell), _value(place.cell, metric), "at the floor" * place.at_floor]


def adaptive(result: Comparison, names: Sequence[str]) -> str:
    """Methods that choose their own steps."""
    cells = [cell for cell in over_seeds(result.cells) if cell.grid == ADAPTIVE and cell.metrics]
    rows = [
        (
            cell,
            [cell.solver + " ~" * cell.stochastic, f"{taken(cell):.4g}", *[_entry(cell, name, "") for name in names]],
        )
        for cell in cells
    ]
    head = ["solver", "NFE (mean)", *[METRICS[name].label for name in names]]
    return table(result, "Adaptive steps: each sample takes what its tolerance asks for", head, rows) if rows else ""


def reaching(result: Comparison, names: Sequence[str]) -> str:
    """Evaluations to reach the default quality of each metric."""
    tables: list[str] = []
    for name in names:
        if (quality := default_quality(result, name)) is None:
            continue
        value, middle = quality
        rows = [
            (
                one.cell,
                [*_named(result, one.cell), evaluations(one, one.evaluations), _ends(one)],
            )
            for one in reach(result, name, value)
        ]
        which = f"the best at NFE {middle}" if value > result.floor.get(name, 0.0) else "the floor"
        caption = f"{METRICS[name].label} of {number(value)}, {which}"
        tables.append(table(result, caption, [*_head(result), "evaluations", "95% interval"], rows))
    how = (
        "Interpolated between the numbers of evaluations that were measured, both axes logarithmic: the first at which"
        " the metric has the value. The interval holds those at which it cannot be told from the value. ≤ is the fewest"
        " measured, > the most: not reached."
    )
    return f"<h3>Evaluations to reach a quality</h3><p>{how}</p>{_beside(tables)}" if tables else ""


def _ends(one: Reach) -> str:
    ends = [evaluations(one, end) for end in (one.low, one.high)]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def costs(result: Comparison) -> str:
    """What each row took, for all samples of a cell."""
    cells = [cell for cell in over_seeds(result.cells) if cell.seconds]
    head = [*_head(result), "NFE", "evaluations", "rounds", "seconds"]
    head += ["of the network", "beyond it", "ms an evaluation", "peak MB"]
    caption = (
        f"Seconds of wall time for {result.cells[0].samples} samples; the network's are timed apart, so that on a busy"
        " machine they may be more than all. Rounds are calls of the network one after another, fewer than evaluations"
        " where a run is parallel in time"
    )
    rows = [(cell, [*_named(result, cell), *_cost(cell)]) for cell in cells]
    return f"<details><summary>Costs</summary>{table(result, caption, head, rows)}</details>" if rows else ""


def _cost(cell: Cell) -> list[str]:
    known = cell.network_seconds > 0
    beyond = cell.seconds - cell.network_seconds
    times = [number(cell.network_seconds), number(beyond)] if known else ["", ""]
    each = number(cell.seconds / taken(cell) * 1e3)
    memory = "" if cell.peak_memory is None else number(cell.peak_memory / 1e6)
    rounds = f"{taken(cell) if cell.rounds is None else cell.rounds:.4g}"
    return [str(cell.nfe), f"{taken(cell):.4g}", rounds, number(cell.seconds), *times, each, memory]
