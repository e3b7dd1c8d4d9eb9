"""A captured run is ``sample``'s to the bit, for any seed and start, and holds nothing that a graph could not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sdekit as sk
from sdekit import graph as module
from sdekit import noise
from sdekit.solvers import names
from sdekit.testing import simgpu


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)) / 6)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        shift = torch.sin(t[:, None]) + (0 if label is None else label[:, None])
        return self.dropout(torch.tanh(x.flatten(1) @ self.weight + shift)).reshape(x.shape)


@pytest.mark.parametrize("solver", names())
def test_every_solver_for_any_seed(solver: str):
    model = sk.ScoreModel(Net().train(), sk.VP())
    replay = sk.capture(model, (5, 2, 3), solver=solver, nfe=7)
    for seed in (3, 0, 3):
        assert torch.equal(replay(seed=seed), sk.sample(model, (5, 2, 3), solver=solver, nfe=7, seed=seed).x)
    assert model.net.training


def test_starts_weights_and_conditions_of_later_runs():
    model, label = sk.ScoreModel(Net(), sk.VE(), "x0"), torch.arange(5.0)
    replay = sk.capture(model, (5, 2, 3), solver="ddpm", steps=4, grid="karras", final="none", label=label)
    options = {"solver": "ddpm", "steps": 4, "grid": "karras", "final": "none", "label": label, "seed": 1}
    start = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    first = replay(seed=1, start=start)
    assert torch.equal(first, sk.sample(model, (5, 2, 3), start=start, **options).x)
    with torch.no_grad():
        model.net.weight.mul_(0.5)
        label.add_(1)
    second = replay(seed=1)
    assert torch.equal(second, sk.sample(model, (5, 2, 3), **options).x)
    assert not torch.equal(first, second)  # and a result is not overwritten by the next
    with pytest.raises(ValueError, match=r"start has shape \[4, 2, 3\]"):
        replay(start=start[:4])


@pytest.mark.parametrize("solver", names())
def test_a_recording_reads_nothing_and_is_given_nothing(monkeypatch: pytest.MonkeyPatch, solver: str):
    """Inside a graph a copy from the host is an error, and so is a read: between the buffers and the result is none."""
    here = sk.sample(sk.ScoreModel(Net(), sk.VP()), (5, 2, 3), solver=solver, nfe=7, seed=2).x
    with simgpu.device() as gpu:

        def recorded(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
            def launch() -> Tensor:
                before = gpu.uploads
                with gpu.forbid_host_reads():
                    out = run()
                assert gpu.uploads == before
                return out

            return launch

        monkeypatch.setitem(module.GRAPHS, "simgpu", recorded)
        replay = sk.capture(sk.ScoreModel(Net().to(gpu.device), sk.VP()), (5, 2, 3), solver=solver, nfe=7)
        assert torch.equal(replay(seed=2).cpu(), here)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("event", [(1,), (2, 3), (5, 7)])
def test_what_a_compiler_makes_one_kernel_of_has_the_bits_of_the_eager_form(dtype: torch.dtype, event: tuple[int, ...]):
    samples = torch.arange(100, 140)
    counters, keys = noise.ingredients(9, [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)], samples, event)
    pairs = noise.fused(counters, keys, dtype).flatten(-2)[..., : torch.Size(event).numel()]
    for number in range(3):
        expected = noise.normal(9, number + 1, samples, event, dtype)
        assert torch.equal(pairs[number].reshape(expected.shape), expected)
