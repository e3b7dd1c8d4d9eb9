"""What is meant for features of samples: the Fréchet distance, without its bias too, and the Vendi score."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sdekit.door import Count, door
from sdekit.metrics.sets import Distance, Samples, centred, rows, shuffled


def _root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix; eigenvalues below 0 are rounding."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T


@door
def frechet_distance(x: Samples, y: Samples) -> Distance:
    r"""|μ_x − μ_y|² + tr(S_x + S_y − 2 (S_x S_y)^{1/2}): squared W_2 between the Gaussians fitted to x and y.

    Call it with features(x), features(y) for a Fréchet distance in a feature space (FID uses Inception's).
    In squared units of what it is given. tr (S_x S_y)^{1/2} is the sum of the singular values of
    S_x^{1/2} S_y^{1/2}, each root by a symmetric eigendecomposition: it stays real for singular covariances.
    Cost O((n + m) d² + d³). Biased upwards by O(1/n + 1/m), growing with d²; singular where n ≤ d.

    Raises ValueError for shapes that differ or fewer than 2 samples in a set.
    Source: Dowson & Landau 1982, eq. 16; Heusel et al. 2017, eq. 6.

    >>> x = torch.tensor([[0.0], [2.0]])
    >>> round(frechet_distance(x, x + 3).item(), 12), round(frechet_distance(x, 3 * x - 2).item(), 12)
    (9.0, 8.0)
    """
    x, y = centred(x, y)
    if min(len(x), len(y)) < 2:
        raise ValueError(f"x, y: {len(x)} and {len(y)} samples given: a covariance needs at least 2 in each")
    mean_x, mean_y = x.mean(0), y.mean(0)
    cov_x = (x - mean_x).T @ (x - mean_x) / (len(x) - 1)
    cov_y = (y - mean_y).T @ (y - mean_y) / (len(y) - 1)
    overlap = torch.linalg.svdvals(_root(cov_x) @ _root(cov_y)).sum()
    return ((mean_x - mean_y).square().sum() + cov_x.trace() + cov_y.trace() - 2 * overlap).clamp_min(0)


@door
def frechet_infinity(x: Samples, y: Samples, points: Count = 15) -> Distance:
    r"""The Fréchet distance extrapolated to infinitely many x: the intercept of a line through (1/N, FD of N of x).

    N takes ``points`` values, equally spaced from min(5000, n/10) to n; the N are the first of one fixed shuffle, so
    that the value is the same each time. The bias from x falls from O(1/n) to O(1/n²); that from y is left. It can be
    below 0. Cost that of ``points`` Fréchet distances.

    Raises ValueError for shapes that differ, fewer than 20 samples in x or 2 in y, and fewer than 2 points.
    Source: Chong & Forsyth 2020, with the sizes of Stein et al. 2023.

    >>> x = torch.linspace(-1, 1, 100)[:, None]
    >>> abs(frechet_infinity(x, x).item()) < 0.01
    True
    """
    if points < 2 or len(x) < 20:
        raise ValueError(f"x, points: {len(x)} samples and points={points} given: at least 20 and 2 are needed")
    x = x[shuffled(len(x), 0).to(x.device)]
    sizes = np.linspace(min(5000, len(x) // 10), len(x), points).astype(int)
    values = torch.stack([frechet_distance(x[:size], y) for size in sizes])
    slopes = torch.from_numpy(1 / sizes).to(values)
    slopes = slopes - (mean := slopes.mean())
    return values.mean() - mean * (slopes @ values) / slopes.square().sum()


@door
def vendi_score(x: Samples) -> Distance:
    r"""exp(−Σ λ_i log λ_i), λ the eigenvalues of K/n with K_ij = x_i·x_j/(|x_i| |x_j|): how many kinds x are of.

    From 1, all alike, to min(n, d), all at right angles. Call it with features(x). It is no distance: a comparison
    shows ``vendi_gap``. Biased downwards: it rises with n. The eigenvalues are those of the d × d matrix where d < n:
    cost O(n d min(n, d)).

    Raises ValueError for empty sets and samples that are 0, which have no direction.
    Source: Friedman & Dieng 2023, definition 3.1, with the cosine kernel.

    >>> round(vendi_score(torch.eye(3).repeat(5, 1)).item(), 9)
    3.0
    """
    if not x.numel():
        raise ValueError(f"x has shape {list(x.shape)}: at least 1 sample is needed")
    flat, _ = rows(x, x)
    norms = flat.norm(dim=1, keepdim=True)
    if not bool((norms > 0).all()):
        raise ValueError("x holds a sample whose entries are all 0: it has no direction")
    flat = flat / norms
    gram = flat.T @ flat if flat.shape[1] < len(flat) else flat @ flat.T
    values = torch.linalg.eigvalsh(gram / len(flat)).clamp_min(0)
    return (-torch.special.xlogy(values, values).sum()).exp()


@door
def vendi_gap(x: Samples, y: Samples) -> Distance:
    r"""|log V(x) − log V(y)| of Vendi scores V: by what factor x is less, or more, diverse than y.

    Without unit. Scores rise with n: sets of different sizes differ for that alone, which the floor shows.

    Raises ValueError as ``vendi_score``, and for shapes that differ.

    >>> round(vendi_gap(torch.eye(3), torch.eye(3)[:2]).exp().item(), 9)
    1.5
    """
    x, y = rows(x, y)
    return (vendi_score(x).log() - vendi_score(y).log()).abs()
