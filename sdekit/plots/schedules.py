"""Noise schedules: α, σ and λ over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from sdekit.door import door
from sdekit.plots.style import figure, look, named, tidy
from sdekit.process import Process

_POINTS = 201


@door
def schedules(processes: Process | Sequence[Process] | Mapping[str, Process]) -> Figure:
    """α(t), σ(t) and λ(t) = log(α/σ) of each process, from its t_min (0 on the axis) to its t_max (1).

    Args:
        processes: one, several, or several by the name that the legend gives them.

    Raises ValueError for none, and for what is no process.

    >>> from sdekit import VP, Flow
    >>> lines = schedules([VP(), Flow()]).axes[0].get_lines()
    >>> [line.get_label() for line in lines], float(lines[1].get_ydata()[0])  # Flow: α = 1 − t
    (['VP', 'Flow'], 0.999)
    """
    found = named(processes)
    picture = figure(10.5, 3.4)
    panels = picture.subplots(1, 3)
    shares = [i / (_POINTS - 1) for i in range(_POINTS)]
    for i, (name, process) in enumerate(found.items()):
        knots = [process.knot((1 - share) * process.t_min + share * process.t_max) for share in shares]
        for panel, of in zip(panels, ("alpha", "sigma", "half_log_snr")):
            panel.plot(shares, [getattr(knot, of) for knot in knots], label=name, linewidth=1.6, **look(i))
    titles = ("α: what is left of the data", "σ: noise", "λ = log(α/σ)")
    units = ("α", "σ (units of the data)", "λ (nats)")
    for panel, title, unit in zip(panels, titles, units):
        panel.set_title(title, fontsize=10)
        panel.set_ylabel(unit, fontsize=9)
        panel.set_xlabel("time, from t_min (0) to t_max (1)", fontsize=9)
        panel.grid(alpha=0.25, linewidth=0.6)
        tidy(panel)
    panels[1].set_yscale("log")
    picture.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
    return picture
