r"""Means over all pairs: the energy distance, and mean discrepancies of Gaussian and polynomial kernels.

With a kernel k, MMD² = E k(X, X') + E k(Y, Y') − 2 E k(X, Y). Where the means leave out i = j it is unbiased, and as
often below 0 as above where both laws are one (Gretton et al. 2012, eq. 3); with i = j it is biased upwards (eq. 5).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from sdekit.door import Count, Positive, door
from sdekit.metrics.sets import Distance, Samples, centred, rows, shuffled, squares, step


def _total(parts: Iterable[Tensor]) -> Tensor:
    return torch.stack([part.sum() for part in parts]).sum()


def _mean_distance(x: Tensor, y: Tensor) -> Tensor:
    return _total(part.sqrt_() for part in squares(x, y)) / (len(x) * len(y))


@door
def energy_distance(x: Samples, y: Samples) -> Distance:
    r"""√(2 E|X − Y| − E|X − X'| − E|Y − Y'|), with the means over all pairs, i = j included (V-statistics).

    0 only for equal laws. In the square root of the data's units (a large shift by μ gives √(2|μ|)).
    Cost O((n + m)² d); pairwise distances are held 8M at a time, whatever n and m: about 200 MB.
    Biased upwards: its square by E|X − X'|/n + E|Y − Y'|/m over the value for the laws.

    Raises ValueError for shapes that differ or empty sets.
    Source: Székely & Rizzo 2013, eq. 6.1 and its square root (as scipy.stats.energy_distance in 1-D).

    >>> energy_distance(torch.zeros(3, 2), torch.tensor([[3.0, 4.0]])).item() == 10**0.5
    True
    """
    x, y = centred(x, y)
    squared = 2 * _mean_distance(x, y) - _mean_distance(x, x) - _mean_distance(y, y)
    return squared.clamp_min(0).sqrt()


def _unbiased(xx: Tensor, yy: Tensor, xy: Tensor, n: int, m: int) -> Tensor:
    """MMD² from sums of the kernel over pairs of x, of y, both without i = j, and of both."""
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)


def _gaussian(x: Tensor, y: Tensor, sigma: float | Tensor) -> Tensor:
    return _total(part.div_(-2 * sigma**2).exp_() for part in squares(x, y))


@door
def mmd(x: Samples, y: Samples, sigma: Positive | None = None) -> Distance:
    r"""MMD² with k(x, y) = exp(−|x − y|²/(2σ²)), without bias: the means leave out i = j.

    Without unit, at most 2. σ is by default the median distance between samples of y (of 1,000 of them at most): the
    kernel is then the same for every x that is compared with y. 0 in the mean for equal laws, and so below 0 in half of
    the cases. Cost O((n + m)² d), 8M pairs at a time: about 200 MB.

    Raises ValueError for shapes that differ, fewer than 2 samples in a set, and a σ that is not positive and finite.
    Source: Gretton et al. 2012, eq. 3; there the median is that of both sets.

    >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]])
    >>> round(mmd(x, y, sigma=1.0).item(), 6) == round(math.exp(-0.5) - 1, 6)
    True
    """
    x, y = centred(x, y, 2)
    width = _median_distance(y) if sigma is None else sigma
    if not 0 < width < math.inf:
        why = "half of the pairs of y coincide, give another" if sigma is None else "it must be positive and finite"
        raise ValueError(f"sigma={width}: {why}")
    n, m = len(x), len(y)
    return _unbiased(_gaussian(x, x, width) - n, _gaussian(y, y, width) - m, _gaussian(x, y, width), n, m)


def _median_distance(y: Tensor) -> float:
    few = y[shuffled(len(y), 0)[:1000].to(y.device)]
    return torch.pdist(few).median().item()


@door
def cmmd(x: Samples, y: Samples, sigma: Positive = 10.0, scale: float = 1000.0) -> Distance:
    r"""1000 MMD² with k(x, y) = exp(−|x − y|²/(2σ²)), σ = 10, with i = j in the means: for CLIP's embeddings of images.

    Call it with features(x), features(y). σ is meant for those embeddings: for others take ``mmd``. Biased
    upwards, for equal laws by 1000 (1 − E k(X, X')) (1/n + 1/m). Cost as of ``mmd``.

    Raises ValueError for shapes that differ, empty sets, and a σ that is not positive and finite.
    Source: Jayasumana et al. 2024 and the code published with it; Gretton et al. 2012, eq. 5.

    >>> round(cmmd(torch.zeros(3, 1), torch.full((3, 1), 10.0)).item(), 3) == round(2000 * (1 - math.exp(-0.5)), 3)
    True
    """
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma={sigma}: it must be positive and finite")
    x, y = centred(x, y)
    n, m = len(x), len(y)
    means = _gaussian(x, x, sigma) / n**2 + _gaussian(y, y, sigma) / m**2 - 2 * _gaussian(x, y, sigma) / (n * m)
    return scale * means.clamp_min(0)


def _cubes(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    for part in x.split(step(y)):
        yield (part @ y.T).div_(x.shape[1]).add_(1).pow_(3)


def _apart(x: Tensor) -> Tensor:
    """The sum over pairs i ≠ j of one set."""
    return _total(_cubes(x, x)) - (x.square().sum(1) / x.shape[1] + 1).pow(3).sum()


@door
def kernel_distance(x: Samples, y: Samples, block: Count = 10_000) -> Distance:
    r"""MMD² with k(x, y) = (x·y/d + 1)³, without bias: of features(x), features(y) the kernel (Inception) distance.

    All pairs of up to ``block`` samples; larger sets are dealt at random, always alike, into equally many blocks of at
    most so many, whose distances are averaged: still without bias, at a cost of O((n + m) d block). The published code
    averages over 100 random subsets of 1,000, which has the same mean and a larger error. In the sixth power of the
    features' units, over d³; not blind to a shift. 0 in the mean for equal laws, and so below 0 in half of the cases.

    Raises ValueError for shapes that differ, fewer than 2 samples in a set, and a block of fewer than 2.
    Source: Bińkowski et al. 2018, section 4; Gretton et al. 2012, eq. 3.

    >>> kernel_distance(torch.zeros(2, 1), torch.ones(2, 1)).item()  # 1 + 8 − 2
    7.0
    """
    if block < 2:
        raise ValueError(f"block={block}: it must be at least 2")
    x, y = rows(x, y, 2)
    n, m = len(x), len(y)
    blocks = min(math.ceil(max(n, m) / block), min(n, m) // 2)
    of_x, of_y = shuffled(n, 0).to(x.device), shuffled(m, 1).to(y.device)
    return torch.stack([_block(x[of_x[i::blocks]], y[of_y[i::blocks]]) for i in range(blocks)]).mean()


def _block(x: Tensor, y: Tensor) -> Tensor:
    return _unbiased(_apart(x), _apart(y), _total(_cubes(x, y)), len(x), len(y))
