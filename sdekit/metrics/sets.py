"""What the distances between sets share: both sets as rows, checked, and all pairs of them, a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from sdekit.noise import normal

Samples = Float[Tensor, "_ *_"]
Distance = Float[Tensor, ""]
CHUNK = 1 << 23  # pairs held at once: 64 MB each in float64


def rows(x: Tensor, y: Tensor, least: int = 1, called: tuple[str, str] = ("x", "y")) -> tuple[Tensor, Tensor]:
    """Both sets as float64 [n, d] and [m, d] of at least ``least`` samples, all finite; ``called`` by errors."""
    both = ", ".join(called)
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"{both}: samples of shapes {list(x.shape[1:])} and {list(y.shape[1:])}: they must be equal")
    if min(len(x), len(y)) < least:
        raise ValueError(f"{both}: {len(x)} and {len(y)} samples given: each set needs at least {least}")
    for name, z in zip(called, (x, y)):
        if not bool(z.isfinite().all()):  # which no ball would hold, and no sum would show
            raise ValueError(f"{name} holds NaN or infinity: every entry must be finite")
    return x.reshape(len(x), -1).double(), y.reshape(len(y), -1).double()


def centred(x: Tensor, y: Tensor, least: int = 1, called: tuple[str, str] = ("x", "y")) -> tuple[Tensor, Tensor]:
    """The same, shifted by one vector so that y has mean 0: what depends on differences alone cancels less."""
    x, y = rows(x, y, least, called)
    centre = y.mean(0)
    return x - centre, y - centre


def step(y: Tensor) -> int:
    """The number of rows of x that are compared with all of y at once."""
    return max(1, CHUNK // len(y))


def squares(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """|x_i − y_j|² [c, m] for a few rows of x at a time, in order: |x|² + |y|² − 2 x·y, by one product of matrices."""
    norms = y.square().sum(1)
    for part in x.split(step(y)):
        found = torch.addmm(norms, part, y.T, alpha=-2)
        yield found.add_(part.square().sum(1, keepdim=True)).clamp_(min=0)


def shuffled(n: int, seed: int) -> Tensor:
    """A permutation of n samples: their order in a file is seldom random."""
    return normal(seed, 0, torch.arange(n), (), torch.float64).argsort()
