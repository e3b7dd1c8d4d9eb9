"""Guidance: each wrapper against its formula, on mixtures whose conditional and unconditional predictions are exact."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sdekit as sk
from sdekit import guidance
from sdekit.identity import behaviour, identify
from sdekit.model import networks
from sdekit.targets import GaussianMixture
from sdekit.testing import simgpu

MEANS = torch.tensor([[-2.0, 0.5], [0.3, -1.0], [1.5, 1.0]])
PROCESSES = [sk.VP(), sk.VE(sigma_max=20.0), sk.Flow(), sk.EDM(t_max=20.0)]
KINDS = ["eps", "x0", "score", "v", "flow"]
X = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(6, 2)
LABEL = torch.tensor([0, 1, 2, 2, 1, 0])


def classes(process: sk.Process) -> list[sk.ScoreModel]:
    """The exact models of each mode alone, and of all three."""
    parts = [MEANS[:1], MEANS[1:2], MEANS[2:], MEANS]
    return [GaussianMixture(means.double(), 0.5).model(process) for means in parts]


class Mixture(torch.nn.Module):
    """A network that takes labels 0 … 2, and 3 for none."""

    def __init__(self, process: sk.Process) -> None:
        super().__init__()
        self.exact = torch.nn.ModuleList([model.net for model in classes(process)])

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        assert label.shape == t.shape == x.shape[:1]
        outputs = torch.stack([net(x, t) for net in self.exact])
        return outputs[label, torch.arange(len(x))]


def model(process: sk.Process = PROCESSES[0]) -> sk.ScoreModel:
    return sk.ScoreModel(Mixture(process), process, "eps")


def cfg(scale: Any = 2.5, inner: Any = None, **options: Any) -> guidance.ClassifierFree:
    return guidance.ClassifierFree(inner or model(), scale, null={"label": 3}, **options)


def truth(kind: str, x: Tensor, t: float, label: int, process: sk.Process = PROCESSES[0]) -> Tensor:
    return classes(process)[label].predict(kind, x, t)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("doubled", [True, False])
def test_classifier_free_guidance_is_the_line_through_both_predictions(process: Any, kind: str, doubled: bool) -> None:
    t, w = process.t_of_half_log_snr(-0.3), 2.5
    guided = cfg(w, model(process), doubled=doubled)
    free = truth(kind, X, t, 3, process)
    given = torch.stack([truth(kind, x[None], t, c, process)[0] for x, c in zip(X, LABEL.tolist())])
    torch.testing.assert_close(guided.predict(kind, X, t, label=LABEL), (1 - w) * free + w * given)
    assert guided.nfe == 2


@pytest.mark.parametrize("doubled", [True, False])
def test_a_run_counts_two_evaluations_for_each_call(doubled: bool) -> None:
    out = sk.sample(cfg(doubled=doubled), (6, 2), nfe=7, seed=0, label=LABEL, batch_size=4)
    assert out.nfe == 14


def test_scale_one_is_the_conditional_model_and_zero_the_unconditional_one() -> None:
    given, none = {"label": LABEL}, {"label": torch.full_like(LABEL, 3)}
    assert torch.equal(cfg(1.0).predict("eps", X, 0.5, **given), model().predict("eps", X, 0.5, **given))
    assert torch.equal(cfg(0.0).predict("eps", X, 0.5, **given), model().predict("eps", X, 0.5, **none))


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_an_interval_is_one_of_noise_levels_whatever_the_process(process: Any) -> None:
    guided = cfg(4.0, model(process))
    limited = guidance.Interval(guided, 0.4, 2.0)
    for sigma, inside in ((0.39, False), (0.41, True), (1.99, True), (2.01, False)):
        t, before = process.t_of_half_log_snr(-math.log(sigma)), limited.nfe
        plain = model(process).predict("eps", X, t, label=LABEL)
        wanted = cfg(4.0, model(process)).predict("eps", X, t, label=LABEL) if inside else plain
        assert torch.equal(limited.predict("eps", X, t, label=LABEL), wanted)
        assert limited.nfe - before == 1 + inside
