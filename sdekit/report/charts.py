"""The pictures of the page, as specifications for Chart.js: data and settings, no drawing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from sdekit.comparison import Cell, Comparison
from sdekit.metrics import METRICS
from sdekit.ranking import over_seeds, taken
from sdekit.report.numbers import shown

Chart = dict[str, Any]
COSTS: dict[str, tuple[str, Callable[[Cell], float]]] = {
    "evaluations": ("network evaluations of a sample", taken),
    "seconds": ("seconds for {samples} samples", lambda cell: cell.seconds),
}
COLOURS = 8  # of which page.css has as many
_SHAPES = ("circle", "rect", "triangle", "rectRot", "star", "crossRot", "rectRounded", "cross")
_LEGENDS = 14  # rows beyond which a legend takes more room than the picture


def charts(result: Comparison, metric: str) -> list[Chart]:
    """Quality against each cost that was measured, both logarithmic; a line for each solver and grid."""
    cells = [cell for cell in over_seeds(result.cells) if cell.metrics.get(metric, 0.0) > 0]
    found = [_chart(result, cells, metric, cost) for cost in COSTS]
    return [chart for chart in found if chart["data"]["datasets"]]


def _chart(result: Comparison, cells: Sequence[Cell], metric: str, cost: str) -> Chart:
    label, of = COSTS[cost]
    cells = [cell for cell in cells if of(cell) > 0]
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.solver, cell.grid), []).append(cell)
    lines = [_line(result, sorted(group, key=taken), metric, of) for group in groups.values()]
    floor = result.floor.get(metric, 0.0)
    low, high = _range([cell.metrics[metric] for cell in cells], floor)
    if lines and floor >= low:
        lines.append(_floor(floor, [of(cell) for cell in cells]))
    scales: dict[str, Any] = {
        "x": {"type": "logarithmic", "title": {"display": True, "text": label.format(samples=_samples(result))}},
        "y": {"type": "logarithmic", "min": low, "max": high},
    }
    if cost == "evaluations":
        scales["x"]["marked"] = sorted({cell.nfe for cell in cells})
    return {
        "type": "scatterWithErrorBars",
        "title": f"{METRICS[metric].label} against {label.format(samples=_samples(result))}",
        "data": {"datasets": lines},
        "options": {
            "animation": False, "responsive": True, "maintainAspectRatio": False,
            "interaction": {"mode": "nearest", "intersect": False},
            "plugins": {"legend": {"display": len(lines) <= _LEGENDS, "position": "bottom"}},
            "scales": scales,
        },
    }  # fmt: skip


def packed(drawn: Sequence[Chart]) -> Chart:
    """The charts with what many of them share written once: lines, what hovering says, and whole sets of values.

    A point is [x, y, its interval's ends or 0, value, number of ``abouts``]; ``page.js`` makes points of it.
    """
    lines, abouts, found = dict[str, int](), dict[str, int](), list[Chart]()
    before: list[Any] = []
    for chart in drawn:
        data: list[Any] = []
        for line in chart["data"]["datasets"]:
            own = json.dumps({name: value for name, value in line.items() if name != "data"}, ensure_ascii=False)
            points = [_tight(point, abouts) for point in line["data"]]
            data.append([lines.setdefault(own, len(lines)), points])
        rest = {name: value for name, value in chart.items() if name != "data"}
        if _values(data) == _values(before):  # the same against another cost: its values are those of the chart before
            found.append({**rest, "x": [[point[0] for point in points] for _, points in data]})
        else:
            found.append({**rest, "lines": data})
            before = data
    return {"lines": [json.loads(line) for line in lines], "abouts": list(abouts), "charts": found}


def _tight(point: Chart, abouts: dict[str, int]) -> list[Any]:
    ends = [point.get("yMin", 0), point.get("yMax", 0)]
    return [point["x"], point["y"], *ends, point["value"], abouts.setdefault(point["about"], len(abouts))]


def _values(data: Sequence[Any]) -> list[Any]:
    return [[line, [point[1:] for point in points]] for line, points in data]


def look(result: Comparison, solver: str, grid: str) -> tuple[int, str]:
    """A solver's colour, by number, and the shape of its points, which differs by grid too."""
    solvers = list(dict.fromkeys(cell.solver for cell in result.cells))
    grids = list(dict.fromkeys(cell.grid for cell in result.cells))
    place = solvers.index(solver)
    shape = place + 4 * (place // COLOURS) + grids.index(grid)  # 16 solvers on 4 grids all differ
    return place % COLOURS, _SHAPES[shape % len(_SHAPES)]


def several_grids(result: Comparison) -> bool:
    """Whether a row's name needs its grid."""
    return len({cell.grid for cell in result.cells}) > 1


def _line(result: Comparison, cells: Sequence[Cell], metric: str, of: Callable[[Cell], float]) -> Chart:
    first = cells[0]
    colour, shape = look(result, first.solver, first.grid)
    label = first.solver + f", {first.grid}" * several_grids(result) + " ~" * first.stochastic
    return {
        "label": label, "solver": first.solver, "grid": first.grid, "colour": colour,
        "pointStyle": shape, "borderDash": [6, 4] if first.stochastic else [], "showLine": True,
        "data": [_point(cell, metric, of(cell)) for cell in cells],
    }  # fmt: skip


def _point(cell: Cell, metric: str, cost: float) -> Chart:
    value, half = shown(cell, metric)
    text = f"{value} ± {half}" if half else value
    y = cell.metrics[metric]
    point = {"x": _short(cost), "y": _short(y)}
    if half:  # a logarithmic axis has no place for an end below 0: such a bar leaves at the bottom
        point |= {"yMin": _short(max(y - float(half), y / 1e3)), "yMax": _short(y + float(half))}
    about = f"NFE {cell.nfe}, {cell.grid}, {taken(cell):.4g} evaluations, {cell.seconds:.3g} s"
    return {**point, "value": text, "about": about}


def _short(value: float) -> float:
    """Six digits, which no picture tells from more."""
    return float(f"{value:.6g}")


def _floor(value: float, costs: Sequence[float]) -> Chart:
    ends = [{"x": x, "y": value, "value": f"{value:.3g}", "about": ""} for x in (min(costs), max(costs))]
    shape = {"pointStyle": "line", "radius": 0, "borderDash": [2, 3], "showLine": True}
    return {"label": "floor", "data": ends, "colour": -1, **shape}


def _range(values: Sequence[float], floor: float) -> tuple[float, float]:
    """Of the axis: lines that leave it at the top are far worse than the rest, the table has their values."""
    values = sorted(values) or [1.0]
    low, high = values[0] / 1.25, min(values[-1], 5 * values[len(values) // 2]) * 1.25
    return (min(low, floor / 1.25) if floor > low / 10 else low), high


def _samples(result: Comparison) -> int:
    return result.cells[0].samples


def rows_of(result: Comparison) -> list[tuple[str, str]]:
    """Solver and grid of each row, by which the page's filters number them."""
    return list(dict.fromkeys((cell.solver, cell.grid) for cell in result.cells))
