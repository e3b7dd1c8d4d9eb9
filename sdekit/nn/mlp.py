"""A residual network for vectors."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sdekit.door import Positive, Tally, Width, door
from sdekit.nn.conditions import Conditions


class Block(nn.Module):
    """x + W₂ SiLU((1 + a) norm(W₁ x) + b), with a, b linear in what the network is told."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.outer = nn.Linear(width, width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: Float[Tensor, "batch w"], told: Float[Tensor, "batch w"]) -> Float[Tensor, "batch w"]:
        scale, shift = self.modulation(told).chunk(2, dim=1)
        return x + self.outer(F.silu(torch.addcmul(shift, self.norm(self.inner(x)), 1 + scale)))


@door
class MLP(nn.Module):
    """``net(x, t, label=None, condition=None, end=None)``: a network for vectors [batch, size].

    Args:
        size: of a vector.
        width: of the layers, and of the embedding of what the network is told.
        blocks: residual blocks.
        classes, condition, ends, slowest, fastest: what it is told; see ``conditions.Conditions``. The frequencies
            suit half-log-SNR; for a time from 0 to 1 some ten times as fast.

    Raises ValueError for another shape, and as ``Conditions``.

    >>> net = MLP(2, width=16, classes=3)
    >>> net(torch.randn(4, 2), torch.zeros(4), label=torch.tensor([0, 1, 2, 3])).shape
    torch.Size([4, 2])
    """

    def __init__(
        self,
        size: Width,
        width: Width = 128,
        blocks: Width = 3,
        classes: Tally = 0,
        condition: Tally = 0,
        ends: bool = False,
        slowest: Positive = 0.1,
        fastest: Positive = 4.0,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "size": size, "width": width, "blocks": blocks, "classes": classes, "condition": condition, "ends": ends,
            "slowest": slowest, "fastest": fastest,
        }  # fmt: skip
        if width % 2:
            raise ValueError(f"width={width}: it must be even, for as many cosines as sines of the time")
        self.size = size
        self.classes = classes
        self.told = Conditions(width, classes, condition, ends, slowest, fastest)
        self.enter = nn.Linear(size, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, size))

    def forward(
        self,
        x: Float[Tensor, "batch d"],
        t: Float[Tensor, "batch"],
        label: Int[Tensor, "batch"] | None = None,
        condition: Float[Tensor, "batch k"] | None = None,
        end: Float[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch d"]:
        if x.ndim != 2 or x.shape[1] != self.size:
            raise ValueError(f"x has shape {list(x.shape)}: this network takes [batch, {self.size}]")
        told, hidden = self.told(t, label, condition, end), self.enter(x)
        for block in self.blocks:
            hidden = block(hidden, told)
        return self.leave(hidden)
