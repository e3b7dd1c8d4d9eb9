"""Reverse diffusion: paths of the SDE and of the ODE from the same noise, over the exact density."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from sdekit.data import Standardise
from sdekit.door import Count, Evaluations, Seed, door
from sdekit.grid import GridSpec
from sdekit.plots.density import DensityImage, Plane, density_at
from sdekit.plots.style import COLOURS, check, figure, look, model_of, tidy, window
from sdekit.process import Process
from sdekit.sampling import Model, sample
from sdekit.solvers import Solver, get
from sdekit.solvers.registry import check_count
from sdekit.targets import Target

_BINS = 40
SOLVERS = ("euler-maruyama", "dpmpp-2m")


@dataclass(frozen=True)
class Run:
    """One solver's paths.

    Attributes:
        label: what the legend says of it.
        t: times, decreasing, the last one 0 where x was denoised.
        states: at those times [times, n, D], on the CPU.
    """

    label: str
    t: tuple[float, ...]
    states: Float[Tensor, "times n size"]

    def undo(self, to: Standardise) -> Run:
        """In the data's own units, where this is in standardised ones."""
        return replace(self, states=to.undo(self.states))


def runs_of(
    target: Target, model: Model, solvers: Sequence[str | Solver], nfe: int, grid: GridSpec, samples: int, seed: int
) -> list[Run]:
    """The same starts by each solver. Raises ValueError for no solver, too, or one that is there twice."""
    found = [get(solver) for solver in solvers]
    labels = [f"{'SDE' if solver.stochastic else 'ODE'}, {solver.label}" for solver in found]
    if not labels or len(set(labels)) < len(labels):
        raise ValueError(f"solvers={list(solvers)!r}: give at least one, and each once")
    runs: list[Run] = []
    for label, solver in zip(labels, found):
        out = sample(model, (samples, *target.event), solver=solver, nfe=nfe, grid=grid, seed=seed, keep="all")
        assert out.trajectory is not None
        runs.append(Run(label, out.t, out.trajectory.reshape(len(out.t), samples, -1).cpu()))
    return runs


@door
def reverse_diffusion(
    target: Target,
    process: Process,
    *,
    model: Model | None = None,
    solvers: Sequence[str | Solver] = SOLVERS,
    nfe: Evaluations = 200,
    grid: GridSpec = "time",
    paths: Count = 6,
    samples: Count = 2000,
    seed: Seed = 0,
) -> Figure:
    """Paths from noise to data by the reverse SDE and by the probability-flow ODE, each from the same starts.

    In one dimension over the exact density of x_t, with the ends of all samples beside the exact density at t_min; in
    two dimensions in the plane, a panel for each solver, over the exact density at t_min. SDE and ODE share that
    density at every time (Song et al. 2021, eq. 6 and 13), and no path.

    Args:
        target: one of ``sdekit.targets`` with events of one or two elements.
        process: the process that is reversed.
        model: whose paths they are; by default the target's exact one.
        solvers: names or ``Solver`` values; those that draw noise solve the SDE, the others the ODE.
        nfe: evaluations of each run; many show the paths themselves, few what a solver makes of them.
        grid: of each run.
        paths: how many of the samples are drawn.
        samples: how many ends the histogram counts.
        seed: of starts and noise.

    Raises ValueError for a target of another dimension, a model of another process, and as ``sample`` does.

    >>> from sdekit import VP, targets
    >>> target = targets.GaussianMixture(torch.tensor([[-2.0], [2.0]]), 0.3)
    >>> figure = reverse_diffusion(target, VP(), nfe=20, samples=10)
    >>> figure.axes[0].get_xlabel()
    't (noise → data)'
    """
    size = check(target, process, (1, 2), "a picture of the reverse diffusion")
    check_count("paths", paths, 1, "it is how many are drawn")
    check_count("samples", samples, paths, "the paths are those of the first samples")
    runs = runs_of(target, model_of(target, process, model), solvers, nfe, grid, samples, seed)
    title = f"Reverse diffusion, {type(process).__name__}: the same starts, NFE {nfe}"
    if size == 2:
        return _planes(target, process, runs, paths, title)
    picture = figure(7.6, 3.8)
    panel, side = picture.subplots(1, 2, width_ratios=(4, 1), sharey=True)
    low, high = window(target, process, None, *(run.states for run in runs))
    image = DensityImage.of(target, process, low.item(), high.item())
    draw_paths(panel, image, runs, paths)
    draw_ends(side, image.edges, density_at_end(target, process, image.edges), runs)
    picture.suptitle(title, fontsize=10)
    legend(picture, panel, side)
    return picture


def legend(picture: Figure, *panels: Axes) -> None:
    """What the panels' lines and areas are, each once, below them."""
    found = {label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels())}
    picture.legend(
        found.values(), found.keys(), loc="outside lower center", ncols=len(found), frameon=False, fontsize=8
    )


def density_at_end(target: Target, process: Process, x: Tensor) -> Tensor:
    """p at t_min, which is there for data without a density too."""
    return density_at(target, process, process.t_min, x.reshape(-1, *target.event))


def draw_paths(panel: Axes, image: DensityImage, runs: Sequence[Run], paths: int) -> None:
    """The first ``paths`` of each run over the density, from noise on the left to data on the right."""
    image.draw(panel)
    for line, run in enumerate(runs):
        for i in range(paths):
            label = run.label if i == 0 else None
            x = run.states[:, i, 0].numpy()
            panel.plot(run.t, x, linewidth=1.0, label=label, **look(line))
    panel.set(xlim=(image.t[-1].item(), min(0.0, image.t[0].item())), ylim=_ends(image.edges))
    panel.set_xlabel("t (noise → data)", fontsize=9)
    panel.set_ylabel("$x_t$ (units of the data)", fontsize=9)
    tidy(panel)


def draw_ends(side: Axes, edges: Tensor, density: Tensor, runs: Sequence[Run]) -> None:
    """Histograms of where the runs end, on their side, beside the exact density at ``edges``."""
    side.fill_betweenx(edges.numpy(), density.numpy(), color="0.75", linewidth=0, label="exact density at t_min")
    cells = _cells(torch.cat([run.states[-1, :, 0] for run in runs]).to(edges), *_ends(edges))
    for line, run in enumerate(runs):
        heights, outside = histogram(run.states[-1, :, 0], cells)
        side.stairs(heights.numpy(), cells.numpy(), orientation="horizontal", linewidth=1.0, **look(line))
        if outside > 0:
            side.text(
                0.97, 0.02 + 0.05 * line, f"{outside:.1%} outside", color=look(line)["color"], fontsize=7, ha="right",
                transform=side.transAxes,
            )  # fmt: skip
    side.set_xlabel("density of ends\n(per unit of x)", fontsize=7)
    side.set_xlim(left=0)
    tidy(side)


def histogram(x: Float[Tensor, "n"], cells: Float[Tensor, "edges"]) -> tuple[Tensor, float]:
    """The density of samples in cells of equal width, and the share of them that lies in none.

    >>> histogram(torch.tensor([0.5, 0.6, 1.5, 9.0]), torch.tensor([0.0, 1.0, 2.0]))
    (tensor([0.5000, 0.2500]), 0.25)
    """
    place = torch.bucketize(x.to(cells), cells, right=True) - 1
    inside = (place >= 0) & (place < len(cells) - 1)
    counts = place[inside].bincount(minlength=len(cells) - 1).to(cells)
    return counts / (len(x) * (cells[1] - cells[0])), 1 - inside.double().mean().item()


def _cells(x: Tensor, low: float, high: float) -> Tensor:
    """The edges of cells over those of x that lie between low and high."""
    inside = x[(x >= low) & (x <= high)]
    if len(inside) and inside.min() < inside.max():
        low, high = inside.min().item(), inside.max().item()
    cells = torch.linspace(low, high, _BINS + 1, dtype=torch.float64)
    cells[-1] += 1e-9 * (high - low)  # the largest is in the last cell
    return cells


def _ends(axis: Tensor) -> tuple[float, float]:
    return axis[0].item(), axis[-1].item()


def _planes(target: Target, process: Process, runs: Sequence[Run], paths: int, title: str) -> Figure:
    low, high = window(target, process, (process.t_min, process.t_max), *(run.states[:, :paths] for run in runs))
    picture = figure(3.6 * len(runs) + 0.4, 4.2)
    row = picture.subplots(1, len(runs), sharex=True, sharey=True, squeeze=False)[0]
    for run, panel in zip(runs, row):
        Plane.of(target, process, process.t_min, low, high).draw(panel)
        for i, path in enumerate(run.states[:, :paths].unbind(1)):
            x, y = path.T.numpy()
            panel.plot(x, y, color=COLOURS[i % len(COLOURS)], linewidth=0.8, zorder=2)
            panel.plot(x[:1], y[:1], "o", mfc="white", mec=COLOURS[i % len(COLOURS)], markersize=5, zorder=3)
            panel.plot(x[-1:], y[-1:], "o", color=COLOURS[i % len(COLOURS)], markersize=5, zorder=4)
        panel.set(xlim=(low[0].item(), high[0].item()), ylim=(low[1].item(), high[1].item()))
        panel.set_title(run.label, fontsize=9)
        panel.set_xlabel("$x_1$ (units of the data)", fontsize=9)
        tidy(panel)
    row[0].set_ylabel("$x_2$ (units of the data)", fontsize=9)
    picture.suptitle(f"{title}\n○ start, ● end, grey: exact density at t_min", fontsize=10)
    return picture
