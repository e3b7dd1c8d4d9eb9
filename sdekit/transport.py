"""Entropic optimal transport between two sets of as many points, exact at any temperature."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sdekit.door import door

_NEWTON, _CLOSE, _RIDGE, _ROUNDING, _SHORTEST, _COOLER = 100, 1e-9, 1e-10, 1e-13, 1e-6, 4.0


@door
def entropic_plan(costs: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """The plan π of least Σ π_ij c_ij + Σ π_ij log π_ij, each row's sum 1, each column's 1 but for 1e-9, in float64.

    Divide costs by the temperature. Terms of one row or of one column alone change no plan. Newton's method on the
    convex semi-dual mean_i log Σ_j exp(g_j − c_ij) − mean_j g_j (Peyré & Cuturi 2019, section 5.3), whose gradient is
    what the columns' sums lack, from a temperature as large as the costs down by factors of 4. Sinkhorn's iteration
    ends at the same plan, but takes the more steps the lower the temperature, without bound: stopped before, its
    columns' sums are wrong. Cost some 10 to 60 steps of n³: 256 rows in 0.05 to 0.7 s, 512 in 0.2 to 6 s on one core.

    Raises ValueError for costs that are not square, and where no plan is found.

    >>> entropic_plan(torch.tensor([[0.0, 50.0], [50.0, 0.0]])).round(decimals=6)
    tensor([[1., 0.],
            [0., 1.]], dtype=torch.float64)
    """
    if costs.shape[0] != costs.shape[1]:
        raise ValueError(f"costs has shape {list(costs.shape)}: as many rows as columns are needed")
    exact = costs.detach().to("cpu", torch.float64)
    exact = exact - exact.mean(0) - exact.mean(1, keepdim=True)
    temperature, g = max(1.0, exact.abs().max().item()), exact.new_zeros(len(exact))
    while True:
        found = _newton(exact / temperature, g / temperature)
        if found is None:
            raise ValueError(f"costs: no plan was found at {temperature:.4g} times the temperature asked for")
        if temperature == 1:
            return found[1].to(costs.device)
        temperature, g = max(1.0, temperature / _COOLER), found[0] * temperature


def _newton(costs: Tensor, g: Tensor) -> tuple[Tensor, Tensor] | None:
    """The columns' potential and the plan softmax_j(g_j − c_ij), its columns' sums 1; None without an end."""
    constant = torch.full_like(costs, 1 / len(costs)) + _RIDGE * torch.eye(len(costs), dtype=costs.dtype)
    value, plan = _semi_dual(costs, g)
    for _ in range(_NEWTON):
        lack = 1 - plan.sum(0)
        if lack.abs().max() < _CLOSE:
            return g, plan
        step = torch.linalg.solve(torch.diag(1 - lack) - plan.T @ plan + constant, lack)
        slope, length = -(step @ lack) / len(g), 1.0
        while True:
            new_value, new_plan = _semi_dual(costs, g + length * step)
            if new_value <= value + 1e-4 * length * slope + _ROUNDING or length < _SHORTEST:
                break
            length /= 2
        g, value, plan = g + length * step, new_value, new_plan
    return None


def _semi_dual(costs: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    scores = g - costs
    total = torch.logsumexp(scores, 1, keepdim=True)
    return total.mean() - g.mean(), (scores - total).exp()
