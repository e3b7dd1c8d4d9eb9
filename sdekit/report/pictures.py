"""A comparison as pictures: steps versus quality, and a contact sheet of samples."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, LogLocator, NullLocator
from PIL import Image
from torch import Tensor

from sdekit.comparison import ADAPTIVE, OWN, Cell, Comparison
from sdekit.door import FileName, door
from sdekit.metrics import METRICS
from sdekit.plots.style import COLOURS as _COLOURS
from sdekit.ranking import columned, over_seeds
from sdekit.report.tables import heading

# with the markers each solver is told apart twice
_MARKERS = "osD^vPX<>*hpd8"
_IMAGES = 8  # images in one cell of the contact sheet


@door
def picture(result: Comparison, path: FileName) -> Path | None:
    """Draw steps versus quality: a panel for each metric (a row for each, where there are several grids).

    Both axes are logarithmic, the floor is a dotted line, solvers that draw noise are dashed. Lines that
    leave a panel at the top are far worse than the rest: the table has their values. None where nothing was measured.

    >>> import tempfile
    >>> import torch
    >>> from sdekit import VP, compare, targets
    >>> target = targets.Gaussian(torch.zeros(2), torch.eye(2))
    >>> result = compare(target.model(VP()), target.sample(64), solvers=["ddim"], nfe=[5], samples=32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     picture(result, f"{folder}/quality.png").name
    'quality.png'
    """
    cells = over_seeds(result.cells)
    shown = [metric for metric in METRICS if any(metric in cell.metrics for cell in cells)]
    if not shown:
        return None
    grids = _grids(cells)
    panels = [(metric, grid) for metric in shown for grid in grids]
    columns = len(grids) if len(grids) > 1 else min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.4 * columns + 2.2, 3.5 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey="row" if len(grids) > 1 else False).flatten()
    for (metric, grid), panel in zip(panels, axes):
        _panel(panel, result, metric, grid)
        panel.set_title(METRICS[metric].label + f"\ngrid {grid}" * (len(grids) > 1), fontsize=10)
    for panel in axes[len(panels) :]:
        panel.set_axis_off()
    lines = {line.get_label(): line for panel in axes for line in panel.get_lines()}
    order = [_solver_label(cell) for cell in cells] + ["floor (± its spread)"]
    handles = [lines[label] for label in dict.fromkeys(order) if label in lines]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    figure.suptitle(heading(result).splitlines()[0], fontsize=10, x=0.01, ha="left")
    figure.savefig(path, dpi=150)
    return Path(path)


def _solver_label(cell: Cell) -> str:
    return cell.solver + " (draws noise)" * cell.stochastic


def _grids(cells: Sequence[Cell]) -> list[str]:
    """The grids that were chosen; what has no choice of one is drawn beside each."""
    chosen = list(dict.fromkeys(cell.grid for cell in cells if cell.grid not in (ADAPTIVE, OWN)))
    return chosen or [cells[0].grid]


def _panel(panel: Axes, result: Comparison, metric: str, grid: str) -> None:
    every = over_seeds(result.cells)
    for i, solver in enumerate(dict.fromkeys(cell.solver for cell in every)):
        cells = [c for c in every if c.solver == solver and c.grid in (grid, ADAPTIVE, OWN) and metric in c.metrics]
        points = [(cell.nfe, cell.metrics[metric]) for cell in sorted(cells, key=lambda cell: cell.nfe)]
        points = [(nfe, value if value > 0 else math.nan) for nfe, value in points]  # unbiased ones may be below 0
        if points:
            panel.plot(
                *zip(*points), label=_solver_label(cells[0]), color=_COLOURS[i % len(_COLOURS)],
                marker=_MARKERS[i % len(_MARKERS)], markersize=5, linewidth=1.3, alpha=0.9,
                linestyle="--" if cells[0].stochastic else "-",
            )  # fmt: skip
    # of all grids: their panels share an axis
    seen = [cell.metrics[metric] for cell in every if metric in cell.metrics]
    _axes(panel, seen, sorted({cell.nfe for cell in columned(every) or every}))
    _floor(panel, result.floor.get(metric, 0.0), result.spread.get(metric, 0.0))


def _axes(panel: Axes, values: Sequence[float], nfe: Sequence[int]) -> None:
    panel.set_xscale("log")
    panel.set_yscale("log")
    low, high = panel.dataLim.intervalx if panel.has_data() else (nfe[0], nfe[-1])
    panel.set_xlim(min(low, nfe[0]) / 1.1, max(high, nfe[-1]) * 1.1)
    panel.xaxis.set_major_locator(FixedLocator(nfe))
    panel.xaxis.set_major_formatter(FixedFormatter([str(n) for n in nfe]))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.set_xlabel("network evaluations (NFE)", fontsize=9)
    panel.tick_params(labelsize=8, which="both")
    panel.grid(alpha=0.25, linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    positive = sorted(value for value in values if value > 0)
    if not positive:
        panel.set_ylim(0.1, 1)  # of no data a logarithmic axis finds no range
        return
    low, high, middle = positive[0], positive[-1], positive[len(positive) // 2]
    panel.set_ylim(low / 1.25, min(high, 5 * middle) * 1.25)


def _floor(panel: Axes, value: float, spread: float) -> None:
    low, high = panel.get_ylim()
    if value > low / 10:  # a floor far below all that was measured would press the lines together
        panel.axhline(value, color="0.35", linestyle=":", linewidth=1.6, label="floor (± its spread)")
        panel.axhspan(max(value - spread, 1e-300), value + spread, color="0.5", alpha=0.15, linewidth=0)
        panel.set_ylim(min(low, value / 1.25), high)


@door
def contact_sheet(result: Comparison, path: FileName) -> Path | None:
    """Draw samples: a row for each solver, a column for each NFE, real data on top.

    The same place in each cell is the same start, of the first seed. Images [c, h, w] with 1 or 3 channels in
    [−1, 1] are shown as they are, anything else as a scatter of its first two elements. None without samples.

    >>> import tempfile
    >>> import torch
    >>> from sdekit import VP, compare, targets
    >>> target = targets.Gaussian(torch.zeros(2), torch.eye(2))
    >>> result = compare(target.model(VP()), target.sample(64), solvers=["ddim"], nfe=[5], samples=32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     contact_sheet(result, f"{folder}/samples.png").name
    'samples.png'
    """
    figure = sheet(result)
    if figure is None:
        return None
    if Path(path).is_dir():
        raise ValueError(f"path={str(path)!r}: it is a folder; give the name of a file")
    Path(path).write_bytes(png(figure, 150))
    return Path(path)


def png(figure: Figure, dpi: int) -> bytes:
    """As PNG of 192 colours, a third of the size that matplotlib makes."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    Image.open(drawn).convert("RGB").quantize(192, dither=Image.Dither.NONE).save(small, format="PNG", optimize=True)
    return small.getvalue()


def sheet(result: Comparison) -> Figure | None:
    """The figure of ``contact_sheet``."""
    cells = over_seeds(columned(result.cells))
    if not result.samples or not cells:
        return None
    nfe = sorted({cell.nfe for cell in cells})
    groups: dict[str, dict[int, Cell]] = {}
    several = len({cell.grid for cell in cells}) > 1
    for cell in cells:
        groups.setdefault(cell.solver + f"\n{cell.grid}" * several, {})[cell.nfe] = cell
    draw, wide, high = (_scatter, 1.5, 1.5)
    if _is_image(result.real):
        draw, wide = _mosaic, 3.0
        high = wide * (result.real.shape[2] + 2) / (result.real.shape[3] + 2) / _IMAGES + 0.06
    figure = Figure(figsize=(1.4 + wide * len(nfe), 0.6 + high * (len(groups) + 1)), layout="constrained")
    axes = figure.subplots(len(groups) + 1, len(nfe), squeeze=False)
    for column, n in enumerate(nfe):
        draw(axes[0][column], result.real.roll(-column * _IMAGES, 0), result.real)
        axes[1][column].set_title(f"NFE {n}", fontsize=10)
        for row, group in enumerate(groups.values(), start=1):
            x = result.samples.get(group[n].key) if n in group else None
            if x is None:
                axes[row][column].text(0.5, 0.5, "n/a", ha="center", va="center", fontsize=9, color="0.4")
            else:
                draw(axes[row][column], x, result.real)
    for panel in axes.flatten():
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(draw is _scatter)
    for panel, label in zip(axes[:, 0], ["real data", *groups]):
        panel.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    return figure


def _is_image(x: Tensor) -> bool:
    return x.ndim == 4 and x.shape[1] in (1, 3)


def _mosaic(panel: Axes, x: Tensor, real: Tensor) -> None:
    """The first images side by side, with one pixel between."""
    padded = torch.nn.functional.pad(x[:_IMAGES], (1, 1, 1, 1), value=1.0)
    strip = torch.cat([*padded], dim=2).permute(1, 2, 0).clamp(-1, 1).nan_to_num(0.0)
    panel.imshow(((strip + 1) / 2).expand(-1, -1, 3).numpy(), interpolation="nearest")


def _scatter(panel: Axes, x: Tensor, real: Tensor) -> None:
    flat, base = x.flatten(1), real.flatten(1)
    second = min(1, base.shape[1] - 1)
    panel.scatter(flat[:, 0], flat[:, second], s=3, color=_COLOURS[0], linewidths=0)
    for axis, column in zip(("x", "y"), (0, second)):
        low, high = base[:, column].min().item(), base[:, column].max().item()
        margin = 0.25 * (high - low) + 1e-6
        panel.set(**{f"{axis}lim": (low - margin, high + margin)})
    panel.set_box_aspect(1)
    outside = ((flat < base.min(0).values - 1) | (flat > base.max(0).values + 1)).any(1).double().mean().item()
    if outside > 0.5:
        panel.text(0.5, 0.5, f"{outside:.0%} far outside", transform=panel.transAxes, ha="center", fontsize=7)


@door
def pictures_of(x: Tensor, real: Tensor, path: FileName) -> Path:
    """Draw samples x [n, *event] in rows of eight images, or as one scatter whose axes are those of ``real``.

    >>> import tempfile
    >>> import torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pictures_of(torch.randn(9, 1, 8, 8), torch.randn(9, 1, 8, 8), f"{folder}/x.png").name
    'x.png'
    """
    if x.ndim < 2 or x.shape[1:] != real.shape[1:]:
        raise ValueError(
            f"x, real: samples {list(x.shape)} and {list(real.shape)}: [n, *event] of one event are needed"
        )
    figure = Figure(figsize=(4, 4), layout="constrained")
    if _is_image(x):
        strips = x.split(_IMAGES)
        figure.set_size_inches(4, 4 * len(strips) * (x.shape[2] + 2) / (x.shape[3] + 2) / _IMAGES)
        panels = figure.subplots(len(strips), 1, squeeze=False).flatten()
        for panel, strip in zip(panels, strips):
            blank = strip.new_ones(_IMAGES - len(strip), *strip.shape[1:])
            _mosaic(panel, torch.cat([strip, blank]), real)
            panel.set_axis_off()
    else:
        _scatter(figure.subplots(), x, real)
    figure.savefig(path, dpi=150)
    return Path(path)
