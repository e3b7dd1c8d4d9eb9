"""What samplers make of few evaluations, beside the exact density."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from sdekit.door import Count, Seed, door
from sdekit.grid import GridSpec
from sdekit.plots.density import Plane
from sdekit.plots.reverse import density_at_end, histogram
from sdekit.plots.style import COLOURS, check, figure, flat, model_of, tidy, window
from sdekit.process import Process
from sdekit.sampling import Model, sample
from sdekit.solvers import Solver, get
from sdekit.solvers.registry import check_count
from sdekit.targets import Target

_BINS = 100


@door
def samplers(
    target: Target,
    process: Process,
    solvers: Sequence[str | Solver] = ("euler-maruyama", "ddim", "heun", "dpmpp-2m"),
    nfe: Sequence[int] = (6, 10, 20),
    *,
    model: Model | None = None,
    grid: GridSpec = "auto",
    samples: Count = 2000,
    seed: Seed = 0,
) -> Figure:
    """Samples of several solvers at few evaluations: a row for each solver, a column for each budget.

    In one dimension histograms, in two dimensions points, each over the exact density at t_min, from the same starts.
    What lies outside a panel is counted in its corner.

    Args:
        target: one of ``sdekit.targets`` with events of one or two elements.
        process: the process that is reversed.
        solvers, nfe: of the rows and of the columns.
        model: that is sampled; by default the target's exact one.
        grid: of each run; ``"auto"`` is each solver's own.
        samples: in each panel.
        seed: of starts and noise.

    Raises ValueError for a target of another dimension, a model of another process, and as ``sample`` does.

    >>> from sdekit import VP, targets
    >>> target = targets.GaussianMixture(torch.tensor([[-2.0], [2.0]]), 0.3)
    >>> figure = samplers(target, VP(), ["ddim"], [5, 10], samples=100)
    >>> [panel.get_title() for panel in figure.axes]
    ['NFE 5', 'NFE 10']
    """
    size = check(target, process, (1, 2), "a picture of samplers")
    check_count("samples", samples, 1, "it is how many each panel shows")
    rows = [get(solver) for solver in solvers]
    if not rows or not nfe:
        raise ValueError(f"solvers={list(solvers)!r}, nfe={list(nfe)!r}: give at least one of each")
    source = model_of(target, process, model)
    low, high = window(target, process, (process.t_min,))
    low, high = low - 0.15 * (high - low), high + 0.15 * (high - low)
    picture = figure(2.4 * len(nfe) + 1.2, (1.7 if size == 1 else 2.2) * len(rows) + 0.6)
    axes = picture.subplots(len(rows), len(nfe), sharex=True, sharey=True, squeeze=False)
    for i, solver in enumerate(rows):
        for panel, budget in zip(axes[i], nfe):
            out = sample(source, (samples, *target.event), solver=solver, nfe=budget, grid=grid, seed=seed)
            draw = _line if size == 1 else _points
            draw(panel, target, process, flat(out.x).cpu(), (low, high), COLOURS[i % len(COLOURS)])
            tidy(panel)
        axes[i][0].set_ylabel(_ylabel(size, f"{'SDE' if solver.stochastic else 'ODE'}, {solver.label}"), fontsize=7.5)
    for panel, budget in zip(axes[0], nfe):
        panel.set_title(f"NFE {budget}", fontsize=9)
    for panel in axes[-1]:
        panel.set_xlabel("x (units of the data)" if size == 1 else "$x_1$ (units of the data)", fontsize=8)
    picture.suptitle(f"{samples} samples, {type(process).__name__}; grey: exact density at t_min", fontsize=10)
    return picture


def _ylabel(size: int, solver: str) -> str:
    return f"{solver}\n" + ("density (per unit of x)" if size == 1 else "$x_2$ (units of the data)")


def _line(panel: Axes, target: Target, process: Process, x: Tensor, ends: tuple[Tensor, Tensor], colour: str) -> None:
    low, high = (end.item() for end in ends)
    points, cells = (torch.linspace(low, high, count, dtype=torch.float64) for count in (600, _BINS + 1))
    density = density_at_end(target, process, points)
    panel.fill_between(points.numpy(), density.numpy(), color="0.75", linewidth=0)
    heights, outside = histogram(x[:, 0], cells)
    panel.stairs(heights.numpy(), cells.numpy(), color=colour, linewidth=1.0)
    panel.set(xlim=(low, high), ylim=(0, 1.6 * density.max().item()))
    _count(panel, outside)


def _points(panel: Axes, target: Target, process: Process, x: Tensor, ends: tuple[Tensor, Tensor], colour: str) -> None:
    low, high = ends
    Plane.of(target, process, process.t_min, low, high).draw(panel)
    panel.scatter(x[:, 0].numpy(), x[:, 1].numpy(), s=2, color=colour, linewidths=0)
    panel.set(xlim=(low[0].item(), high[0].item()), ylim=(low[1].item(), high[1].item()))
    _count(panel, 1 - ((x >= low) & (x <= high)).all(1).double().mean().item())


def _count(panel: Axes, outside: float) -> None:
    if outside > 0:
        text = f"{outside:.1%} outside" if outside >= 0.001 else "<0.1% outside"
        panel.text(0.98, 0.97, text, transform=panel.transAxes, ha="right", va="top", fontsize=7)
