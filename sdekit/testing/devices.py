"""Whether a device gives the CPU's numbers: every solver, grid, process and prediction, and what else runs on one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sdekit.adaptive import sample_adaptive
from sdekit.door import Device, door
from sdekit.graph import capture
from sdekit.grid import GRIDS
from sdekit.likelihood import log_prob
from sdekit.model import ScoreModel
from sdekit.noise import SOURCES, normal
from sdekit.ode import decode, encode
from sdekit.prediction import PREDICTIONS
from sdekit.process import EDM, VE, VP, CosineVP, DiscreteVP, Flow, Process, SubVP
from sdekit.sampling import sample
from sdekit.solvers import names

SHAPE = (5, 2, 3)
PROCESSES: tuple[Process, ...] = (VP(), SubVP(), VE(), CosineVP(), DiscreteVP(), Flow(), EDM())

_VP = PROCESSES[0]


class Net(nn.Module):
    """Small, but with what networks do: a time embedding, a linear map, a condition."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(6, 6, generator=generator) / 6)
        self.labels = nn.Parameter(torch.randn(3, 6, generator=generator))

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        shift = self.labels[label] + torch.sin(t[:, None]).to(self.labels.dtype)
        return torch.tanh(x.flatten(1) @ self.weight + shift).reshape(x.shape)


@dataclass(frozen=True)
class Case:
    """What to run on a device, and by how much its result may differ: |a − b|/(1 + |b|), the largest.

    Attributes:
        kind: ``"solver"``, ``"grid"``, ….
        name: which of the kind.
        run: gives a tensor on a device.
        tolerance: float32 rounds differently in the devices' sums, logarithms and cosines, and a run adds it up.
    """

    kind: str
    name: str
    run: Callable[[torch.device], Tensor]
    tolerance: float


def _model(
    where: torch.device, process: Process = _VP, predicts: str = "eps", dtype: Any = torch.float32
) -> ScoreModel:
    return ScoreModel(Net().to(where, dtype), process, predicts)


def _label(where: torch.device) -> Tensor:
    return torch.tensor([0, 1, 2, 1, 0]).to(where)


def _states(where: torch.device) -> Tensor:
    return (torch.arange(30.0).reshape(SHAPE) / 15 - 1).to(where)


def _sampled(
    where: torch.device, process: Process = _VP, predicts: str = "eps", dtype: Any = torch.float32, **how: Any
) -> Tensor:
    options: dict[str, Any] = {"nfe": 7, "seed": 3, "label": _label(where), **how}
    return sample(_model(where, process, predicts, dtype), SHAPE, **options).x


def _captured(where: torch.device, solver: str) -> Tensor:
    return capture(_model(where), SHAPE, solver=solver, nfe=7, label=_label(where))(seed=3)


def _adaptive(where: torch.device) -> Tensor:
    return sample_adaptive(_model(where), SHAPE, seed=3, label=_label(where)).x


def _likelihood(where: torch.device) -> Tensor:
    return log_prob(_model(where), _states(where), divergence="exact", label=_label(where)).nats


def _round_trip(where: torch.device) -> Tensor:
    model, label = _model(where), _label(where)
    latents = encode(model, _states(where), label=label)
    return torch.stack([latents, decode(model, latents, label=label)])


def _normal(where: torch.device) -> Tensor:
    return normal(3, 1, torch.arange(64, device=where), (31,))


def cases() -> Iterator[Case]:
    """Everything that is compared.

    >>> sorted({case.kind for case in cases()})
    ['adaptive', 'bfloat16', 'capture', 'grid', 'likelihood', 'noise', 'ode', 'prediction', 'solver']
    """
    for name in names():
        yield Case("solver", name, partial(_sampled, solver=name, batch_size=2), 1e-3)
        yield Case("capture", name, partial(_captured, solver=name), 1e-3)
    for name in GRIDS:
        yield Case("grid", name, partial(_sampled, grid=name), 1e-3)
    for process in PROCESSES:
        for kind in PREDICTIONS:
            run = partial(_sampled, process=process, predicts=kind)
            yield Case("prediction", f"{type(process).__name__}, {kind}", run, 1e-3)
    for name in SOURCES:
        yield Case("noise", name, partial(_sampled, solver="ddpm", noise=name), 1e-3)
    for name in ("ddim", "dpmpp-2m-sde"):
        yield Case("bfloat16", name, partial(_sampled, solver=name, dtype=torch.bfloat16), 5e-2)
    yield Case("noise", "normal", _normal, 1e-4)
    yield Case("adaptive", "default", _adaptive, 1e-2)
    yield Case("likelihood", "exact", _likelihood, 1e-3)
    yield Case("ode", "encode, decode", _round_trip, 1e-3)


def difference(case: Case, device: torch.device) -> float:
    """The largest |a − b|/(1 + |b|) of the device's result a and the CPU's b; NaN where one is not finite."""
    here, there = case.run(torch.device("cpu")).float(), case.run(device)
    if there.device.type != device.type:
        raise ValueError(f"{case.kind} {case.name}: its result is on {there.device}, not on {device}")
    return ((there.cpu().float() - here).abs() / (1 + here.abs())).max().item()


@door
def check_device(device: Device) -> None:
    """Raise AssertionError with every case of ``cases`` in which the device's numbers are not the CPU's.

    >>> check_device("cpu")  # equal to itself
    """
    off = {case: difference(case, torch.device(device)) for case in cases()}
    wrong = [f"{case.kind} {case.name}: {found:.2g} > {case.tolerance}" for case, found in off.items()
             if not found <= case.tolerance]  # fmt: skip
    if wrong:
        raise AssertionError(f"{len(wrong)} of {len(off)} results differ from the CPU's:\n" + "\n".join(wrong))
