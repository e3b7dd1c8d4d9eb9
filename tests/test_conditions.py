"""Labels with a row for each sample follow their samples, as tensors, numpy arrays or lists, in every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import sdekit as sk
from sdekit.adaptive import sample_adaptive
from sdekit.likelihood import elbo, log_prob

N = 5
LABELS = [3, 0, 1, 2, 1]
X0 = torch.linspace(-1, 1, 2 * N).reshape(N, 2)
MEANS = torch.tensor([-2.0, -0.5, 0.5, 2.0])


def model() -> sk.ScoreModel:
    """Data N(mean of the label, 1): ε = σ (x − α mean)."""
    process = sk.VP()

    def net(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        assert isinstance(label, torch.Tensor)
        assert len(label) == len(x)
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        return sigma * (x - alpha * MEANS[label][:, None])

    return sk.ScoreModel(net, process)


CALLS: dict[str, Callable[[Any], torch.Tensor]] = {
    "sample": lambda label: sk.sample(model(), (N, 2), nfe=6, seed=0, label=label, batch_size=2).x,
    "sample_whole": lambda label: sk.sample(model(), (N, 2), nfe=6, seed=0, label=label).x,
    "sample_adaptive": lambda label: sample_adaptive(model(), (N, 2), seed=0, label=label, batch_size=2).x,
    "encode": lambda label: sk.encode(model(), X0, label=label),
    "log_prob": lambda label: log_prob(model(), X0, divergence="exact", label=label).nats,
    "elbo": lambda label: elbo(model(), X0, times=3, label=label).nats,
    "fit_ays": lambda label: torch.tensor(sk.fit_ays(model(), X0, 3, candidates=10, label=label)),
    "fit_gits": lambda label: torch.tensor(sk.fit_gits(model(), X0, 3, teacher_steps=10, label=label)),
    "fit_statistics": lambda label: sk.solvers.fit_statistics(model(), X0, knots=5, batch_size=2, label=label).linear,
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", [list, np.array])
def test_a_list_and_an_array_are_split_as_a_tensor_is(call: str, kind: Callable[[list[int]], Any]) -> None:
    truth = CALLS[call](torch.tensor(LABELS))
    assert torch.equal(CALLS[call](kind(LABELS)), truth)


@pytest.mark.parametrize("call", CALLS)
def test_a_list_that_nothing_can_split_is_refused(call: str) -> None:
    for words in (["a dog"] * N, [torch.zeros(2)] * N):
        with pytest.raises(ValueError, match=r"label: a list of 5.*give a tensor"):
            CALLS[call](words)


def test_what_has_no_row_for_each_sample_is_passed_on_as_it_is() -> None:
    seen: list[Any] = []

    def net(x: torch.Tensor, t: torch.Tensor, **conditions: Any) -> torch.Tensor:
        seen.append(conditions)
        return x

    given: dict[str, Any] = {
        "scales": [1.0, 2.0],
        "word": "a dog",
        "size": (8, 8, 8, 8, 8),
        "weight": 2.0,
        "zero": np.array(1.0),
    }
    sk.sample(sk.ScoreModel(net, sk.VP()), (N, 2), nfe=3, seed=0, batch_size=2, **given)
    assert all(conditions == given for conditions in seen)
