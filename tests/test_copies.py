"""What users hold can be pickled, copied and deep-copied, and is then what it was."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sdekit as sk

VP = sk.VP()
LAW = sk.targets.GaussianMixture(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), 0.5)
MODEL = LAW.model(VP)
UNET = sk.nn.UNet(widths=(4,), embedding=4, groups=2, heads=1)
SEEN = sk.inverse.Measurement(
    sk.inverse.Mask(torch.tensor([True, False])), torch.tensor([0.5]), sk.inverse.GaussianNoise(0.3)
)


def drawn(model: Any, **more: Any) -> Tensor:
    return sk.sample(model, (3, 2), nfe=4, seed=0, **more).x


OBJECTS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    **{
        type(process).__name__: (lambda process=process: process, lambda one: (one, one.half_log_snr(0.5)))
        for process in (
            VP,
            sk.SubVP(),
            sk.VE(),
            sk.CosineVP(),
            sk.SigmoidVP(),
            sk.LaplaceVP(),
            sk.DiscreteVP.linear(100),
            sk.Flow(),
            sk.EDM(),
        )
    },
    "Grid": (lambda: sk.Grid.make(VP, "karras", 5), lambda one: list(one)),
    "Solver": (lambda: sk.solvers.get("ddim(eta=0.5)"), lambda one: drawn(MODEL, solver=one)),
    "Plan": (lambda: sk.solvers.get("unipc-3").plan(VP, nfe=6), str),
    "Tuned": (
        lambda: sk.tune(MODEL, (1, 2), 3, starts=60, budget=2_000, choices=[("ddim", "time")]),
        lambda one: sk.sample(MODEL, (3, 2), solver=one, seed=0).x,
    ),
    "Langevin": (sk.Langevin, lambda one: drawn(MODEL, solver="ddpm", corrector=one)),
    "Adaptive": (lambda: sk.Adaptive("dpm-solver-12", rtol=0.1), lambda one: one.label),
    "Parallel": (lambda: sk.parallel.Parallel("ddim", window=7), lambda one: one.label),
    "target": (lambda: LAW, lambda one: one.sample(4, seed=1)),
    "exact model": (lambda: MODEL, drawn),
    "network": (
        lambda: sk.ScoreModel(UNET, VP),
        lambda one: sk.sample(one, (2, 1, 4, 4), nfe=3, seed=0).x,
    ),
    "guided": (
        lambda: sk.guidance.Autoguided(MODEL, LAW.model(VP), 2.0),
        drawn,
    ),
    "measurement": (lambda: SEEN, lambda one: (one.operator(torch.ones(1, 2)), one.y)),
    "conditioned": (lambda: sk.inverse.posterior(LAW, SEEN), lambda one: one.sample(3, seed=0)),
    "Solution": (lambda: sk.sample(MODEL, (3, 2), nfe=4, seed=0, keep="all"), lambda one: (one.x, one.t, one.nfe)),
    "LogLikelihood": (lambda: sk.log_prob(MODEL, torch.zeros(2, 2), rtol=0.1, atol=0.1), lambda one: one.nats),
    "Comparison": (
        lambda: sk.compare(MODEL, LAW.sample(8), solvers=["ddim"], nfe=[2], samples=8, metrics=["rmse"]),
        lambda one: str(one),
    ),
}


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize(
    "again", [lambda one: pickle.loads(pickle.dumps(one)), copy.copy, copy.deepcopy], ids=["pickle", "copy", "deepcopy"]
)
def test_an_object_again_is_what_it_was(name: str, again: Callable[[Any], Any]) -> None:
    make, shows = OBJECTS[name]
    one = make()
    other = again(one)
    assert type(other) is type(one)
    torch.testing.assert_close(_plain(shows(other)), _plain(shows(one)), rtol=0, atol=0)


def _plain(value: Any) -> Any:
    """What ``assert_close`` compares: tensors and numbers; all else by its repr, as two sums of bytes."""
    if isinstance(value, Tensor | float | int):
        return value
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return [float(byte) for byte in repr(value).encode()]


def test_every_public_function_and_class_is_pickled_by_its_name() -> None:
    for name in sk.__all__:
        thing = getattr(sk, name)
        if callable(thing):
            assert pickle.loads(pickle.dumps(thing)) is thing, name
            assert (thing.__doc__ or "").strip(), f"help({name}) says nothing"
