"""Distances against closed forms, SciPy's own versions in one dimension, and their invariances."""

from __future__ import annotations

import math

import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdekit.metrics import DEFAULT, METRICS, energy_distance, frechet_distance, rmse, sliced_wasserstein, transport
from sdekit.noise import normal
from sdekit.testing import simgpu

COUNTS = st.integers(1, 17)
UNPAIRED = [METRICS[name].distance for name in DEFAULT if not METRICS[name].paired]


def draws(seed: int, n: int, *event: int) -> torch.Tensor:
    return normal(seed, 0, torch.arange(n), event, torch.float64)


def standardised(seed: int, n: int, d: int) -> torch.Tensor:
    """Samples whose mean is exactly 0 and whose covariance (with n − 1) is exactly the identity."""
    x = draws(seed, n, d)
    x = x - x.mean(0)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(x.T @ x / (n - 1)), x.T, upper=False).T


def mixing(seed: int, d: int) -> torch.Tensor:
    return draws(seed, d, d)


# -- one dimension: SciPy's exact values ---------------------------------------------------------


@given(n=COUNTS, m=COUNTS, seed=st.integers(0, 99))
def test_in_one_dimension_sliced_wasserstein_is_scipys(n: int, m: int, seed: int) -> None:
    x, y = draws(seed, n, 1), 2 * draws(seed + 100, m, 1) + 1
    exact = scipy.stats.wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert sliced_wasserstein(x, y, p=1, projections=3).item() == pytest.approx(exact, rel=1e-12)


@given(n=COUNTS, m=COUNTS, seed=st.integers(0, 99))
def test_in_one_dimension_energy_distance_is_scipys(n: int, m: int, seed: int) -> None:
    x, y = draws(seed, n, 1), 2 * draws(seed + 100, m, 1) + 1
    exact = scipy.stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert energy_distance(x, y).item() == pytest.approx(exact, rel=1e-6, abs=1e-7)


@given(n=COUNTS, m=COUNTS, seed=st.integers(0, 99))
def test_unequal_counts_are_the_same_as_repeated_samples(n: int, m: int, seed: int) -> None:
    x, y = draws(seed, n, 3), draws(seed + 100, m, 3)
    repeated = sliced_wasserstein(x.repeat(m, 1), y.repeat(n, 1), projections=8)
    assert sliced_wasserstein(x, y, projections=8).item() == pytest.approx(repeated.item(), rel=1e-12)


# -- closed forms ---------------------------------------------------------------------------------


def test_frechet_distance_of_exact_gaussian_moments() -> None:
    a, b, shift = mixing(1, 5), mixing(2, 5), torch.arange(5.0, dtype=torch.float64)
    x, y = standardised(3, 40, 5) @ a.T, standardised(4, 60, 5) @ b.T + shift
    root = torch.from_numpy(scipy.linalg.sqrtm((a @ a.T @ b @ b.T).numpy()).real)
    exact = shift.square().sum() + (a @ a.T + b @ b.T - 2 * root).trace()
    assert frechet_distance(x, y).item() == pytest.approx(exact.item(), rel=1e-10)


def test_frechet_distance_of_isotropic_gaussians() -> None:
    x, y = 2 * standardised(5, 30, 4), 5 * standardised(6, 50, 4)
    assert frechet_distance(x, y).item() == pytest.approx(4 * (5 - 2) ** 2, rel=1e-12)


def test_frechet_distance_with_a_singular_covariance() -> None:
    flat = standardised(7, 30, 2) @ torch.eye(2, 6, dtype=torch.float64)
    assert frechet_distance(flat, standardised(8, 30, 6)).item() == pytest.approx(4.0, rel=1e-9)


def test_sliced_wasserstein_is_the_same_on_a_device_and_under_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """There torch sorts, here numpy; and lines are done a few at a time where they are many."""
    x, y = torch.randn(37, 5, generator=torch.Generator().manual_seed(0)), torch.randn(24, 5)
    value = sliced_wasserstein(x, y, projections=40)
    with simgpu.device() as gpu:
        there = sliced_wasserstein(x.to(gpu.device), y.to(gpu.device), projections=40)
        assert there.device.type == "simgpu"
        assert there.cpu().item() == pytest.approx(value.item(), rel=1e-12)
    steered = x.clone().requires_grad_()
    found = sliced_wasserstein(steered, y, projections=40)
    found.backward()
    assert found.item() == pytest.approx(value.item(), rel=1e-12)
    assert steered.grad is not None
    step = 1e-4 * torch.randn(37, 5)  # the gradient, against a difference
    moved = sliced_wasserstein(x.double() + step, y.double(), projections=40) - sliced_wasserstein(
        x.double() - step, y.double(), projections=40
    )
    assert moved.item() == pytest.approx(2 * (steered.grad * step).sum().item(), rel=1e-2)
    monkeypatch.setattr(transport, "CHUNK", 130)
    assert sliced_wasserstein(x, y, projections=40).item() == pytest.approx(value.item(), rel=1e-12)


def test_sliced_wasserstein_of_two_gaussians() -> None:
    # W_2² on a line θ is (θ·μ)² + (a − b)²; its mean over θ is |μ|²/d + (a − b)²
    n, d, mean = 4000, 3, torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64)
    x, y = 2 * draws(9, n, d), 0.5 * draws(10, n, d) + mean
    exact = math.sqrt(9 / 3 + 1.5**2)
    # spread of (θ·μ)² over θ: 9 √(4/45), over 500 projections: standard error 0.12 of 5.25, 0.026 on the root;
    # spread of the means of x on θ: 2/√4000 = 0.032, of which the root takes up to 0.02
    assert sliced_wasserstein(x, y, projections=500).item() == pytest.approx(exact, abs=0.12)


def test_sliced_wasserstein_of_point_masses() -> None:
    shift = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    value = sliced_wasserstein(torch.zeros_like(shift), shift, projections=20000).item()
    # mean (θ·μ)² = |μ|²/2 = 12.5 with standard error 12.5/√2/√20000 = 0.0625; 4 of them, on the root
    assert value == pytest.approx(math.sqrt(12.5), abs=4 * 0.0625 / (2 * math.sqrt(12.5)))


def test_energy_distance_of_point_masses() -> None:
    x, y = torch.zeros(2, 1, 2), torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]])
    # 2·(5/2) − 0 − 2·5/4
    assert energy_distance(x, y).item() == pytest.approx(math.sqrt(2.5), rel=1e-12)


def test_energy_distance_of_gaussians_in_one_dimension_and_its_bias() -> None:
    # E|X − X'| = 2σ/√π; for equal laws the mean of D² is E|X − X'| (1/n + 1/m)
    n, m, runs = 20, 30, 400
    squares = torch.stack([energy_distance(draws(r, n, 1), draws(r + runs, m, 1)) ** 2 for r in range(runs)])
    exact = 2 / math.sqrt(math.pi) * (1 / n + 1 / m)
    stderr = squares.std().item() / math.sqrt(runs)
    assert abs(squares.mean().item() - exact) < 4 * stderr
    assert stderr < 0.06 * exact


def test_energy_distance_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draws(11, 37, 4), draws(12, 23, 4) + 1
    whole = energy_distance(x, y).item()
    monkeypatch.setattr("sdekit.metrics.sets.CHUNK", 50)
    # |x − x'|² as |x|² + |x'|² − 2x·x' leaves √(1e-16) on each of the n of n² distances that are 0
    assert energy_distance(x, y).item() == pytest.approx(whole, rel=1e-8)


def test_rmse() -> None:
    x = draws(13, 6, 2, 2)
    assert rmse(x + 0.5, x).item() == pytest.approx(0.5, rel=1e-12)
    assert rmse(x.flip(0), x).item() > 0.1  # paired: order matters


# -- invariances ----------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", UNPAIRED)
def test_unpaired_distances_are_symmetric_and_blind_to_order_and_shift(distance) -> None:
    x, y = draws(14, 25, 2, 2), 1.5 * draws(15, 31, 2, 2) + 0.3
    value = distance(x, y).item()
    assert distance(y, x).item() == pytest.approx(value, rel=1e-9)
    assert distance(x.flip(0), y.roll(5, 0)).item() == pytest.approx(value, rel=1e-9)
    assert distance(x + 7, y + 7).item() == pytest.approx(value, rel=1e-6)
    assert distance(x, x).item() == pytest.approx(0.0, abs=1e-6)
    assert value > 0.05


UNITS = [(sliced_wasserstein, 1), (energy_distance, 0.5), (frechet_distance, 2)]


@pytest.mark.parametrize(("distance", "power"), UNITS)
def test_units(distance, power: float) -> None:
    x, y = draws(16, 25, 3), draws(17, 31, 3) + 1
    assert distance(10 * x, 10 * y).item() == pytest.approx(10**power * distance(x, y).item(), rel=1e-9)


@pytest.mark.parametrize("distance", [energy_distance, frechet_distance])
def test_rotations_change_nothing(distance) -> None:
    x, y = draws(18, 25, 4), 2 * draws(19, 31, 4)
    rotation = torch.linalg.qr(mixing(20, 4)).Q
    assert distance(x @ rotation, y @ rotation).item() == pytest.approx(distance(x, y).item(), rel=1e-9)


def test_single_precision_loses_nothing_but_its_input() -> None:
    x, y = draws(21, 40, 4).float(), draws(22, 40, 4).float() + 100
    for distance in UNPAIRED:
        assert distance(x, y).item() == pytest.approx(distance(x.double(), y.double()).item(), rel=1e-12)


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", [METRICS[name].distance for name in DEFAULT])
def test_bad_sets_are_named(distance) -> None:
    with pytest.raises(ValueError, match="equal"):
        distance(torch.zeros(3, 2), torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"at least|equal|not empty"):
        distance(torch.zeros(0, 2), torch.zeros(0, 2))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(torch.zeros(1, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="projections=0"):
        sliced_wasserstein(torch.zeros(2, 2), torch.zeros(2, 2), projections=0)
