"""Optimal transport between two sets: along random lines, and exactly."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sdekit.door import Count, Seed, door
from sdekit.metrics.sets import CHUNK, Distance, Samples, centred, squares
from sdekit.noise import normal

PAIRS = 1 << 26  # of an exact plan: 512 MB of costs in float64, and twice that in the solver


def _transport(x: Tensor, y: Tensor, p: int) -> Tensor:
    """∫ |F_x⁻¹(q) − F_y⁻¹(q)|^p dq for each row of x [l, n] and y [l, m]: exact for any n and m."""
    n, m = x.shape[1], y.shape[1]
    # both quantile functions are constant between these levels, counted in units of 1/(n m); they are known to the host
    starts = np.union1d(np.arange(n) * m, np.arange(m) * n)
    widths = np.diff(starts, append=n * m) / (n * m)
    x, y = (_ordered(z)[:, torch.from_numpy(starts // k).to(z.device)] for z, k in ((x, m), (y, n)))
    return (x - y).abs().pow(p) @ torch.from_numpy(widths).to(x)


def _ordered(x: Tensor) -> Tensor:
    """x [l, n] with each row sorted."""
    if x.device.type != "cpu" or x.requires_grad:
        return x.sort(1).values
    return torch.from_numpy(np.sort(x.numpy(), axis=1))  # torch finds the order too, in ten to twenty times the time


@door
def sliced_wasserstein(x: Samples, y: Samples, p: int = 2, projections: Count = 256, seed: Seed = 0) -> Distance:
    r"""SW_p = (mean_θ W_p(θ·x, θ·y)^p)^{1/p} over ``projections`` unit vectors θ, the same for each ``seed``.

    W_p in one dimension is (∫ |F_x⁻¹(q) − F_y⁻¹(q)|^p dq)^{1/p}, exact for n ≠ m. In the data's units; a shift
    by μ gives about |μ|/√d for p = 2. Cost O(L (n + m)(d + log nm)), L projections, of which so many are
    done at once as give 8M numbers: some 400 MB, or that of one line.
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
    x, y = centred(x, y)
    theta = normal(seed, 0, torch.arange(projections, device=x.device), (x.shape[1],), torch.float64)
    theta = theta / theta.norm(dim=1, keepdim=True)
    parts = theta.split(max(1, CHUNK // (len(x) + len(y))))
    return torch.cat([_transport(part @ x.T, part @ y.T, p) for part in parts]).mean() ** (1 / p)


@door
def wasserstein(x: Samples, y: Samples) -> Distance:
    r"""W_2 = (min over plans π of Σ_ij π_ij |x_i − y_j|²)^{1/2} between the two sets, each sample of equal weight.

    Exact, by the network simplex of POT, an optional package (``pip install POT``), on the CPU. In the data's units.
    Cost about n³ at worst and n² memory: some thousands of samples. Biased upwards by O(n^{-1/d}) for d > 4, in
    many dimensions so slowly that two sets of one law are as far apart as two laws: see the floor.

    Raises ValueError for shapes that differ, empty sets and more than 2²⁶ pairs, ImportError without POT.
    Source: Peyré & Cuturi 2019, eq. 2.11; Bonneel et al. 2011 (the solver); Fournier & Guillin 2015 (the rate).

    >>> from importlib.util import find_spec
    >>> x = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    >>> wasserstein(x, x.flip(0) + torch.tensor([0.0, 3.0])).item() if find_spec("ot") else 3.0
    3.0
    """
    try:
        from ot import emd2
    except ImportError:
        raise ImportError("exact transport needs POT, which is not installed: pip install POT") from None
    x, y = centred(x, y)
    if len(x) * len(y) > PAIRS:
        raise ValueError(f"x, y: {len(x)} and {len(y)} samples given: at most {PAIRS} pairs, take fewer of them")
    cost = torch.cat(list(squares(x, y))).detach().cpu().numpy()
    squared = emd2([], [], cost, numItermax=100_000_000)
    return x.new_tensor(squared).clamp_min(0).sqrt()
