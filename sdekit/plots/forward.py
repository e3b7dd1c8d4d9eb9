"""Forward diffusion: how the data's density turns into noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from sdekit import noise
from sdekit.door import Count, Seed, door
from sdekit.plots.density import DensityImage, Plane
from sdekit.plots.style import COLOURS, check, figure, flat, spread_times, tidy, window
from sdekit.process import Process
from sdekit.solvers.registry import check_count
from sdekit.targets import Target

_STREAM = 0x666F7277617264  # keeps the paths' noise apart from a run's with the same seed
_KNOTS = 400  # of a path


@door
def forward_diffusion(
    target: Target, process: Process, *, paths: Count = 6, samples: Count = 600, panels: Count = 5, seed: Seed = 0
) -> Figure:
    """How data become noise: dx = f x dt + g dw (Song et al. 2021, eq. 5).

    In one dimension the exact density of x_t over t as an image, with paths of the SDE over it. In two dimensions
    panels at equal steps of arctan(σ/α): the exact density of x_t, and the same samples at each time.

    Args:
        target: one of ``sdekit.targets`` with events of one or two elements.
        process: the forward process.
        paths: how many, in one dimension.
        samples, panels: in two dimensions, samples in a panel and the number of panels.
        seed: of data and noise.

    Raises ValueError for a target of another dimension, and for counts below 1 (panels: 2).

    >>> from sdekit import VP, targets
    >>> figure = forward_diffusion(targets.GaussianMixture(torch.tensor([[-2.0], [2.0]]), 0.3), VP())
    >>> figure.axes[0].get_xlabel()
    't (data → noise)'
    """
    size = check(target, process, (1, 2), "a picture of the forward diffusion")
    for name, count, least in (("paths", paths, 1), ("samples", samples, 1), ("panels", panels, 2)):
        check_count(name, count, least, "it is how many are drawn")
    if size == 1:
        return _over_time(target, process, paths, seed)
    return _planes(target, process, samples, panels, seed)


def _over_time(target: Target, process: Process, paths: int, seed: int) -> Figure:
    step = (process.t_max - process.t_min) / (_KNOTS - 1)
    times = [*(process.t_min + i * step for i in range(_KNOTS - 1)), process.t_max]
    states = forward_paths(target, process, times, paths, seed)
    low, high = window(target, process, None, states)
    picture = figure(7.0, 3.8)
    panel = picture.subplots()
    density = DensityImage.of(target, process, low.item(), high.item())
    image = density.draw(panel)
    for i, path in enumerate(states.unbind(1)):
        panel.plot(times, path.flatten().cpu().numpy(), color=COLOURS[i % len(COLOURS)], linewidth=0.9)
    bar = picture.colorbar(image, ax=panel, extend="max" if density.top < density.values.max().item() else "neither")
    bar.set_label("density of $x_t$ (per unit of x)", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    panel.set_xlabel("t (data → noise)", fontsize=9)
    panel.set_ylabel("$x_t$ (units of the data)", fontsize=9)
    panel.set_title(f"Forward diffusion, {type(process).__name__}: density and {paths} paths", fontsize=10)
    tidy(panel)
    return picture


def forward_paths(
    target: Target, process: Process, times: Sequence[float], n: int, seed: int
) -> Float[Tensor, "times n *event"]:
    """n paths of the forward SDE at increasing times, by the exact law of each step (``Process.transition``).

    >>> from sdekit import VP, targets
    >>> forward_paths(targets.Gaussian(torch.zeros(2), torch.eye(2)), VP(), [0.1, 0.5, 1.0], 4, 0).shape
    torch.Size([3, 4, 2])
    """
    x0 = target.sample(n, seed)
    stream, who = noise.key(_STREAM, seed), torch.arange(n, device=x0.device)
    states = [process.perturb(x0, times[0], noise.normal(stream, 0, who, target.event, x0.dtype))]
    for i, (s, t) in enumerate(zip(times, times[1:]), start=1):
        scale, std = process.transition(s, t)
        states.append(scale * states[-1] + std * noise.normal(stream, i, who, target.event, x0.dtype))
    return torch.stack(states)


def _planes(target: Target, process: Process, samples: int, panels: int, seed: int) -> Figure:
    times = spread_times(process, [i / (panels - 1) for i in range(panels)])
    low, high = window(target, process, times)
    picture = figure(2.3 * panels + 0.4, 3.0)
    row = picture.subplots(1, panels, sharex=True, sharey=True).flatten()
    for t, panel in zip(times, row):
        Plane.of(target, process, t, low, high).draw(panel)
        x = flat(target.sample(samples, seed, t, process)).cpu().numpy()
        panel.scatter(x[:, 0], x[:, 1], s=3, color=COLOURS[0], linewidths=0)
        panel.set(xlim=(low[0].item(), high[0].item()), ylim=(low[1].item(), high[1].item()))
        panel.set_title(f"t = {t:.3g}", fontsize=9)
        panel.set_xlabel("$x_1$ (units of the data)", fontsize=8)
        tidy(panel)
    row[0].set_ylabel("$x_2$ (units of the data)", fontsize=8)
    picture.suptitle(f"Forward diffusion, {type(process).__name__}: exact density and {samples} samples", fontsize=10)
    return picture
