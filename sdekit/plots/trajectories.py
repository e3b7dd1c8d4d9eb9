"""The ways of the same few samples through several solvers, of any model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from sdekit.door import Evaluations, Rows, Seed, Shape, door
from sdekit.grid import GridSpec
from sdekit.plots.denoising import pixels
from sdekit.plots.style import COLOURS, figure, tidy
from sdekit.process import Process
from sdekit.sampling import Model, conditions_of, sample
from sdekit.solvers import Solver, get
from sdekit.solvers.registry import check_count

_COLUMNS = 9  # images of one way
_WIDTH = 3  # panels in a row


@dataclass(frozen=True)
class _Way:
    """One solver's states at its times [times, n, *event], over √(α² + σ²) where they hold noise."""

    label: str
    t: tuple[float, ...]
    states: Float[Tensor, "times n *event"]


@door
def trajectories(
    model: Model,
    shape: Shape,
    solvers: Sequence[str | Solver] = ("euler-maruyama", "ddim", "dpmpp-2m"),
    *,
    nfe: Evaluations = 10,
    grid: GridSpec = "auto",
    seed: Seed = 0,
    data: Annotated[Float[Tensor, "m *event"], Rows()] | None = None,
    **conditions: Any,
) -> Figure:
    """What each solver makes of the same starts, step by step, from noise to data.

    Images of 1 or 3 channels as strips: a row for each solver and sample, time from left to right. Numbers alone over
    t; anything else as lines in the plane of its first two elements, a panel for each solver. All states are shown
    over √(α² + σ²), so that noise is as wide under every process.

    Args:
        model: a ``ScoreModel``, or what wraps one.
        shape: [n, *event] of the samples.
        solvers: names or ``Solver`` values.
        nfe, grid, seed: of each run, as in ``sample``.
        data: real samples, drawn in grey under lines.
        conditions: passed to the network, as in ``sample``.

    Raises ValueError for no solver, and as ``sample`` does.

    >>> from sdekit import VP, targets
    >>> model = targets.GaussianMixture(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), 0.5).model(VP())
    >>> [panel.get_title() for panel in trajectories(model, (4, 2), ["ddpm", "ddim"], nfe=5).axes]
    ['ddpm', 'ddim']
    """
    if not solvers:
        raise ValueError("solvers is empty: give at least one")
    check_count("shape[0]", shape[0], 1, "it is how many samples are followed")
    ways = [_way(model, shape, get(solver), nfe, grid, seed, conditions) for solver in solvers]
    if len(shape) == 4 and shape[1] in (1, 3):
        picture = _strips(ways)
    else:
        picture = _lines(ways, torch.zeros(0, *shape[1:]) if data is None else data)
    kind = type(model.process).__name__
    picture.suptitle(f"The same starts by each solver, NFE {nfe}, {kind}", fontsize=10)
    return picture


def _way(
    model: Model, shape: Sequence[int], solver: Solver, nfe: int, grid: GridSpec, seed: int, conditions: dict[str, Any]
) -> _Way:
    given = conditions_of(conditions, shape[0], 0, shape[0])
    out = sample(model, shape, solver=solver, nfe=nfe, grid=grid, seed=seed, keep="all", **given)
    assert out.trajectory is not None
    states = [x / _size(model.process, t) if t > 0 else x for t, x in zip(out.t, out.trajectory)]
    return _Way(solver.label, out.t, torch.stack(states).float().cpu())


def _size(process: Process, t: float) -> float:
    return (process.alpha(t) ** 2 + process.sigma(t) ** 2) ** 0.5


def _strips(ways: Sequence[_Way]) -> Figure:
    """At most ``_COLUMNS`` states of each, the first and the last among them."""
    n = ways[0].states.shape[1]
    columns = min(_COLUMNS, max(len(way.t) for way in ways))
    picture = figure(0.8 * columns + 1.6, 0.86 * n * len(ways) + 0.6)
    axes = picture.subplots(n * len(ways), columns, squeeze=False)
    for way, rows in zip(ways, (axes[n * i : n * i + n] for i in range(len(ways)))):
        places = torch.linspace(0, len(way.t) - 1, columns).round().long().tolist()
        for image, row in enumerate(rows):
            for place, panel in zip(places, row):
                panel.imshow(pixels(way.states[place, image]), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
                panel.set(xticks=[], yticks=[])
        for place, panel in zip(places, rows[0]):
            panel.set_title(f"t = {way.t[place]:.2g}", fontsize=7)
        rows[0][0].set_ylabel(way.label, fontsize=8, rotation=0, ha="right", va="center")
    return picture


def _lines(ways: Sequence[_Way], data: Tensor) -> Figure:
    across = min(_WIDTH, len(ways))
    down = -(-len(ways) // across)
    picture = figure(3.0 * across + 0.4, 2.9 * down + 0.6)
    axes = picture.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    base = data.reshape(len(data), math.prod(data.shape[1:])).float().cpu()
    for panel, way in zip(axes.flatten(), ways):
        states = way.states.reshape(*way.states.shape[:2], -1)
        (_over_time if states.shape[2] == 1 else _in_the_plane)(panel, way, states, base)
        panel.set_title(way.label, fontsize=9)
        tidy(panel)
    for panel in axes.flatten()[len(ways) :]:
        panel.set_axis_off()
    return picture


def _over_time(panel: Axes, way: _Way, states: Tensor, data: Tensor) -> None:
    panel.scatter([0.0] * len(data), data[:, 0].numpy(), s=3, color="0.7", linewidths=0, zorder=0)
    for i, path in enumerate(states[:, :, 0].unbind(1)):
        panel.plot(way.t, path.numpy(), color=COLOURS[i % len(COLOURS)], linewidth=0.9, marker=".", markersize=3)
    panel.set_xlim(max(way.t), 0.0)
    panel.set_xlabel("t (noise → data)", fontsize=8)


def _in_the_plane(panel: Axes, way: _Way, states: Tensor, data: Tensor) -> None:
    if len(data):
        panel.scatter(data[:, 0].numpy(), data[:, 1].numpy(), s=3, color="0.75", linewidths=0, zorder=0)
    for i, path in enumerate(states[..., :2].unbind(1)):
        colour = COLOURS[i % len(COLOURS)]
        x, y = path.T.numpy()
        panel.plot(x, y, color=colour, linewidth=0.9, marker=".", markersize=3, zorder=2)
        panel.plot(x[:1], y[:1], "o", mfc="white", mec=colour, markersize=5, zorder=3)
        panel.plot(x[-1:], y[-1:], "o", color=colour, markersize=5, zorder=4)
    reach = torch.cat([data[:, :2], states[0, :, :2]]).abs().max().item() * 1.15 + 1e-6
    panel.set(xlim=(-reach, reach), ylim=(-reach, reach))
    panel.set_aspect("equal")
    panel.set_xlabel("○ start, ● end", fontsize=8)
