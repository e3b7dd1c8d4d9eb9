r"""A comparison for other programs: CSV, a pandas frame, LaTeX."""

from __future__ import annotations

import csv as csv_files
import io
import re
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from sdekit.comparison import Cell, Comparison
from sdekit.door import door
from sdekit.jackknife import standard_error
from sdekit.metrics import METRICS
from sdekit.ranking import BEST, Matrix, matrix
from sdekit.report.numbers import measured, shown

_FACTS = (
    "target", "process", "solver", "grid", "nfe", "samples", "seed", "stochastic", "evaluations", "rounds",
    "seconds", "network_seconds", "peak_memory",
)  # fmt: skip
_LAST = ("note", "device", "key")
_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "−": "$-$", "±": r"$\pm$", "…": r"\dots{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}  # fmt: skip


def _rows(result: Comparison) -> tuple[list[str], list[list[object]]]:
    """A name for each column, and a row for each cell; None where there is nothing."""
    names = measured(result.cells)
    columns = [*_FACTS]
    for name in names:
        columns += [name, f"{name}_stderr", f"{name}_floor"]
    return [*columns, *_LAST], [_row(cell, names) for cell in result.cells]


def _row(cell: Cell, names: Sequence[str]) -> list[object]:
    row: list[object] = [getattr(cell, fact) for fact in _FACTS]
    for name in names:
        rest = cell.jackknife.get(name)
        row += [cell.metrics.get(name), standard_error(rest) if rest else None, cell.floor.get(name)]
    return row + [getattr(cell, fact) for fact in _LAST]


@door
def csv(result: Comparison) -> str:
    """One line a cell, that is for each solver, grid, NFE and seed: costs, metrics, and each one's error and floor.

    Numbers are as exact as the records; what was not measured is empty. ``METRIC_stderr`` is the jackknife's.

    >>> import torch
    >>> cell = Cell("toy", "VP()", "ddim", "logsnr", 5, 8, 0, metrics={"rmse": 0.1})
    >>> lines = csv(Comparison((cell,), {}, {}, {}, torch.zeros(1))).splitlines()
    >>> lines[0][:50], lines[1]
    ('target,process,solver,grid,nfe,samples,seed,stocha', 'toy,VP(),ddim,logsnr,5,8,0,False,0.0,,0.0,0.0,,0.1,,,,cpu,')
    """
    columns, rows = _rows(result)
    file = io.StringIO()
    writer = csv_files.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return file.getvalue()


@door
def frame(result: Comparison) -> Any:
    """The rows and columns of ``csv`` as a pandas frame. Raises ValueError where pandas is not installed.

    >>> import torch
    >>> from sdekit import VP, compare, targets
    >>> target = targets.Gaussian(torch.zeros(2), torch.eye(2))
    >>> result = compare(target.model(VP()), target.sample(64), solvers=["ddim"], nfe=[5], samples=32)
    >>> from importlib.util import find_spec
    >>> len(frame(result)) if find_spec("pandas") else 1
    1
    """
    try:
        pandas = import_module("pandas")
    except ImportError as error:
        raise ValueError("frame: it needs pandas, which is not installed") from error
    columns, rows = _rows(result)
    return pandas.DataFrame({name: [row[i] for row in rows] for i, name in enumerate(columns)})


@door
def latex(result: Comparison, metrics: Sequence[str] | None = None) -> str:
    r"""For each metric a LaTeX table of solvers by NFE, with half of the 95% interval, for the package booktabs.

    Bold is better than every other of its column; ``=`` cannot be told from the best, or from the floor; ``~`` draws
    noise.

    Args:
        metrics: names in ``metrics.METRICS``; None is all that were measured.

    Raises ValueError for a metric that was not measured.

    >>> import torch
    >>> from sdekit import VP, compare, targets
    >>> target = targets.Gaussian(torch.zeros(2), torch.eye(2))
    >>> result = compare(target.model(VP()), target.sample(64), solvers=["ddim"], nfe=[5], samples=32)
    >>> "\\toprule" in latex(result)
    True
    """
    known = measured(result.cells)
    for name in metrics or ():
        if name not in known:
            raise ValueError(f"metrics: {name!r} was not measured; known: {', '.join(known)}")
    tables = [matrix(result, name) for name in metrics or known]
    return "\n".join(_latex_table(result, table) for table in tables if table.rows)


def _latex_table(result: Comparison, table: Matrix) -> str:
    several = len({row[0].grid for row in table.rows}) > 1
    head = ["solver", "grid"][: 1 + several] + [f"NFE {n}" for n in table.nfe]
    lines = [
        r"\begin{table}", r"\centering", rf"\caption{{{_escaped(_caption(result, table.metric))}}}",
        rf"\begin{{tabular}}{{{'l' * (1 + several)}{'r' * len(table.nfe)}}}", r"\toprule", _line(head), r"\midrule",
    ]  # fmt: skip
    for row, marks in zip(table.rows, table.marks):
        names = [row[0].solver + " ~" * row[0].stochastic, row[0].grid][: 1 + several]
        columns = {cell.nfe: cell for cell in row}
        entries = [_entry(columns.get(n), table.metric, mark) for n, mark in zip(table.nfe, marks)]
        lines.append(_line([*map(_escaped, names), *entries]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _caption(result: Comparison, metric: str) -> str:
    floor = f", floor {result.floor[metric]:.3g}" if metric in result.floor else ""
    return f"{result.cells[0].target}: {METRICS[metric].label}{floor}"


def _entry(cell: Cell | None, metric: str, mark: str) -> str:
    if cell is None or metric not in cell.metrics:
        return "--"
    value, half = (re.sub(r"e([+-]\d+)", _power, part) for part in shown(cell, metric))
    value = rf"\mathbf{{{value}}}" if mark == BEST else value
    return f"${value}" + rf" \pm {half}" * bool(half) + f"${mark.strip(BEST)}"


def _power(found: re.Match[str]) -> str:
    return rf" \cdot 10^{{{int(found[1])}}}"


def _line(entries: Sequence[str]) -> str:
    return " & ".join(entries) + r" \\"


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(letter, letter) for letter in text)
