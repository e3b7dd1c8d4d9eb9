"""The score as a field of arrows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure

from sdekit.door import Count, door
from sdekit.model import evaluating
from sdekit.plots.density import NATS, Plane, log_density_at
from sdekit.plots.style import COLOURS, check, figure, flat, model_of, spread_times, tidy, window
from sdekit.process import Process
from sdekit.sampling import Model
from sdekit.solvers.registry import check_count
from sdekit.targets import Target


@door
def score_field(
    target: Target,
    process: Process,
    times: Sequence[float] | None = None,
    *,
    model: Model | None = None,
    arrows: Count = 17,
) -> Figure:
    """∇ log p_t(x) of a target in two dimensions over log p_t(x): a panel for each time.

    Arrows point where the density rises; each panel has its own scale, which the key above it states. They stand where
    the density is within 8 nats of its highest: farther out they would dwarf all others.

    Args:
        target: one of ``sdekit.targets`` with events of two elements.
        process: whose x_t it is.
        times: by default three at which arctan(σ/α) is at 0.15, 0.4 and 0.7 of its way from t_min to t_max.
        model: whose score it is; by default the exact one.
        arrows: along each axis.

    Raises ValueError for a target of another dimension, a model of another process, a time outside the range,
    and arrows so far apart that the density lies between them.

    >>> from sdekit import VP, targets
    >>> target = targets.GaussianMixture(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), 0.5)
    >>> [panel.get_title(loc="left") for panel in score_field(target, VP(), [0.5, 0.1]).axes]
    ['t = 0.5', 't = 0.1']
    """
    check(target, process, (2,), "a picture of the score")
    check_count("arrows", arrows, 2, "it is how many stand along an axis")
    when = spread_times(process, (0.7, 0.4, 0.15)) if times is None else [float(t) for t in times]
    for t in when:
        if not process.t_min <= t <= process.t_max:
            raise ValueError(f"times holds {t}: it must lie in [t_min, t_max] = [{process.t_min}, {process.t_max}]")
    if not when:
        raise ValueError("times is empty: give at least one")
    low, high = window(target, process, [min(when)])  # where the data are: farther out all arrows are much the same
    low, high = low - 0.1 * (high - low), high + 0.1 * (high - low)
    source = model_of(target, process, model)
    picture = figure(3.4 * len(when) + 0.4, 4.0)
    row = picture.subplots(1, len(when), sharex=True, sharey=True, squeeze=False)[0]
    for t, panel in zip(when, row):
        density = Plane.of(target, process, t, low, high)
        density.draw(panel, log=True)
        u, v, x, y = _arrows(source, target, t, (low, high), arrows, density.values.max().item())
        field = panel.quiver(
            x.numpy(), y.numpy(), u.numpy(), v.numpy(), color=COLOURS[0], angles="xy", pivot="tail", width=0.006,
            scale_units="xy", scale=_scale(u, v, low, high, arrows),
        )  # fmt: skip
        unit = _round(torch.hypot(u, v).quantile(0.9).item())
        panel.quiverkey(field, 0.72, 1.05, unit, f"score {unit:g}", labelpos="E", fontproperties={"size": 8})
        panel.set(xlim=(low[0].item(), high[0].item()), ylim=(low[1].item(), high[1].item()))
        panel.set_title(f"t = {t:.3g}", fontsize=9, loc="left")
        panel.set_xlabel("$x_1$ (units of the data)", fontsize=9)
        tidy(panel)
    row[0].set_ylabel("$x_2$ (units of the data)", fontsize=9)
    picture.suptitle(
        f"Score $\\nabla\\log p_t(x)$, {type(process).__name__} (per unit of x); grey: $\\log p_t$, a nat each step",
        fontsize=10,
    )
    return picture


@torch.no_grad()
def _arrows(
    model: Model, target: Target, t: float, ends: tuple[torch.Tensor, torch.Tensor], arrows: int, highest: float
) -> tuple[torch.Tensor, ...]:
    """The score's two parts and the points where they stand, half a step inside the window, on the CPU."""
    inside = (torch.arange(arrows) + 0.5) / arrows
    x, y = (low + inside * (high - low) for low, high in zip(*ends))
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    points = torch.stack([columns, rows], -1).reshape(-1, *target.event)
    points = points[log_density_at(target, model.process, t, points) > highest - NATS]
    if not len(points):
        raise ValueError(f"arrows={arrows}: at t={t:.4g} all of the density lies between them; more are needed")
    with evaluating(model):
        score = model.predict("score", points.to(model.device, target.location.dtype), t)
    return (*flat(score).float().cpu().unbind(1), *flat(points).unbind(1))


def _scale(u: torch.Tensor, v: torch.Tensor, low: torch.Tensor, high: torch.Tensor, arrows: int) -> float:
    """So that an arrow of the 90% quantile is a little longer than the arrows are apart."""
    apart = (high - low).min().item() / arrows
    return max(torch.hypot(u, v).quantile(0.9).item(), 1e-12) / (1.3 * apart)


def _round(value: float) -> float:
    """One digit of a number, for a key."""
    return float(f"{value:.1g}") if value > 0 else 1.0
