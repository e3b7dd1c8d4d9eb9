"""What a network is told beside its state, as one vector: the time, where a step ends, a class, a vector."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from sdekit.nn.unet import time_features


class Conditions(nn.Module):
    """Embedding [batch, width] of t, and of what else the network was built for.

    Args:
        width: of the embedding; its half is the number of frequencies.
        classes: number of classes, 0 for none. ``label`` holds int64 [batch] in 0 … classes; the value ``classes`` is
            the null class, and ``label=None`` stands for it everywhere (Ho & Salimans 2022).
        condition: length of the vector ``condition`` [batch, length], 0 for none; None stands for the zero vector.
        ends: whether ``end`` [batch] is told too, the time at which a step ends (``training.mean_flow``): t − end is.
        slowest, fastest: range of the frequencies, in rad per unit of time.

    Raises ValueError for what the network was not built for, and for vectors of another length.

    >>> import torch
    >>> told = Conditions(8, classes=3, condition=2)
    >>> told(torch.zeros(4), label=torch.tensor([0, 1, 2, 3]), condition=torch.ones(4, 2)).shape
    torch.Size([4, 8])
    """

    def __init__(
        self, width: int, classes: int = 0, condition: int = 0, ends: bool = False, slowest: float = 0.1,
        fastest: float = 4.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.width, self.slowest, self.fastest, self.length = width, slowest, fastest, condition
        self.enter = nn.Linear(width, width)
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.condition = nn.Linear(condition, width, bias=False) if condition else None
        self.end = nn.Linear(width, width) if ends else None
        self.leave = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(
        self,
        t: Float[Tensor, "batch"],
        label: Int[Tensor, "batch"] | None = None,
        condition: Float[Tensor, "batch k"] | None = None,
        end: Float[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch width"]:
        told = self.enter(self._features(t))
        given = {"label": label, "condition": condition, "end": end}
        parts: dict[str, Any] = {"label": self.label, "condition": self.condition, "end": self.end}
        for name, value in given.items():
            if value is not None and parts[name] is None:
                raise ValueError(f"{name}: this network was built without it and takes none")
        if self.label is not None:
            told = told + (self.label.weight[-1] if label is None else self.label(label))
        if self.condition is not None and condition is not None:
            if condition.shape != (len(t), self.length):
                raise ValueError(f"condition has shape {list(condition.shape)}: it must be {[len(t), self.length]}")
            told = told + self.condition(condition.to(told.dtype))
        if self.end is not None:
            if end is None:
                raise ValueError("end: this network was built to be told where a step ends, [batch]")
            told = told + self.end(self._features(t - end))
        return self.leave(told)

    def _features(self, t: Tensor) -> Tensor:
        return time_features(t, self.width, self.slowest, self.fastest).to(self.enter.weight.dtype)
