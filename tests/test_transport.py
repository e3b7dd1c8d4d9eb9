"""Entropic plans, held to POT's where that converges, and to a closed form and their own conditions elsewhere."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sdekit.transport import entropic_plan


def costs(n: int, d: int, seed: int = 0) -> Tensor:
    x, y = torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.cdist(x + 3, y).square()


@pytest.mark.parametrize(("n", "d", "sigma"), [(60, 2, 1.0), (60, 2, 0.5), (40, 16, 2.0)])
def test_it_is_pots_plan(n: int, d: int, sigma: float):
    ot, uniform = pytest.importorskip("ot"), torch.full((n,), 1 / n, dtype=torch.float64)
    plan = ot.sinkhorn(uniform, uniform, costs(n, d), reg=2 * sigma**2, method="sinkhorn_log", stopThr=1e-13,
                       numItermax=100_000)  # fmt: skip
    assert (entropic_plan(costs(n, d) / (2 * sigma**2)) / n - plan).abs().max() < 1e-9


@pytest.mark.parametrize("sigma", [1e4, 3.0, 0.3, 0.1, 0.03, 1e-4])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (2, 3), (128, 2), (100, 64)])
def test_it_is_a_plan_of_the_right_form_at_any_temperature(n: int, d: int, sigma: float):
    """Its sums are 1, and log π + c is a term of the row and one of the column: what makes a plan the best one."""
    scaled = costs(n, d) / (2 * sigma**2)
    plan = entropic_plan(scaled)
    assert (plan.sum(0) - 1).abs().max() < 1e-9
    assert (plan.sum(1) - 1).abs().max() < 1e-9
    if plan.min() > 1e-300:
        rest = plan.log() + scaled
        rest = rest - rest[:1] - rest[:, :1] + rest[0, 0]
        assert rest.abs().max() < 1e-9 * scaled.abs().max() + 1e-9


def test_the_limit_of_no_temperature_is_the_best_assignment():
    plan = entropic_plan(costs(80, 3) / 1e-6)
    assert torch.equal(plan.argmax(1), torch.from_numpy(linear_sum_assignment(costs(80, 3).numpy())[1]))
    assert plan.max(1).values.min() > 0.99


def test_between_gaussians_it_has_the_known_covariance():
    """N(0, s²) and N(0, r²) at ε = 2σ²: cov = (√(4 s² r² + σ⁴) − σ²)/2.

    The plan is normal of precision P with P_xy = −1/σ² and the two variances: cov/(s² r² − cov²) = 1/σ².
    """
    n, s, r, sigma = 400, 1.0, 0.5, 0.7
    quantiles = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)
    x, y = s * quantiles, r * quantiles
    plan = entropic_plan((x[:, None] - y).square() / (2 * sigma**2)) / n
    truth = (math.sqrt(4 * s**2 * r**2 + sigma**4) - sigma**2) / 2
    assert (x @ plan @ y).item() == pytest.approx(truth, rel=0.01)


def test_costs_that_are_no_square_are_refused():
    with pytest.raises(ValueError, match="as many rows as columns"):
        entropic_plan(torch.zeros(2, 3))
