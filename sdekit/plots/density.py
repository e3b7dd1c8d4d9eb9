"""The density of x_t on a grid: over time in one dimension, at one time in two."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.image import AxesImage
from torch import Tensor

from sdekit.data import Standardise
from sdekit.door import record
from sdekit.plots.style import GREY
from sdekit.process import Process
from sdekit.targets import Target

NATS = 8  # below its highest a logarithmic density is white
# parts of a cell, in turn until a column holds its mass and its cells stay as they are
_PARTS = (1, 2, 8, 32, 128, 512, 2048, 4096)
_MASS = 2e-3  # of a column that may lie outside the window, or be lost between the points
_CHANGE = 0.01  # of a column's highest cell, by which more parts may still change one


@record
@dataclass(frozen=True)
class DensityImage:
    """p_t(x) in one dimension: ``values[i, j]`` is its mean over cell i of x at the time ``t[j]``.

    Attributes:
        t: the columns' times, equally spaced.
        edges: of the cells of x, equally spaced.
        values: a density of x; a column's sum times the cells' width is 1 but for what lies outside the window.
    """

    t: Float[Tensor, "columns"]
    edges: Float[Tensor, "rows_and_one"]
    values: Float[Tensor, "rows columns"]

    @staticmethod
    def of(
        target: Target, process: Process, low: float, high: float, columns: int = 160, rows: int = 400
    ) -> DensityImage:
        """The density of a target in one dimension between ``low`` and ``high``, from t_min to t_max.

        A cell that is wide beside the density is cut into parts, so that no peak falls between two points; a cell is
        right to 1% of the highest of its column. Raises ValueError where four thousand parts are not enough, or where
        more than 0.2% of the density lies outside.

        >>> from sdekit import VP, targets
        >>> image = DensityImage.of(targets.Gaussian(torch.zeros(1), torch.eye(1)), VP(), -6.0, 6.0)
        >>> mass = image.values.sum(0) * (image.edges[1] - image.edges[0])
        >>> bool((mass - 1).abs().max() < 1e-5)
        True
        """
        edges = torch.linspace(low, high, rows + 1, dtype=torch.float64)
        t = torch.linspace(process.t_min, process.t_max, columns, dtype=torch.float64)
        values = [_column(target, process, time, edges) for time in t.tolist()]
        return DensityImage(t, edges, torch.stack(values, 1))

    def undo(self, to: Standardise) -> DensityImage:
        """Of data in their own units, where this is of standardised ones: p(x) = p(y)/scale."""
        edges, scale = to.undo(self.edges[:, None])[:, 0], to.scale.double().item()
        return DensityImage(self.t, edges, self.values / scale)

    @property
    def top(self) -> float:
        """The density that is drawn darkest: the highest, but no more than six times that of the middle column."""
        highest = self.values.max(0).values
        return min(highest.max().item(), 6 * highest.median().item())

    def draw(self, panel: Axes) -> AxesImage:
        """As an image over t and x; grey goes with the square root of the density, so that wide ones show too."""
        half = 0.5 * (self.t[1] - self.t[0]).item()
        extent = (self.t[0].item() - half, self.t[-1].item() + half, self.edges[0].item(), self.edges[-1].item())
        return panel.imshow(
            self.values.numpy(), origin="lower", extent=extent, aspect="auto", cmap=GREY, interpolation="nearest",
            norm=PowerNorm(0.5, vmin=0.0, vmax=self.top), zorder=0,
        )  # fmt: skip


def _column(target: Target, process: Process, t: float, edges: Tensor) -> Tensor:
    """Mean densities of the cells between ``edges`` at time t."""
    width = (edges[1] - edges[0]).item()
    mass, before = 0.0, None
    for parts in _PARTS:
        inside = (torch.arange(parts, dtype=edges.dtype) + 0.5) / parts * width
        points = (edges[:-1, None] + inside).reshape(-1, *target.event)
        mean = density_at(target, process, t, points).reshape(-1, parts).mean(1)
        mass = mean.sum().item() * width
        settled = before is not None and ((mean - before).abs().max() < _CHANGE * mean.max()).item()
        if settled and abs(mass - 1) < _MASS:
            return mean
        before = mean
    where = f"target: at t={t:.4g} the window from {edges[0].item():.4g} to {edges[-1].item():.4g}"
    if mass < 1 - _MASS and before is not None and before.max() > 0:
        raise ValueError(f"{where} holds {mass:.3g} of the density, not 1: it must be wider, or the target of float32")
    raise ValueError(f"{where} has cells of {width:.3g}, a thousand times as wide as the density: it must be narrower")


def density_at(target: Target, process: Process, t: float, points: Tensor) -> Tensor:
    """p_t at points [n, *event], float64 on the CPU; computed where the target is."""
    return log_density_at(target, process, t, points).exp()


def log_density_at(target: Target, process: Process, t: float, points: Tensor) -> Tensor:
    """log p_t at points [n, *event]; see ``density_at``."""
    place = target.location.device
    points = points.to(place, torch.float64 if place.type == "cpu" else torch.float32)
    return target.log_prob(points, t, process).double().cpu()


@record
@dataclass(frozen=True)
class Plane:
    """log p_t(x) in two dimensions on points x[j], y[i]: ``values[i, j]``."""

    x: Float[Tensor, "columns"]
    y: Float[Tensor, "rows"]
    values: Float[Tensor, "rows columns"]

    @staticmethod
    def of(target: Target, process: Process, t: float, low: Tensor, high: Tensor, points: int = 200) -> Plane:
        """Of a target in two dimensions, on ``points`` by ``points`` from low [2] to high [2]; no means of cells.

        >>> from sdekit import VP, targets
        >>> target = targets.Gaussian(torch.zeros(2), torch.eye(2))
        >>> plane = Plane.of(target, VP(), 0.5, torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 2.0]), points=3)
        >>> plane.values[1].exp().mul(2 * torch.pi).round(decimals=3)  # along y = 0
        tensor([0.6070, 1.0000, 0.6070], dtype=torch.float64)
        """
        x, y = (torch.linspace(a, b, points, dtype=torch.float64) for a, b in zip(low.tolist(), high.tolist()))
        return Plane(
            x, y, log_density_at(target, process, t, _grid(x, y).reshape(-1, *target.event)).reshape(len(y), -1)
        )

    def draw(self, panel: Axes, log: bool = False) -> AxesImage:
        """As an image: the density, or down to ``NATS`` below its highest its logarithm."""
        shown = self.values if log else self.values.exp()
        colours = GREY.resampled(NATS) if log else GREY  # one step a nat
        top = shown.max().item()
        half_x, half_y = (0.5 * (axis[1] - axis[0]).item() for axis in (self.x, self.y))
        (left, right), (low, high) = ((axis[0].item(), axis[-1].item()) for axis in (self.x, self.y))
        extent = (left - half_x, right + half_x, low - half_y, high + half_y)
        norm = PowerNorm(1.0, vmin=top - NATS, vmax=top) if log else PowerNorm(0.5, vmin=0.0, vmax=top)
        image = panel.imshow(
            shown.numpy(), origin="lower", extent=extent, cmap=colours, interpolation="nearest", norm=norm, zorder=0
        )
        panel.set_aspect("equal")
        return image


def _grid(x: Tensor, y: Tensor) -> Tensor:
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([columns, rows], -1)
