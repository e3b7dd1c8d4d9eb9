"""What the pictures share: colours, the size of a figure, where a density is drawn, and what cannot be drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from sdekit.process import Process
from sdekit.sampling import Model
from sdekit.targets import Target

# Okabe & Ito's colours that differ for every common colour blindness and show on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
# densities are grey, and never so dark that a line in one of the colours is lost in them
GREY = LinearSegmentedColormap.from_list("density", ["#ffffff", "#8a8a8a"], N=48)
_DPI = 110
_TIMES = 9  # at which the width of x_t is looked at
_POOL = 4000  # samples of x_t that say how wide it is


def figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches, with room made for its labels."""
    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def check(target: Target, process: Process, allowed: Sequence[int], what: str) -> int:
    """How many elements one event of the target has.

    Raises ValueError where that is none of ``allowed``, or where ``target`` or ``process`` is something else.
    """
    if not isinstance(target, Target):
        raise ValueError(f"target={type(target).__name__}: it must be one of sdekit.targets, whose density is known")
    if not isinstance(process, Process):
        raise ValueError(f"process={process!r}: it must be a process, such as sdekit.VP()")
    size = target.event.numel()
    if size not in allowed:
        counts = " or ".join(f"{count}" for count in allowed)
        raise ValueError(f"target has events of shape {list(target.event)}: {what} needs {counts} elements")
    return size


def model_of(target: Target, process: Process, model: Model | None) -> Model:
    """``model``, or the target's own. Raises ValueError where the model was made for another process."""
    if model is None:
        return target.model(process)
    if model.process != process:
        raise ValueError(f"model is one of {model.process!r}, process={process!r}: they must be equal")
    return model


def window(
    target: Target, process: Process, times: Sequence[float] | None = None, *states: Tensor
) -> tuple[Tensor, Tensor]:
    """The lowest and the highest x [D] to show: of x_t at ``times`` (default: everywhere) and of ``states``.

    States that lie farther out than x_t itself is wide are left outside: a run that blew up would hide the rest.
    """
    span = process.t_max - process.t_min
    when = [process.t_min + span * i / (_TIMES - 1) for i in range(_TIMES)] if times is None else times
    pool = torch.cat([flat(target.sample(_POOL, 0, t, process)) for t in when])
    low, high = pool.min(0).values, pool.max(0).values
    wide = (high - low).clamp(min=1e-9)
    for state in states:
        points = flat(state, target.event.numel()).to(pool)
        points = torch.where((points > low - wide) & (points < high + wide), points, pool[:1])
        low, high = torch.minimum(low, points.min(0).values), torch.maximum(high, points.max(0).values)
    return (low - 0.04 * wide).cpu(), (high + 0.04 * wide).cpu()


def spread_times(process: Process, shares: Sequence[float]) -> list[float]:
    """The times at which arctan(σ/α) has gone these shares of its way from t_min to t_max.

    That angle says how much of x_t is noise, whatever the process: equal steps in it are equally far apart to the eye.

    >>> from sdekit import Flow
    >>> [round(t, 3) for t in spread_times(Flow(), [0.0, 0.5, 1.0])]
    [0.001, 0.5, 0.999]
    """
    first, last = (math.atan(math.exp(-process.half_log_snr(t))) for t in (process.t_min, process.t_max))
    ends = {0.0: process.t_min, 1.0: process.t_max}  # exactly
    angles = [(1 - share) * first + share * last for share in shares]
    return [
        ends[share] if share in ends else process.t_of_half_log_snr(-math.log(math.tan(angle)))
        for share, angle in zip(shares, angles)
    ]


def flat(x: Tensor, size: int | None = None) -> Float[Tensor, "points size"]:
    """Events as rows: x [n, *event], or any states of ``size`` elements."""
    return x.detach().reshape(-1, size) if size else x.detach().reshape(len(x), -1)


def named(processes: Process | Sequence[Process] | Mapping[str, Process]) -> dict[str, Process]:
    """Processes by name: their class's, or all that they say of themselves where two are of one class."""
    if isinstance(processes, Mapping):
        found = dict(processes)
    else:
        given = [processes] if isinstance(processes, Process) else list(processes)
        kinds = [type(process).__name__ for process in given]
        found = {kind if kinds.count(kind) == 1 else repr(p): p for kind, p in zip(kinds, given)}
    for name, process in found.items():
        if not isinstance(process, Process):
            raise ValueError(f"processes: {name} is {process!r}, it must be a process, such as sdekit.VP()")
    if not found:
        raise ValueError("processes is empty: give at least one")
    return found


def look(i: int) -> dict[str, Any]:
    """The colour and the dashes of line i."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}


def tidy(panel: Axes) -> None:
    """Small numbers, no box."""
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
