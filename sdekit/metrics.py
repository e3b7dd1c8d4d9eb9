r"""Distances between two sets of samples, and the table of those that a comparison measures.

Each is a pure function of samples x [n, *event] and y [m, *event] that returns a 0-d float64 tensor on
their device; all but ``rmse`` allow n ≠ m and ignore the order. They work in float64, so that the distance of
near-equal sets is not rounding. A set drawn twice from one law is not at distance 0: compare with ``floor`` in
``comparison.py``, the same distance between two sets of real data of the same sizes.

``METRICS`` is the table: one entry there is measured, tabulated and drawn everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sdekit.noise import normal

Samples = Float[Tensor, "_ *_"]
Distance = Float[Tensor, ""]
_CHUNK = 1 << 22  # pairwise distances held at once: 32 MB each in float64


def _rows(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets as float64 [n, d] and [m, d], shifted by one vector so that y has mean 0."""
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"x, y: samples of shapes {list(x.shape[1:])} and {list(y.shape[1:])}: they must be equal")
    if not len(x) or not len(y):
        raise ValueError(f"x, y: {len(x)} and {len(y)} samples given: each set needs at least 1")
    x, y = x.reshape(len(x), -1).double(), y.reshape(len(y), -1).double()
    centre = y.mean(0)
    return x - centre, y - centre


def rmse(x: Samples, reference: Samples) -> Distance:
    r"""Root mean square error √(mean (x − r)²) over all samples and elements, sample i against reference i.

    Units of the data; no bias in n; O(n d).

    Raises ValueError for shapes that differ or empty sets.

    >>> rmse(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 1.0]])).item() == 0.5**0.5
    True
    """
    if x.shape != reference.shape or not x.numel():
        raise ValueError(f"x, reference: shapes {list(x.shape)} and {list(reference.shape)}: equal ones are needed")
    return (x.double() - reference.double()).square().mean().sqrt()


def _transport(x: Tensor, y: Tensor, p: int) -> Tensor:
    """∫ |F_x⁻¹(q) − F_y⁻¹(q)|^p dq for each column of x [n, l] and y [m, l]: exact for any n and m."""
    n, m = len(x), len(y)
    # both quantile functions are constant between these levels, counted in units of 1/(n m)
    starts = torch.cat([torch.arange(n) * m, torch.arange(1, m) * n]).unique().to(x.device)
    widths = torch.diff(starts, append=starts.new_full((1,), n * m)).double() / (n * m)
    x, y = x.sort(0).values[starts // m], y.sort(0).values[starts // n]
    return ((x - y).abs() ** p * widths[:, None]).sum(0)


def sliced_wasserstein(x: Samples, y: Samples, p: int = 2, projections: int = 256, seed: int = 0) -> Distance:
    r"""SW_p = (mean_θ W_p(θ·x, θ·y)^p)^{1/p} over ``projections`` unit vectors θ, the same for each ``seed``.

    W_p in one dimension is (∫ |F_x⁻¹(q) − F_y⁻¹(q)|^p dq)^{1/p}, exact for n ≠ m. In the data's units; a shift
    by μ gives about |μ|/√d for p = 2. Cost O(L (n + m)(d + log nm)), memory 8 L (3n + 3m) bytes, L projections.
    Biased upwards: for equal laws it falls as (1/n + 1/m)^{1/2}, at a rate free of d. The projections are a
    sample too: their share of the error falls as L^{-1/2}, and is the same for all sets compared.

    Raises ValueError for shapes that differ, empty sets, p < 1 or projections < 1.
    Source: Rabin et al. 2011; Bonneel et al. 2015, section 3.

    >>> x = torch.tensor([[0.0], [2.0]])
    >>> sliced_wasserstein(x, x + 3).item(), sliced_wasserstein(x, torch.tensor([[1.0]])).item()
    (3.0, 1.0)
    """
    if p < 1 or projections < 1:
        raise ValueError(f"p={p}, projections={projections}: each must be at least 1")
    x, y = _rows(x, y)
    theta = normal(seed, 0, torch.arange(projections, device=x.device), (x.shape[1],), torch.float64)
    theta = (theta / theta.norm(dim=1, keepdim=True)).T
    return _transport(x @ theta, y @ theta, p).mean() ** (1 / p)


def _mean_distance(x: Tensor, y: Tensor) -> Tensor:
    step = max(1, _CHUNK // len(y))
    sums = [torch.cdist(part, y, compute_mode="use_mm_for_euclid_dist").sum() for part in x.split(step)]
    return torch.stack(sums).sum() / (len(x) * len(y))


def energy_distance(x: Samples, y: Samples) -> Distance:
    r"""√(2 E|X − Y| − E|X − X'| − E|Y − Y'|), with the means over all pairs, i = j included (V-statistics).

    0 only for equal laws. In the square root of the data's units (a large shift by μ gives √(2|μ|)).
    Cost O((n + m)² d); pairwise distances are held 4M at a time, whatever n and m: about 100 MB.
    Biased upwards: its square by E|X − X'|/n + E|Y − Y'|/m over the value for the laws.

    Raises ValueError for shapes that differ or empty sets.
    Source: Székely & Rizzo 2013, eq. 6.1 and its square root (as scipy.stats.energy_distance in 1-D).

    >>> energy_distance(torch.zeros(3, 2), torch.tensor([[3.0, 4.0]])).item() == 10**0.5
    True
    """
    x, y = _rows(x, y)
    squared = 2 * _mean_distance(x, y) - _mean_distance(x, x) - _mean_distance(y, y)
    return squared.clamp_min(0).sqrt()


def _root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix; eigenvalues below 0 are rounding."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T


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
    x, y = _rows(x, y)
    if min(len(x), len(y)) < 2:
        raise ValueError(f"x, y: {len(x)} and {len(y)} samples given: a covariance needs at least 2 in each")
    mean_x, mean_y = x.mean(0), y.mean(0)
    cov_x = (x - mean_x).T @ (x - mean_x) / (len(x) - 1)
    cov_y = (y - mean_y).T @ (y - mean_y) / (len(y) - 1)
    overlap = torch.linalg.svdvals(_root(cov_x) @ _root(cov_y)).sum()
    return ((mean_x - mean_y).square().sum() + cov_x.trace() + cov_y.trace() - 2 * overlap).clamp_min(0)


@dataclass(frozen=True)
class Metric:
    """One column of a comparison.

    Attributes:
        label: what tables and pictures call it.
        distance: f(samples, reference) -> 0-d tensor, smaller is better.
        paired: True: measured against the accurate endpoint of the same start, deterministic solvers
            only; False: against real data.
        features: True: both sets pass through the feature map first, where one is given.

    >>> METRICS["rmse"].paired
    True
    """

    label: str
    distance: Callable[[Tensor, Tensor], Tensor]
    paired: bool = False
    features: bool = False


METRICS: dict[str, Metric] = {
    "rmse": Metric("RMSE to the exact ODE endpoint", rmse, paired=True),
    "sliced_wasserstein": Metric("sliced Wasserstein to the data", sliced_wasserstein),
    "energy": Metric("energy distance to the data", energy_distance),
    "frechet": Metric("Fréchet distance to the data", frechet_distance, features=True),
}
