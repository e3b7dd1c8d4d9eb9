"""Averages of the weights: their width, and what a few snapshots give of those that nobody kept."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sdekit.door import bare
from sdekit.training.averages import Snapshot, decay_at, exponent, reconstructed

decay = bare(decay_at)  # thousands of times
STORED, OTHERS = (0.03, 0.06, 0.12, 0.25), (0.035, 0.05, 0.08, 0.1, 0.15, 0.2, 0.24)


def follow(path: Tensor, stored: tuple[float, ...], at: set[int]) -> tuple[list[Snapshot], dict[float, Tensor]]:
    """Snapshots of averages of weights [steps, n] and, after the last step, those of ``OTHERS`` followed directly."""
    averages = {width: torch.zeros_like(path[0]) for width in sorted({*stored, *OTHERS})}
    snapshots = []
    for step, weights in enumerate(path, 1):
        for width, average in averages.items():
            average.lerp_(weights, 1 - decay(width, step))
        if step in at:
            snapshots += [Snapshot(width, step, {"w": averages[width].clone()}) for width in stored]
    return snapshots, {width: averages[width] for width in OTHERS}


def trained() -> Tensor:
    """The weights of a small network at each of 400 steps of Adam, on a noisy gradient."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    adam, path = torch.optim.Adam(net.parameters(), lr=5e-3), []
    for _ in range(400):
        x = torch.randn(16, 2, generator=generator, dtype=torch.float64)
        adam.zero_grad()
        (net(x)[:, 0] - x.prod(1)).square().mean().backward()
        adam.step()
        path.append(nn.utils.parameters_to_vector(net.parameters()).detach().clone())
    return torch.stack(path)


def walk() -> Tensor:
    return torch.randn(400, 30, generator=torch.Generator().manual_seed(2), dtype=torch.float64).cumsum(0)


@pytest.mark.parametrize("path", [trained, walk])
def test_sixteen_snapshots_give_any_average(path):
    snapshots, direct = follow(path(), STORED, {100, 200, 300, 400})
    assert len(snapshots) == 16
    for width, expected in direct.items():
        found = reconstructed(snapshots, width)["w"]
        assert (found - expected).norm() < 1e-3 * expected.norm()
    # fewer do not, and what was kept comes back as it was
    few, _ = follow(path(), (0.05, 0.1), {200, 400})
    assert (reconstructed(few, 0.24)["w"] - direct[0.24]).norm() > 1e-3 * direct[0.24].norm()
    kept = next(one for one in snapshots if one.step == 400 and one.sigma_rel == 0.12)
    assert torch.allclose(reconstructed(snapshots, 0.12)["w"], kept.weights["w"], rtol=1e-9)


@pytest.mark.parametrize("width", OTHERS)
def test_an_average_has_the_width_that_it_is_called_by(width: float):
    """Its weights at step τ of t have a standard deviation of σ_rel t; of τ itself it is t (γ + 1)/(γ + 2)."""
    steps = 1000
    profile = torch.zeros(steps, dtype=torch.float64)
    for step in range(1, steps + 1):
        kept = decay(width, step)
        profile *= kept
        profile[step - 1] += 1 - kept
    place = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    mean = (profile * place).sum()
    assert profile.sum().item() == pytest.approx(1)
    assert mean.item() == pytest.approx((exponent(width) + 1) / (exponent(width) + 2), abs=2e-3)
    assert math.sqrt((profile * (place - mean) ** 2).sum()) == pytest.approx(width, rel=1e-2)


def test_an_earlier_step_and_bad_input():
    path = walk()
    snapshots, _ = follow(path, STORED, {100, 200, 300, 400})
    _, before = follow(path[:250], STORED, set())
    found = reconstructed(snapshots, 0.1, step=250)["w"]
    assert (found - before[0.1]).norm() < 0.05 * before[0.1].norm()
    weights = {"w": torch.zeros(2, dtype=torch.bfloat16), "n": torch.tensor(3)}
    found = reconstructed([Snapshot(0.1, 5, weights), Snapshot(0.2, 5, weights)], 0.15)
    assert found["w"].dtype == torch.bfloat16
    assert found["n"] == 3
    with pytest.raises(ValueError, match="step=401: the last snapshot is of step 400"):
        reconstructed(snapshots, 0.1, step=401)
    with pytest.raises(ValueError, match="there are none"):
        reconstructed([], 0.1)
    with pytest.raises(ValueError, match="different names"):
        reconstructed([Snapshot(0.1, 5, {"a": path[0]}), Snapshot(0.2, 5, {"b": path[0]})], 0.1)
    with pytest.raises(ValueError, match=r"sigma_rel=0\.3"):
        exponent(0.3)
