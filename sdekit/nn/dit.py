r"""DiT: a transformer over the patches of an image, told the time by adaLN-zero (Peebles & Xie 2023, section 3.2).

Attention is torch's ``scaled_dot_product_attention``, whose fused kernels have a backward pass, for one and for many
probes, and neither forward mode nor a second derivative. ``divergence`` therefore asks torch for its plain kernel
where it needs one of those; a second derivative of one's own is had under
``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sdekit.door import Positive, Tally, Width, door
from sdekit.nn.conditions import Conditions


def positions(height: int, width: int, size: int, like: Tensor) -> Float[Tensor, "tokens size"]:
    """sin and cos of the row and of the column, a quarter of ``size`` each, at rates 10000^(−i/(size/4)).

    The two-dimensional form of Vaswani et al. 2017, section 3.5, as He et al. 2022 (MAE) have it.

    >>> positions(2, 3, 8, torch.zeros(1)).shape
    torch.Size([6, 8])
    """
    count = size // 4
    rates = torch.exp(torch.arange(count, device=like.device) * (-math.log(10000) / count))
    rows, columns = (torch.arange(n, device=like.device)[:, None] * rates for n in (height, width))
    parts = [rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)]
    return torch.cat([wave for part in parts for wave in (part.sin(), part.cos())], -1).reshape(-1, size).to(like.dtype)


def patches(x: Float[Tensor, "batch c h w"], side: int) -> Float[Tensor, "batch tokens values"]:
    """Squares of ``side`` pixels, row by row; each is a vector of side² c numbers.

    >>> x = torch.arange(32.0).reshape(1, 2, 4, 4)
    >>> torch.equal(image(patches(x, 2), 2, (2, 4, 4)), x)
    True
    """
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // side, side, width // side, side)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * side * side)


def image(
    tokens: Float[Tensor, "batch tokens values"], side: int, shape: tuple[int, int, int]
) -> Float[Tensor, "batch c h w"]:
    """The image [batch, *shape] of its ``patches``."""
    channels, height, width = shape
    x = tokens.reshape(len(tokens), height // side, width // side, channels, side, side)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(-1, *shape)


class Block(nn.Module):
    """x + g₁ attention((1 + a₁) norm(x) + b₁), then the same around a perceptron; a, b and g are 0 to begin with."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.modulation = _zeroed(nn.Linear(width, 6 * width))

    def forward(self, x: Float[Tensor, "batch n w"], told: Float[Tensor, "batch w"]) -> Float[Tensor, "batch n w"]:
        a1, b1, g1, a2, b2, g2 = self.modulation(told)[:, None].chunk(6, dim=2)
        x = x + g1 * self._attend(torch.addcmul(b1, self.norm(x), 1 + a1))
        return x + g2 * self.mlp(torch.addcmul(b2, self.norm(x), 1 + a2))

    def _attend(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        parts = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        mixed = F.scaled_dot_product_attention(*parts.permute(2, 0, 3, 1, 4).unbind(0))
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))


@door
class DiT(nn.Module):
    """``net(x, t, label=None, condition=None, end=None)``: a network for images [batch, channels, height, width].

    Args:
        channels: of the image.
        patch: side of a patch in pixels; it divides the image's.
        width: of a token, divisible by ``heads`` and by 4.
        blocks: of attention and perceptron.
        heads: of the attention.
        classes, condition, ends, slowest, fastest: what it is told; see ``conditions.Conditions``.

    Raises ValueError for a width that the heads or 4 do not divide, an image that patches do not divide, and as
    ``Conditions``.

    >>> net = DiT(patch=2, width=16, blocks=1, heads=2, classes=10)
    >>> net(torch.randn(2, 1, 6, 10), torch.zeros(2), label=torch.tensor([3, 10])).shape
    torch.Size([2, 1, 6, 10])
    """

    def __init__(
        self,
        channels: Width = 1,
        patch: Width = 2,
        width: Width = 96,
        blocks: Width = 4,
        heads: Width = 4,
        classes: Tally = 0,
        condition: Tally = 0,
        ends: bool = False,
        slowest: Positive = 0.1,
        fastest: Positive = 4.0,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "channels": channels, "patch": patch, "width": width, "blocks": blocks, "heads": heads, "classes": classes,
            "condition": condition, "ends": ends, "slowest": slowest, "fastest": fastest,
        }  # fmt: skip
        if width % heads or width % 4:
            raise ValueError(f"width={width}: it must be divisible by heads={heads} and by 4")
        self.channels, self.patch, self.width = channels, patch, width
        self.classes = classes
        self.told = Conditions(width, classes, condition, ends, slowest, fastest)
        self.enter = nn.Linear(channels * patch**2, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = _zeroed(nn.Linear(width, 2 * width))
        self.leave = _zeroed(nn.Linear(width, channels * patch**2))

    def forward(
        self,
        x: Float[Tensor, "batch c h w"],
        t: Float[Tensor, "batch"],
        label: Int[Tensor, "batch"] | None = None,
        condition: Float[Tensor, "batch k"] | None = None,
        end: Float[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch c h w"]:
        if x.ndim != 4 or x.shape[1] != self.channels or x.shape[2] % self.patch or x.shape[3] % self.patch:
            raise ValueError(
                f"x has shape {list(x.shape)}: this network takes [batch, {self.channels}, height, width] with height"
                f" and width divisible by {self.patch}"
            )
        told, (_, channels, height, width) = self.told(t, label, condition, end), x.shape
        hidden = self.enter(patches(x, self.patch))
        hidden = hidden + positions(height // self.patch, width // self.patch, self.width, hidden)
        for block in self.blocks:
            hidden = block(hidden, told)
        a, b = self.modulation(told)[:, None].chunk(2, dim=2)
        return image(self.leave(torch.addcmul(b, self.norm(hidden), 1 + a)), self.patch, (channels, height, width))


def _zeroed(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
