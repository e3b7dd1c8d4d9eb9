"""Posterior samples as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

_COLUMNS = 8


def show_image(panel: Axes, image: Tensor, title: str = "", low: float = -1.0, high: float = 1.0) -> None:
    """One picture [channels, height, width] of values from ``low`` to ``high``, grey where it has one channel."""
    pixels = ((image.detach().double().cpu() - low) / (high - low)).clamp(0, 1).permute(1, 2, 0).expand(-1, -1, 3)
    panel.imshow(pixels.numpy(), interpolation="nearest")
    panel.set_title(title, fontsize=8)
    panel.set_axis_off()


def inversion(x: Tensor, shown: Sequence[tuple[str, Tensor]], path: str | Path) -> Path:
    """Draw what is ``shown`` (names and samples [*event]: truth, measurement), the mean and spread of x, and samples.

    Pictures stand in rows of eight; other samples are a scatter of their first and second element.
    """
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    if x.ndim == 4 and x.shape[1] in (1, 3):
        top = [*shown, ("mean", x.mean(0)), ("std (0 to 1)", x.std(0) * 2 - 1)]
        panels = figure.subplots(3, _COLUMNS)
        for panel in panels.flatten():
            panel.set_axis_off()
        for panel, (name, image) in zip(panels[0], top):
            show_image(panel, image, name)
        for panel, image in zip(panels[1:].flatten(), x):
            show_image(panel, image)
    else:
        figure.set_size_inches(4, 4)
        panel, flat = figure.subplots(), x.flatten(1).cpu()
        second = min(1, flat.shape[1] - 1)
        panel.scatter(flat[:, 0], flat[:, second], s=3, linewidths=0)
        for name, point in shown:
            if point.numel() == flat.shape[1]:
                panel.plot(point.flatten()[0].item(), point.flatten()[second].item(), "x", label=name)
        panel.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    return Path(path)
