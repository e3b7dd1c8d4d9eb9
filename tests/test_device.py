"""Every solver, grid, process and prediction on the simulated accelerator: the CPU's numbers, no host read."""

import pytest
import torch

import sdekit as sk
from sdekit.grid import GRIDS
from sdekit.prediction import PREDICTIONS
from sdekit.solvers import names
from sdekit.testing import simgpu

PROCESSES = [sk.VP(), sk.SubVP(), sk.VE(), sk.CosineVP(), sk.DiscreteVP(), sk.Flow(), sk.EDM()]


class Net(torch.nn.Module):
    """Small, but with what networks do: a time embedding, a linear map, a condition."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(6, 6, generator=generator) / 6)
        self.labels = torch.nn.Parameter(torch.randn(3, 6, generator=generator))

    def forward(self, x, t, label):
        shift = self.labels[label] + torch.sin(t[:, None])
        return torch.tanh(x.flatten(1) @ self.weight + shift).reshape(x.shape)


def on_cpu_and_device(process=PROCESSES[0], predicts="eps", **arguments):
    label = torch.tensor([0, 1, 2, 1, 0])
    arguments = {"nfe": 7, "seed": 3, **arguments}
    net = Net()
    here = sk.sample(sk.ScoreModel(net, process, predicts), (5, 2, 3), label=label, **arguments)
    with simgpu.device() as gpu:
        model = sk.ScoreModel(Net().to(gpu.device), process, predicts)
        label = label.to(gpu.device)
        with gpu.forbid_host_reads():
            there = sk.sample(model, (5, 2, 3), label=label, **arguments)
        assert there.x.device.type == "simgpu"
        return here.x, there.x.cpu()


@pytest.mark.parametrize("solver", names())
def test_every_solver(solver):
    here, there = on_cpu_and_device(solver=solver, batch_size=2)
    assert torch.equal(here, there)


@pytest.mark.parametrize("grid", GRIDS)
def test_every_grid(grid):
    assert torch.equal(*on_cpu_and_device(grid=grid))


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_every_process_and_prediction(process, predicts):
    assert torch.equal(*on_cpu_and_device(process, predicts))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("solver", names())
def test_on_cuda(solver):
    label = torch.tensor([0, 1, 2, 1, 0])
    here = sk.sample(sk.ScoreModel(Net(), sk.VP()), (5, 2, 3), solver=solver, nfe=7, seed=3, label=label)
    model = sk.ScoreModel(Net().cuda(), sk.VP())
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = sk.sample(model, (5, 2, 3), solver=solver, nfe=7, seed=3, label=label.cuda())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.allclose(here.x, there.x.cpu(), rtol=1e-3, atol=1e-3)
