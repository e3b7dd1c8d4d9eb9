r"""Networks of EDM (Karras et al. 2022), and others with their interface: D(x, σ, class_labels) → x_0, x = x_0 + σ ε.

That is what ``EDMPrecond``, ``VPPrecond``, ``VEPrecond`` and ``iDDPMPrecond`` of the paper's code are: preconditioned,
so that all of them predict x_0 of a variance-exploding x, whatever they were trained under.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sdekit.door import door
from sdekit.interop.weights import load
from sdekit.model import ScoreModel
from sdekit.process import EDM

__all__ = ["load", "wrap"]


@door
def wrap(net: Callable[..., Tensor], *, sigma_min: float | None = None, sigma_max: float | None = None) -> ScoreModel:
    """A network D(x, σ, class_labels=None) → x_0 as a ``ScoreModel`` of ``EDM(sigma_min, sigma_max)``.

    A network with ``label_dim`` > 0 takes the condition ``class_labels``: classes as whole numbers [n], or rows
    [n, label_dim] as the paper's code has them; rows of zeros are no class. The paper's sampler is
    ``sample(model, shape, solver="heun", grid="karras", nfe=35, final="denoise", dtype=torch.float64)``: 18 σ.

    Args:
        net: returns x's shape, in any dtype.
        sigma_min, sigma_max: where sampling ends and begins; by default the network's own where they are positive
            and finite, otherwise the paper's 0.002 and 80.

    Raises ValueError for a range that the network does not cover, and at a call without the labels that it takes, with
    labels that it does not, or with others than those.

    >>> model = wrap(lambda x, sigma: x / (1 + sigma[:, None] ** 2))  # data N(0, 1)
    >>> model.x0(torch.ones(2, 3), 1.0)[0, 0].item(), model.process
    (0.5, EDM(t_min=0.002, t_max=80.0))
    """
    low, high = sigma_range(net, sigma_min, sigma_max)
    classes = getattr(net, "label_dim", None)
    return ScoreModel(net if classes is None else _Labelled(net, int(classes)), EDM(low, high), "x0")


@door
def sigma_range(net: object, sigma_min: float | None, sigma_max: float | None) -> tuple[float, float]:
    """The σ that were asked for, or else those that ``net`` states, or EDM's.

    >>> sigma_range(None, None, 10.0)
    (0.002, 10.0)
    """
    least, most = float(getattr(net, "sigma_min", 0.0)), float(getattr(net, "sigma_max", math.inf))
    low = sigma_min if sigma_min is not None else least if least > 0 else EDM().t_min
    high = sigma_max if sigma_max is not None else most if most < math.inf else EDM().t_max
    if not 0 < low < high < math.inf:
        raise ValueError(f"sigma_min={low}, sigma_max={high}: they need 0 < sigma_min < sigma_max")
    for name, asked in {"sigma_min": low, "sigma_max": high}.items():
        if not least <= asked <= most:
            raise ValueError(f"{name}={asked}: the network covers σ from {least:g} to {most:g}")
    return low, high


class _Labelled(nn.Module):
    """The network with its labels checked: it would take none for zeros, and class numbers for rows of other labels."""

    def __init__(self, net: Callable[..., Tensor], classes: int) -> None:
        super().__init__()
        self.net, self.classes = net, classes

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None, **extra: Any) -> Tensor:
        if not self.classes:
            if class_labels is not None:
                raise ValueError("class_labels: given, but the network was trained without (its label_dim is 0)")
            return self.net(x, sigma, **extra)
        return self.net(x, sigma, self._rows(x, class_labels), **extra)

    def _rows(self, x: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise ValueError(
                f"class_labels: missing, and the network takes {self.classes} classes: give whole numbers [n], or rows"
                f" [n, {self.classes}], of zeros for no class"
            )
        if labels.ndim == 1 and not labels.is_floating_point() and len(labels) in (1, len(x)):
            if labels.device.type == "cpu" and not bool(((labels >= 0) & (labels < self.classes)).all()):
                raise ValueError(
                    f"class_labels: they must lie from 0 to {self.classes - 1}, as the network has classes"
                )
            return (labels[:, None] == torch.arange(self.classes, device=labels.device)).to(x.dtype)
        if labels.ndim != 2 or labels.shape[1] != self.classes or len(labels) not in (1, len(x)):
            raise ValueError(
                f"class_labels: shape {list(labels.shape)} with {len(x)} samples: it must be whole numbers"
                f" [{len(x)}], or rows [{len(x)}, {self.classes}]"
            )
        return labels.to(x.dtype)
