"""A comparison as text: a matrix for each metric, and what is missing and why."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from sdekit import solvers
from sdekit.comparison import ADAPTIVE, Cell, Comparison
from sdekit.door import door
from sdekit.jackknife import SIGNIFICANT
from sdekit.metrics import METRICS
from sdekit.ranking import BEST, TIED, Matrix, columned, matrix, over_seeds

_LEGEND = {
    BEST: f"{BEST} better than every other of its column, and above the floor, by more than {SIGNIFICANT} standard"
    " errors (by chance once in 100 cases)",
    TIED: f"{TIED} cannot be told from the best of its column, or from the floor",
}


@door
def tables(result: Comparison) -> Group:
    """Everything that was measured, for a rich console: a matrix for each metric, then what is missing and why.

    >>> import torch
    >>> from sdekit import VP, compare, targets
    >>> target = targets.Gaussian(torch.zeros(2), torch.eye(2))
    >>> result = compare(target.model(VP()), target.sample(64), solvers=["ddim"], nfe=[5], samples=32)
    >>> type(tables(result)).__name__
    'Group'
    """
    if not result.cells:
        return Group(Text("no cell was finished"))
    parts: list[Text | Table] = [Text(heading(result))]
    used = set[str]()
    for metric in METRICS:
        table = matrix(result, metric)
        if any(best is not None for best in table.best):
            parts += [Text(), Text(title(result, metric), style="bold"), _table(result, table)]
            used.update(mark for row in table.marks for mark in row)
    parts += _adaptive(result)
    legend = [line for mark, line in _LEGEND.items() if mark in used]
    return Group(*parts, *[Text(line) for line in [""] * bool(legend) + legend + missing(result.cells)])


def _adaptive(result: Comparison) -> list[Text | Table]:
    """Methods that choose their own steps: what each took, and every metric."""
    cells = [cell for cell in over_seeds(result.cells) if cell.grid == ADAPTIVE]
    names = [name for name in METRICS if any(name in cell.metrics for cell in cells)]
    if not names:
        return []
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("solver", "NFE (mean)", *names):
        table.add_column(column, justify="left" if column == "solver" else "right", no_wrap=True)
    for cell in cells:
        values = [f"{cell.metrics[name]:.3g}" if name in cell.metrics else "" for name in names]
        table.add_row(cell.solver + " ~" * cell.stochastic, f"{cell.evaluations:.1f}", *values)
    return [Text(), Text("Adaptive steps: each sample takes what its tolerance asks for", style="bold"), table]


def missing(cells: Sequence[Cell]) -> list[str]:
    """Why cells have no metrics, each reason once."""
    reasons: dict[str, list[str]] = {}
    for cell in cells:
        if cell.note:
            reason = cell.note.replace(repr(cell.solver), "a solver")
            reasons.setdefault(f"{reason} (NFE {cell.nfe}, {cell.grid})", []).append(cell.solver)
    lines = [f"n/a: {', '.join(dict.fromkeys(solvers))}: {reason}" for reason, solvers in reasons.items()]
    return ["", *lines] if lines else []


@door
def text(result: Comparison) -> str:
    """``tables`` as plain text.

    >>> import torch
    >>> from sdekit import VP, compare, targets
    >>> target = targets.Gaussian(torch.zeros(2), torch.eye(2))
    >>> result = compare(target.model(VP()), target.sample(64), solvers=["ddim"], nfe=[5], samples=32)
    >>> "ddim" in text(result)
    True
    """
    console = Console(width=_width(result), color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(tables(result))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


@door
def show(result: Comparison, console: Console) -> None:
    """Print ``tables``: with colours on a terminal, as plain text elsewhere; wide tables are not cut.

    >>> import torch
    >>> from sdekit import VP, compare, targets
    >>> target = targets.Gaussian(torch.zeros(2), torch.eye(2))
    >>> result = compare(target.model(VP()), target.sample(64), solvers=["ddim"], nfe=[5], samples=32)
    >>> import io
    >>> told = Console(file=io.StringIO())
    >>> show(result, told)
    >>> "ddim" in told.file.getvalue()
    True
    """
    if not console.is_terminal:
        console.file.write(text(result))
        return
    console.width = max(console.width, _width(result))
    console.print(tables(result), highlight=False)


@door
def show_solvers(console: Console, chosen: Sequence[solvers.Solver] | None = None) -> None:
    """Print solvers as a table, by default all of the registry.

    >>> import io
    >>> told = Console(file=io.StringIO())
    >>> show_solvers(told, [solvers.get("unipc-2")])
    >>> "unipc-2" in told.file.getvalue()
    True
    """
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("solver", "order", "NFE a step", "noise", "options", "source"):
        table.add_column(name, justify="right" if name in ("order", "NFE a step") else "left")
    for solver in map(solvers.get, solvers.names()) if chosen is None else chosen:
        options = ", ".join(f"{name}={option.default!r}" for name, option in solver.available.items())
        noise = "yes" if solver.stochastic else ""
        facts = (solver.name, str(solver.order), str(solver.evaluations), noise, options, solver.reference)
        table.add_row(*map(Text, facts))
    if not console.is_terminal:
        console.width = 1000  # a file's lines are not wrapped
    console.print(table)


def _width(result: Comparison) -> int:
    return max(110, 50 + 14 * len({cell.nfe for cell in result.cells}))


def heading(result: Comparison) -> str:
    cell = result.cells[0]
    grids = list(dict.fromkeys(cell.grid for cell in columned(result.cells) or result.cells))
    names = ["each solver's own grid" if name == "auto" else f"grid {name}" for name in grids]
    grid = names[0] if len(names) == 1 else f"{len(names)} grids"
    seeds = list(dict.fromkeys(cell.seed for cell in result.cells))
    seed = f"seed {seeds[0]}" if len(seeds) == 1 else f"means over seeds {', '.join(map(str, seeds))}"
    return (
        f"{cell.target}, {cell.process}\n{cell.samples} samples a cell, {seed}, {grid};"
        " smaller is better, ~ draws noise"
    )


def title(result: Comparison, metric: str) -> str:
    if metric not in result.floor:
        return METRICS[metric].label
    own = "the endpoint's own error" if METRICS[metric].paired else "data against data"
    spread = f" ± {result.spread[metric]:.2g}" if metric in result.spread else ""
    return f"{METRICS[metric].label} (floor {result.floor[metric]:.3g}{spread}: {own})"


def _table(result: Comparison, values: Matrix) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    several = len({row[0].grid for row in values.rows}) > 1
    for name in ["solver", "grid"][: 1 + several]:
        table.add_column(name, no_wrap=True)
    floor = None if METRICS[values.metric].paired else result.floor.get(values.metric)
    columns = [_column(values, i, floor) for i in range(len(values.nfe))]
    for header, *_ in columns:
        table.add_column(header, no_wrap=True)
    for i, row in enumerate(values.rows, start=1):
        labels = [row[0].solver + " ~" * row[0].stochastic, row[0].grid][: 1 + several]
        table.add_row(*labels, *[column[i] for column in columns])
    if floor is not None:
        table.add_row("floor", *[""] * several, *[column[-1] for column in columns], style="dim")
    return table


def _column(values: Matrix, i: int, floor: float | None) -> list[Text]:
    """Header, entries and floor of one NFE, of equal width with the points below each other."""
    nfe, decimals = values.nfe[i], _decimals(values.best[i])
    numbers = [row[i] for row in values.values] + [floor]
    measured = [any(cell.nfe == nfe for cell in row) for row in values.rows] + [False]
    words = [
        _number(number, decimals) if number is not None else "n/a" if there else "…"
        for number, there in zip(numbers, measured)
    ]
    width = max(len(word) for word in [f"NFE {nfe}", *words])
    marks = [row[i] for row in values.marks] + [""]
    entries = [
        Text(word.rjust(width) + (mark or " "), style="bold green" if mark == BEST else "")
        for word, mark in zip(words, marks)
    ]
    return [Text(f"NFE {nfe}".rjust(width)), *entries]


def _decimals(best: float | None) -> int:
    """Decimals that show three digits of the column's best."""
    return 3 if not best else min(6, max(0, 2 - math.floor(math.log10(abs(best)))))


def _number(value: float, decimals: int) -> str:
    shown = f"{value:.{decimals}f}"
    return shown if value == 0 or float(shown) != 0 else f"<{10**-decimals:.{decimals}f}"
