"""An image's way from noise: the state, and what the network takes it for."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from sdekit.door import Count, Evaluations, Seed, Shape, door
from sdekit.grid import GridSpec
from sdekit.model import in_evaluation_mode
from sdekit.plots.style import figure
from sdekit.process import Process
from sdekit.sampling import Model, as_rows, sample
from sdekit.solvers import Solver
from sdekit.solvers.registry import check_count


@door
@in_evaluation_mode
@torch.no_grad()
def denoising(
    model: Model,
    shape: Shape,
    *,
    solver: str | Solver = "auto",
    nfe: Evaluations = 40,
    grid: GridSpec = "auto",
    columns: Count = 9,
    seed: Seed = 0,
    **conditions: Any,
) -> Figure:
    """Images on their way from noise: two rows for each, x_t and the network's x0 at x_t, and columns over time.

    x_t is shown over √(α² + σ²), so that noise is as bright under every process; both are cut to [−1, 1]. Each x0 is
    one more evaluation, beside the ``nfe`` of the run.

    Args:
        model: of images in [−1, 1].
        shape: [n, channels, height, width], of 1 or 3 channels.
        solver, nfe, grid, seed: of the run, as in ``sample``.
        columns: how many of the run's states are shown, the first and the last among them.
        conditions: passed to the network.

    Raises ValueError for another shape, fewer than 2 columns, and as ``sample`` does.

    >>> from sdekit.nn import digits_model
    >>> figure = denoising(digits_model(), (1, 1, 8, 8), nfe=10, columns=4)
    >>> [panel.get_title() for panel in figure.axes[:4]][::3]
    ['t = 1', 't = 0']
    """
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise ValueError(f"shape={tuple(shape)}: it must be [n, channels, height, width] with 1 or 3 channels")
    check_count("columns", columns, 2, "the first and the last state are among them")
    out = sample(model, shape, solver=solver, nfe=nfe, grid=grid, seed=seed, keep="all", **conditions)
    assert out.trajectory is not None
    places = torch.linspace(0, len(out.t) - 1, columns).round().long().unique().tolist()
    given = as_rows(model, conditions, shape[0])
    n = shape[0]
    picture = figure(0.95 * len(places) + 1.0, 1.05 * 2 * n + 0.6)
    axes = picture.subplots(2 * n, len(places), squeeze=False)
    for column, place in enumerate(places):
        t, x = out.t[place], out.trajectory[place]
        x0 = x if place == len(out.t) - 1 and out.sigma == 0 else model.predict("x0", x, t, **given)
        shown = x / _size(model.process, t) if t > 0 else x
        for row in range(n):
            for panel, image in zip(axes[2 * row : 2 * row + 2, column], (shown[row], x0[row])):
                panel.imshow(pixels(image), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
                panel.set(xticks=[], yticks=[])
        axes[0][column].set_title(f"t = {t:.2g}", fontsize=9)
    for row in range(n):
        axes[2 * row][0].set_ylabel("$x_t$", fontsize=9)
        axes[2 * row + 1][0].set_ylabel("x0 predicted", fontsize=9)
    picture.suptitle(
        f"Denoising, {type(model.process).__name__}, NFE {out.nfe} (time runs from left to right)", fontsize=10
    )
    return picture


def _size(process: Process, t: float) -> float:
    return (process.alpha(t) ** 2 + process.sigma(t) ** 2) ** 0.5


def pixels(image: Tensor) -> Any:
    """An image [channels, height, width] in [−1, 1] as matplotlib wants it, in [0, 1].

    >>> pixels(torch.tensor([[[-1.0, 0.0, 3.0]]])).tolist()
    [[0.0, 0.5, 1.0]]
    """
    levels = ((image.detach().float().cpu().clamp(-1, 1) + 1) / 2).permute(1, 2, 0)
    return levels.squeeze(-1).numpy() if image.shape[0] == 1 else levels.numpy()
