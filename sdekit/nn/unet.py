r"""A small U-Net for images: residual blocks told the time, self-attention at the lowest resolution.

The shape is that of Ho et al. 2020 (appendix B): group norm, SiLU and 3×3 convolutions in residual blocks,
halving between levels, with two changes that make it cheap. Skips are added, not concatenated, and the time enters
as a scale and a shift after the second norm (Dhariwal & Nichol 2021, section 4.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sdekit.door import Positive, Tally, Width, door

Layer = TypeVar("Layer", bound=nn.Module)


def time_features(
    times: Float[Tensor, "batch"], count: int, slowest: float, fastest: float
) -> Float[Tensor, "batch features"]:
    """cos(ω t), sin(ω t) for ``count // 2`` frequencies ω in geometric progression, in rad per unit of t.

    At least float32 whatever the network's dtype: bfloat16 resolves three digits of a phase.

    >>> time_features(torch.zeros(2), 6, 0.1, 4.0)[0].tolist()
    [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    """
    exact = times.to(torch.promote_types(times.dtype, torch.float32))
    log_rates = torch.linspace(math.log(slowest), math.log(fastest), count // 2, dtype=exact.dtype, device=exact.device)
    phases = exact[:, None] * log_rates.exp()
    return torch.cat([phases.cos(), phases.sin()], dim=1)


class ResidualBlock(nn.Module):
    """x + conv(SiLU((1 + a) norm(conv(SiLU(norm(x)))) + b)), with a, b linear in the time embedding.

    The last convolution starts at zero, so that a new block is the identity.

    >>> block = ResidualBlock(8, 4, groups=2)
    >>> x = torch.randn(1, 8, 6, 6)
    >>> torch.equal(block(x, torch.randn(1, 4)), x)
    True
    """

    def __init__(self, width: int, embedding: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * width)
        self.norm2 = nn.GroupNorm(groups, width)
        self.conv2 = _zeroed(nn.Conv2d(width, width, 3, padding=1))

    def forward(
        self, x: Float[Tensor, "batch c h w"], embedding: Float[Tensor, "batch e"]
    ) -> Float[Tensor, "batch c h w"]:
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = torch.addcmul(shift, self.norm2(hidden), 1 + scale)
        return x + self.conv2(F.silu(hidden))


class ResidualBlocks(nn.ModuleList):
    """Residual blocks, one after the other."""

    def forward(
        self, x: Float[Tensor, "batch c h w"], embedding: Float[Tensor, "batch e"]
    ) -> Float[Tensor, "batch c h w"]:
        for block in self:
            x = block(x, embedding)
        return x


class SelfAttention(nn.Module):
    """x + projection of multi-head attention among the pixels (Vaswani et al. 2017).

    Written out, since the fused kernels have no forward-mode derivative, which divergences need.

    >>> x = torch.randn(1, 8, 4, 4)
    >>> torch.equal(SelfAttention(8, heads=2, groups=2)(x), x)  # the projection starts at zero
    True
    """

    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = _zeroed(nn.Linear(width, width))

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h w"]:
        batch, width, height, columns = x.shape
        tokens = self.norm(x).flatten(2).mT
        parts = self.qkv(tokens).reshape(batch, height * columns, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (query @ key.mT * (width // self.heads) ** -0.5).softmax(-1)
        mixed = (weights @ value).transpose(1, 2).reshape(batch, height * columns, width)
        return x + self.out(mixed).mT.reshape(x.shape)


@door
class UNet(nn.Module):
    """``net(x, t, label=None)``: a network for images [batch, channels, height, width].

    Level k works at 1/2^k of the resolution with ``widths[k]`` channels and ``blocks`` residual blocks on
    the way down and as many on the way up; the lowest level has them once more, around its attention.

    Args:
        channels: of the image.
        widths: channels of each level; every one divisible by ``groups`` and the last by ``heads``.
        blocks: residual blocks per level and direction.
        embedding: width of the time and class embedding.
        heads: of the attention; 0 leaves it out.
        groups: of every group norm.
        classes: number of classes, 0 for none. With classes, ``label`` holds int64 [batch] in 0 … classes; the
            value ``classes`` is the null class, and ``label=None`` stands for it everywhere (Ho & Salimans 2022).
        slowest, fastest: range of the time embedding's frequencies, in rad per unit of the time that the
            network is told; the defaults suit half-log-SNR.

    Raises ValueError for widths that the groups or heads do not divide, for an image size that the levels
    cannot halve, and for a label where there are no classes.

    >>> net = UNet(widths=(8, 16), embedding=8, groups=4, classes=10)
    >>> net(torch.randn(2, 1, 6, 10), torch.zeros(2), label=torch.tensor([3, 10])).shape
    torch.Size([2, 1, 6, 10])
    """

    def __init__(
        self,
        channels: Width = 1,
        widths: Sequence[Width] = (32, 64),
        blocks: Width = 1,
        embedding: Width = 64,
        heads: Width = 2,
        groups: Width = 8,
        classes: Tally = 0,
        slowest: Positive = 0.1,
        fastest: Positive = 4.0,
    ) -> None:
        super().__init__()
        _check_widths(widths, heads, groups)
        self.config: dict[str, Any] = {
            "channels": channels, "widths": list(widths), "blocks": blocks, "embedding": embedding, "heads": heads,
            "groups": groups, "classes": classes, "slowest": slowest, "fastest": fastest,
        }  # fmt: skip
        self.classes, self.features, self.slowest, self.fastest = classes, embedding, slowest, fastest
        self.time = nn.Sequential(
            nn.Linear(embedding, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        self.label = nn.Embedding(classes + 1, embedding) if classes else None

        def stack(width: int) -> ResidualBlocks:
            return ResidualBlocks(ResidualBlock(width, embedding, groups) for _ in range(blocks))

        self.enter = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(stack(width) for width in widths)
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in zip(widths, widths[1:], strict=False))
        self.attention = SelfAttention(widths[-1], heads, groups) if heads else nn.Identity()
        self.grow = nn.ModuleList(_doubling(b, a) for a, b in zip(widths, widths[1:], strict=False))
        self.up = nn.ModuleList(stack(width) for width in widths)
        self.leave = nn.Sequential(
            nn.GroupNorm(groups, widths[0]), nn.SiLU(), _zeroed(nn.Conv2d(widths[0], channels, 3, padding=1))
        )

    def forward(
        self,
        x: Float[Tensor, "batch c h w"],
        t: Float[Tensor, "batch"],
        label: Int[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch c h w"]:
        self._check_size(x)
        embedding = self._embed(t, label)
        hidden, skips = self.enter(x), []
        for level, blocks in enumerate(self.down):
            hidden = self.shrink[level - 1](hidden) if level else hidden
            hidden = blocks(hidden, embedding)
            skips.append(hidden)
        hidden = self.attention(hidden)
        for level in reversed(range(len(self.up))):
            hidden = self.up[level](hidden, embedding)
            hidden = self.grow[level - 1](hidden) + skips[level - 1] if level else hidden
        return self.leave(hidden)

    def _embed(self, t: Tensor, label: Tensor | None) -> Tensor:
        features = time_features(t, self.features, self.slowest, self.fastest)
        embedding = self.time(features.to(self.enter.weight.dtype))
        if self.label is None:
            if label is not None:
                raise ValueError("label: this network was built with classes=0 and takes none")
            return embedding
        return embedding + (self.label.weight[-1] if label is None else self.label(label))

    def _check_size(self, x: Tensor) -> None:
        unit = 2 ** (len(self.down) - 1)
        if x.ndim != 4 or x.shape[2] % unit or x.shape[3] % unit:
            raise ValueError(
                f"x has shape {list(x.shape)}: this network takes [batch, channels, height, width] with height and "
                f"width divisible by {unit}"
            )


def _doubling(width: int, smaller: int) -> nn.Module:
    # the same map as a transposed 2×2 convolution with stride 2, and twice as fast on a CPU
    return nn.Sequential(nn.Conv2d(width, 4 * smaller, 1), nn.PixelShuffle(2))


def _zeroed(layer: Layer) -> Layer:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _check_widths(widths: Sequence[Width], heads: int, groups: int) -> None:
    if not widths:
        raise ValueError("widths is empty: a network has at least one level")
    for width in widths:
        if width % groups:
            raise ValueError(f"widths={list(widths)}: {width} is not divisible by groups={groups}")
    if heads and widths[-1] % heads:
        raise ValueError(f"widths={list(widths)}: the last is not divisible by heads={heads}")
