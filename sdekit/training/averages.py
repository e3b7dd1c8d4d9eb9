r"""Power-function averages of the weights, and any other of them afterwards from snapshots (Karras et al. 2024, EDM2).

θ̂_γ(t) = (γ + 1)/t^{γ+1} ∫_0^t τ^γ θ(τ) dτ, in steps θ̂ ← β θ̂ + (1 − β) θ with β_t = (1 − 1/t)^{γ+1} (eqs. 1, 2). Its
width relative to the run's length is σ_rel = √((γ + 1)/((γ + 2)² (γ + 3))) (eq. 3). Snapshots of two such averages at a
few steps span enough that the average of another σ_rel, at any step up to the last, is a combination of them: the one
with the nearest response, by least squares (section 3.2 and appendix C; here nearest in the mean, see ``_factors``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

import numpy as np
from scipy.optimize import brentq
from torch import Tensor

from sdekit.door import Count, door
from sdekit.names import Between

Width = Annotated[float, Between(0.01, 0.28)]
Weights = Mapping[str, Tensor]


@door
def exponent(sigma_rel: Width) -> float:
    """γ of the average of relative width σ_rel (eq. 3).

    >>> round(exponent(0.05), 2), round(exponent(0.1), 2)
    (16.97, 6.94)
    """
    return _exponent(sigma_rel)


@cache
def _exponent(sigma_rel: float) -> float:
    def off(gamma: float) -> float:
        return (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) - sigma_rel**2

    root: Any = brentq(off, 0.0, 1e4, xtol=1e-12)
    return float(root)


@door
def decay_at(sigma_rel: Width, step: Count) -> float:
    """β of step 1, 2, …: what ``lerp_weights`` keeps of the average (eq. 2).

    >>> decay_at(0.1, 1)
    0.0
    """
    return (1 - 1 / step) ** (_exponent(sigma_rel) + 1)


@door
@dataclass(frozen=True)
class Snapshot:
    """An average as it was after ``step`` steps: the weights, by name."""

    sigma_rel: Width
    step: Count
    weights: Weights


@door
def reconstructed(snapshots: Sequence[Snapshot], sigma_rel: Width, step: Count | None = None) -> dict[str, Tensor]:
    """The average of width ``sigma_rel`` after ``step`` steps (default: the last snapshot's), from the snapshots.

    Computed in float64, returned in the weights' own type. Raises ValueError for no snapshots, a step after the last,
    and snapshots of different networks.

    >>> import torch
    >>> weights = {"w": torch.tensor([2.0])}
    >>> reconstructed([Snapshot(0.05, 10, weights), Snapshot(0.1, 10, weights)], 0.07)["w"]
    tensor([2.])
    """
    if not snapshots:
        raise ValueError("snapshots: there are none")
    last = max(one.step for one in snapshots)
    step = last if step is None else step
    if step > last:
        raise ValueError(f"step={step}: the last snapshot is of step {last}")
    names = snapshots[0].weights.keys()
    if any(one.weights.keys() != names for one in snapshots):
        raise ValueError("snapshots: they hold weights of different names")
    factors = _factors([(exponent(one.sigma_rel), one.step) for one in snapshots], (exponent(sigma_rel), step))
    return {name: _combined([one.weights[name] for one in snapshots], factors) for name in names}


def _combined(tensors: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    if not tensors[0].is_floating_point():
        return tensors[-1].clone()
    total = sum(factor * tensor.double() for factor, tensor in zip(factors, tensors))
    assert isinstance(total, Tensor)
    return total.to(tensors[0].dtype)


def _factors(known: Sequence[tuple[float, int]], wanted: tuple[float, int]) -> list[float]:
    """x of least ∫ (Σ x_i P_i − P)² dτ with Σ x_i = 1, P = min(τ/t, 1)^{γ+1} how much of an average is older than τ.

    The weights move little between steps. Matching the densities P', as the paper does, left 2 to 150 times as much
    over, for a random walk and for weights that settle. By quadrature, since Gram's matrix has the square of its
    condition.
    """
    ends = sorted({0, *(step for _, step in known), wanted[1]})
    points, weights = np.polynomial.legendre.leggauss(64)
    spans = list(zip(ends, ends[1:]))
    nodes = np.concatenate([a + (b - a) * (points + 1) / 2 for a, b in spans])
    scale = np.sqrt(np.concatenate([(b - a) / ends[-1] * weights / 2 for a, b in spans]))

    def older(average: tuple[float, int]) -> np.ndarray:
        gamma, step = average
        return scale * np.minimum(nodes / step, 1.0) ** (gamma + 1)

    ones = 1e3  # all but exactly: the average of a constant is that constant
    left = np.vstack([np.stack([older(one) for one in known], 1), np.full(len(known), ones)])
    return np.linalg.lstsq(left, np.append(older(wanted), ones), rcond=1e-14)[0].tolist()
