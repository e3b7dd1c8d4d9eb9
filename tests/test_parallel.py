"""Parallel in time: the sequential run's samples, for every solver, in fewer rounds where the data are simple."""

from __future__ import annotations

import math

import pytest
import torch
from strategies import PREDICTIONS
from test_device import PROCESSES, Net

import sdekit as sk
from sdekit.nn import digits_model
from sdekit.solvers import names
from sdekit.testing import simgpu

LABEL = torch.tensor([0, 1, 2, 1, 0])


def both(model: sk.ScoreModel, shape=(5, 2, 3), **run):
    """The run one evaluation after the other, and in parallel."""
    run = {"nfe": 13, "seed": 3, **run}
    own = {name: run.pop(name) for name in ("window", "tolerance") if name in run}
    return sk.sample(model, shape, **run).x, sk.parallel.sample(model, shape, **run, **own)


def unlike(x: torch.Tensor, y: torch.Tensor) -> float:
    """The largest sample's root mean square, in units of the data's where that is above 1."""
    return (x - y).double().flatten(1).square().mean(1).sqrt().max().item() / max(1, y.abs().max().item())


@pytest.mark.parametrize("solver", names())
def test_every_solver_gives_its_sequential_samples(solver: str) -> None:
    model = sk.ScoreModel(Net(), sk.VP())
    noise = "brownian" if len(solver) % 2 else "independent"
    alone, found = both(model, solver=solver, noise=noise, label=LABEL, nfe=10, window=4, batch_size=3)
    assert unlike(found.x, alone) < 1e-5
    assert found.rounds <= 10


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_every_process_and_prediction(process: sk.Process, predicts: str) -> None:
    if predicts == "flow-to-data" and not isinstance(process, sk.Flow):
        pytest.skip("a convention of the flow process")
    net = Net()
    model = sk.ScoreModel(net.double(), process, predicts, dtype=torch.float64)
    alone, found = both(model, solver="dpmpp-2m", label=LABEL, dtype=torch.float64)
    assert unlike(found.x, alone) < 1e-5


@pytest.mark.parametrize("window", [1, 4, 100])
def test_a_hostile_network_costs_at_most_the_sequential_rounds(window: int) -> None:
    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 50 * torch.sin(30 * x) + torch.where(x.abs() > 3, math.nan, 0)

    alone, found = both(sk.ScoreModel(net, sk.VP()), (4, 2), solver="heun", window=window, start=torch.ones(4, 2))
    assert found.rounds <= 13
    assert found.nfe <= found.rounds * window
    kept = alone.isfinite()
    assert torch.equal(found.x.isfinite(), kept)
    assert torch.allclose(found.x[kept], alone[kept], rtol=1e-3)


@pytest.mark.parametrize("solver", ["ddim", "unipc-3", "heun", "dpmpp-2m-sde"])
def test_normal_data_are_found_at_once(solver: str) -> None:
    """v = 0 for N(0, 1), as is guessed; for any other normal law it is linear in x, and two states tell the line."""
    for std, rounds in ((1.0, 1), (0.2, 3)):
        target = sk.targets.Gaussian(torch.zeros(1), torch.tensor([[std**2]]))
        alone, found = both(target.model(sk.VP()), (6, 1), solver=solver, nfe=60, dtype=torch.float64)
        assert unlike(found.x, alone) < 1e-5
        assert found.rounds <= rounds


def test_a_window_of_one_is_the_sequential_run() -> None:
    alone, found = both(sk.ScoreModel(Net(), sk.VP()), label=LABEL, window=1)
    assert unlike(found.x, alone) < 1e-6
    assert found.rounds == found.nfe == 13


def test_the_tolerance_bounds_the_error_on_the_digits() -> None:
    model = digits_model()
    for solver, rounds in (("ddim", 16), ("dpmpp-2m", 16), ("ddpm", 19)):
        alone, found = both(model, (4, 1, 8, 8), solver=solver, nfe=60, seed=0)
        assert unlike(found.x, alone) < 3e-5
        assert found.rounds <= rounds


def test_a_solver_fitted_to_a_model_runs() -> None:
    """It has coefficients of the data's shape and takes a linear part off each prediction."""
    target = sk.targets.GaussianMixture(torch.tensor([[-1.0, 0.5], [1.0, 0.0]]), torch.tensor([0.3, 0.3]))
    model = target.model(sk.VP())
    solver = sk.fit_dpm_v3(model, target.sample(64), knots=60)
    alone, found = both(model, (6, 2), solver=solver)
    assert unlike(found.x, alone) < 1e-5


def test_guided_models_and_conditions_are_split_with_the_batch() -> None:
    model = digits_model()
    guided = sk.guidance.ClassifierFree(model, 2.0, null={"label": 10})
    alone, found = both(guided, (5, 1, 8, 8), solver="ddim", nfe=12, window=6, batch_size=2, label=torch.arange(5))
    assert unlike(found.x, alone) < 3e-5
    assert found.rounds < 12
    assert round(5 * found.nfe) % 2 == 0  # both networks count
    assert found.nfe <= 2 * 6 * found.rounds


def test_on_a_device_the_host_reads_once_a_round() -> None:
    run = {"nfe": 13, "seed": 3, "solver": "dpmpp-2m-sde"}
    here = sk.parallel.sample(sk.ScoreModel(Net(), sk.VP()), (5, 2, 3), label=LABEL, **run)
    with simgpu.device() as gpu:
        model = sk.ScoreModel(Net().to(gpu.device), sk.VP())
        label, before = LABEL.to(gpu.device), gpu.host_reads
        there = sk.parallel.sample(model, (5, 2, 3), label=label, **run)
        assert gpu.host_reads - before <= here.rounds
        assert there.x.device.type == "simgpu"
        assert torch.equal(there.x.cpu(), here.x)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("window", 0), ("tolerance", 0.0), ("tolerance", math.nan), ("batch_size", 0)],
)
def test_bad_input_is_named(argument: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{argument}={value}"):
        sk.parallel.sample(sk.ScoreModel(lambda x, t: x, sk.VP()), (2, 2), nfe=5, **{argument: value})
