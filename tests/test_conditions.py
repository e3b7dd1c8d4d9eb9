"""Labels with a row for each sample follow their samples, as tensors, numpy arrays or lists, in every call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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


class Labelled(torch.nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor, label: Any, *, weight: Any = None) -> torch.Tensor:
        return x


class Around(torch.nn.Module):
    """A network behind one that passes on whatever it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = Labelled()

    def forward(self, x: torch.Tensor, t: torch.Tensor, **conditions: Any) -> torch.Tensor:
        return self.inside(x, t, **conditions)


def function(x: torch.Tensor, t: torch.Tensor, label: Any, *, weight: Any = None) -> torch.Tensor:
    return x


NETS: dict[str, Any] = {
    "module": Labelled(),
    "inside another": Around(),
    "compiled": torch.compile(Labelled(), backend="eager"),
    "function": function,
    "partial": partial(function, weight=2.0),
    "method": Labelled().forward,
}


@pytest.mark.parametrize("name", NETS)
def test_a_condition_that_the_network_lacks_or_misses_is_one_sentence(name: str) -> None:
    own = sk.ScoreModel(NETS[name], sk.VP())
    x = torch.zeros(2, 2)
    sentence = r"^unknown condition of the network 'lable': did you mean 'label'\? known: label, weight$"
    with pytest.raises(ValueError, match=sentence):
        own.eps(x, 0.5, label=1, lable=1)
    with pytest.raises(ValueError, match=r"^label: the network needs it at every call, as in label=\.\.\.$"):
        own.score(x, 0.5)
    with pytest.raises(ValueError, match=r"'lable': did you mean 'label'\? known: .*label"):
        sk.sample(sk.Thresholded(own), (2, 2), nfe=3, label=1, lable=1)
    assert own.eps(x, 0.5, label=1).shape == x.shape


def test_an_error_inside_the_network_stays_what_it_is() -> None:
    def helper(y: torch.Tensor) -> torch.Tensor:
        return y

    def net(x: torch.Tensor, t: torch.Tensor, **conditions: Any) -> torch.Tensor:
        return helper(x, **conditions)

    with pytest.raises(TypeError, match=r"helper\(\) got an unexpected keyword argument 'label'"):
        sk.ScoreModel(net, sk.VP()).eps(torch.zeros(2, 2), 0.5, label=1)
