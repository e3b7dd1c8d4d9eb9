"""Every solver, grid, process and prediction on the simulated accelerator: the CPU's numbers, no host read."""

import pytest
import torch

import sdekit as sk
from sdekit.grid import GRIDS
from sdekit.prediction import PREDICTIONS
from sdekit.solvers import names
from sdekit.testing import devices, simgpu
from sdekit.testing.devices import Net, _normal, cases, difference

PROCESSES = [sk.VP(), sk.SubVP(), sk.VE(), sk.CosineVP(), sk.DiscreteVP(), sk.Flow(), sk.EDM()]


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
@pytest.mark.parametrize("case", [*cases()], ids=lambda case: f"{case.kind} {case.name}")
def test_on_cuda(case):
    assert difference(case, torch.device("cuda")) <= case.tolerance


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("solver", names())
def test_no_solver_waits_for_cuda(solver):
    model, label = sk.ScoreModel(Net().cuda(), sk.VP()), torch.tensor([0, 1, 2, 1, 0]).cuda()
    sk.sample(model, (5, 2, 3), solver=solver, nfe=7, seed=3, label=label)
    torch.cuda.set_sync_debug_mode("error")
    try:
        sk.sample(model, (5, 2, 3), solver=solver, nfe=7, seed=3, label=label)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_device_that_computes_otherwise_is_found(monkeypatch):
    """On the simulated device every case but those of the solvers, which are above; and one that is wrong."""
    few = [case for case in cases() if case.kind not in {"solver", "capture", "grid", "prediction"}]
    with simgpu.device() as gpu:
        assert all(difference(case, gpu.device) == 0 for case in few)
        off = lambda where: _normal(where) + 0.01 * (where.type != "cpu")  # noqa: E731
        monkeypatch.setattr(devices, "cases", lambda: [few[0], devices.Case("noise", "off", off, 1e-3)])
        with pytest.raises(AssertionError, match=r"1 of 2 results differ from the CPU's:\nnoise off: 0\.0"):
            devices.check_device(gpu.device)
