"""ScoreModel: one call of the network gives every prediction, at every kind of time, in every precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import PREDICTIONS, PROCESSES, at, fractions, processes, tensor
from torch import Tensor, nn

from sdekit.model import ScoreModel
from sdekit.prediction import convert
from sdekit.process import VP, DiscreteVP, Flow, Process

X = tensor([[0.3, -1.2], [2.0, 0.7], [-0.4, 0.1]])


class Recorder:
    """A network that keeps what it was given."""

    def __init__(self, factor: float = 0.5) -> None:
        self.factor = factor
        self.calls: list[tuple[Tensor, Tensor, dict[str, Any]]] = []

    def __call__(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        self.calls.append((x, t, conditions))
        return self.factor * x


def truth(predicts: str, process: Process, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    flow = process.alpha_rate(t)[:, None] * x0 + process.sigma_rate(t)[:, None] * eps
    v = alpha * eps - sigma * x0
    return {"eps": eps, "x0": x0, "score": -eps / sigma, "v": v, "flow": flow, "flow-to-data": -flow}[predicts]


@given(processes(), st.lists(fractions(0.05, 0.95), min_size=3, max_size=3), st.sampled_from(PREDICTIONS))
def test_every_prediction_from_any_network(process: Process, marks: list[float], predicts: str) -> None:
    t = tensor([at(process, mark) for mark in marks])
    x0, eps = X, X.flip(0) + 0.25
    x = process.perturb(x0, t, eps)
    model = ScoreModel(lambda x, times: truth(predicts, process, x0, eps, t), process, predicts)
    for calls, kind in enumerate(PREDICTIONS, start=1):
        # c_x x + c_F F is known to a rounding of its terms
        c_x, c_F = (torch.as_tensor(c).expand(3)[:, None].abs() for c in convert(predicts, kind, process, t))  # noqa: N806
        allowed = 1e-13 * (c_x * x.abs() + c_F * truth(predicts, process, x0, eps, t).abs() + 1)
        assert ((model.predict(kind, x, t) - truth(kind, process, x0, eps, t)).abs() <= allowed).all(), kind
        assert model.nfe == calls


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_floats_and_tensors_of_times_agree(process: Process, predicts: str) -> None:
    t = at(process, 0.37)
    model = ScoreModel(Recorder(), process, predicts)
    for kind in PREDICTIONS:
        by_float = model.predict(kind, X, t)
        for time in (tensor(t), tensor([t] * 3)):
            torch.testing.assert_close(model.predict(kind, X, time), by_float, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("time_dtype", [torch.float32, torch.float64])
def test_the_state_keeps_its_dtype(kind: str, time_dtype: torch.dtype) -> None:
    model = ScoreModel(Recorder(), VP())
    for t in (0.5, torch.tensor(0.5, dtype=time_dtype), torch.full((3,), 0.5, dtype=time_dtype)):
        assert model.predict(kind, X.float(), t).dtype == torch.float32


def test_conditions_reach_the_network() -> None:
    net, labels = Recorder(), torch.tensor([1, 2, 3])
    ScoreModel(net, VP()).score(X, 0.5, labels=labels, scale=2.0)
    _, times, conditions = net.calls[0]
    assert conditions["labels"] is labels
    assert conditions["scale"] == 2.0
    assert torch.equal(times, tensor([0.5] * 3))


@pytest.mark.parametrize(
    ("name", "process", "t", "told"),
    [
        ("t", VP(), 0.25, 0.25),
        ("1-t", Flow(), 0.25, 0.75),
        ("index", DiscreteVP.linear(50), 0.02, 0.0),
        ("index", DiscreteVP(), 0.5, 499.0),
        ("999t", VP(), 0.5, 499.5),
        ("1000t", Flow(), 0.25, 250.0),
        ("sigma", Flow(), 0.25, 0.25),
        ("half-log-snr", Flow(), 0.5, 0.0),
        ("edm", Flow(), 0.2, -0.34657359027997264),  # log(1/4)/4
        (lambda process, t: 7 * t, VP(), 0.5, 3.5),
    ],
)
def test_how_the_network_is_told_the_time(name: Any, process: Process, t: float, told: float) -> None:
    net = Recorder()
    model = ScoreModel(net, process, time=name)
    for time in (t, tensor(t), tensor([t] * 3)):
        model.eps(X, time)
    for _, times, _ in net.calls:
        torch.testing.assert_close(times, tensor([told] * 3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_the_named_methods_are_predictions(predicts: str) -> None:
    model = ScoreModel(Recorder(), Flow(), predicts)
    for kind in ("eps", "x0", "score", "v", "flow"):
        assert torch.equal(getattr(model, kind)(X, 0.3), model.predict(kind, X, 0.3))


TABLE = DiscreteVP()
WHOLE: dict[str, Any] = {
    "entry": "entry",
    "rounded": lambda process, t: torch.as_tensor(t * 1000 - 1).round().long(),
    "int32": lambda process, t: torch.as_tensor(t * 1000 - 1).round().int(),
}


@pytest.mark.parametrize("time", WHOLE.values(), ids=WHOLE.keys())
def test_whole_numbers_reach_a_table_of_embeddings(time: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(1000, 2, dtype=torch.float64)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            assert t.dtype == torch.int64
            return x * self.embed(t)

    net = Net()
    model = ScoreModel(net, TABLE, time=time)
    for n in (0, 1, 499, 979, 999):
        t, expected = (n + 1) / 1000, X * net.embed.weight[n]
        for time_given in (t, tensor(t), tensor([t] * 3), torch.tensor(t), torch.full((3,), t)):
            assert torch.equal(model.eps(X, time_given), expected)
    assert torch.equal(model.eps(X, 0.2504), X * net.embed.weight[249])  # between entries: the nearest


def test_only_a_time_map_makes_whole_numbers() -> None:
    net = Recorder()
    ScoreModel(net, VP()).eps(X, 1)
    ScoreModel(net, VP(), time=lambda process, t: round(1000 * t)).eps(X, 0.25)
    assert [times.dtype for _, times, _ in net.calls] == [torch.float64, torch.int64]
    assert net.calls[1][1].tolist() == [250] * 3


@pytest.mark.parametrize(
    "layer", [nn.Linear(2, 2), nn.Sequential(nn.Unflatten(1, (2, 1)), nn.Conv1d(2, 2, 1), nn.Flatten())]
)
def test_a_network_of_another_dtype_inside_a_function_is_named(layer: nn.Module) -> None:
    half = layer.bfloat16()
    with pytest.raises(ValueError, match=r"x in torch.float32 and times in torch.float32.* dtype= of ScoreModel"):
        ScoreModel(lambda x, t: half(x), VP()).eps(X.float(), 0.5)
    assert ScoreModel(lambda x, t: half(x), VP(), dtype=torch.bfloat16).eps(X.float(), 0.5).dtype == torch.float32
    with pytest.raises(RuntimeError, match=r"must match the size|shapes cannot be multiplied"):
        ScoreModel(lambda x, t: x @ x, VP()).eps(X, 0.5)  # another failure stays what it is


def test_a_network_in_half_precision_sees_half_and_returns_the_states_dtype() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.5))
            self.seen: list[torch.dtype] = []

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            self.seen += [x.dtype, t.dtype]
            return self.weight * x

    net = Net().bfloat16()
    model, x = ScoreModel(net, VP()), X.float()
    out = model.score(x, 0.5)
    assert net.seen == [torch.bfloat16, torch.float32]
    assert out.dtype == torch.float32
    # the network's rounding only: the conversion is done in the state's precision
    exact = (0.5 * x.bfloat16()).float() * (-1 / VP().sigma(0.5))
    torch.testing.assert_close(out, exact, rtol=1e-6, atol=0)
    assert ScoreModel(net, VP(), dtype=torch.float32).dtype == torch.float32
    assert model.device == torch.device("cpu")


def test_the_device_is_the_networks() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("values", torch.zeros(3, device="meta"))

    assert ScoreModel(nn.Linear(2, 2, device="meta"), VP()).device == torch.device("meta")
    assert ScoreModel(Table(), VP()).device == torch.device("meta")
    assert ScoreModel(Recorder(), VP()).device == torch.device("cpu")


def test_a_wrong_result_is_named() -> None:
    with pytest.raises(ValueError, match=r"returned shape \[3, 4\] for x of shape \[3, 2\].*learned variance"):
        ScoreModel(lambda x, t: torch.cat([x, x], 1), VP()).eps(X, 0.5)
    with pytest.raises(ValueError, match=r"returned a tensor on meta for x on cpu"):
        ScoreModel(lambda x, t: x.to("meta"), VP()).eps(X, 0.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_is_named_where_asked(value: float) -> None:
    def net(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(torch.arange(3)[:, None] == 1, value, x)

    with pytest.raises(ValueError, match=r"NaN or infinity at t=0\.25 for samples \[1\]"):
        ScoreModel(net, VP(), check_finite=True).eps(X, 0.25)
    assert not ScoreModel(net, VP()).eps(X, 0.25).isfinite().all()
    assert ScoreModel(Recorder(), VP(), check_finite=True).eps(X, 0.25).isfinite().all()


def test_wrong_names() -> None:
    with pytest.raises(ValueError, match=r"unknown prediction 'epsilon': did you mean 'eps'"):
        ScoreModel(Recorder(), VP(), predicts="epsilon")
    with pytest.raises(ValueError, match=r"unknown time 'indx': did you mean 'index'"):
        ScoreModel(Recorder(), VP(), time="indx")
    with pytest.raises(ValueError, match=r'time="index" needs a DiscreteVP process, got VP'):
        ScoreModel(Recorder(), VP(), time="index")
    with pytest.raises(ValueError, match=r"unknown prediction 'noise'"):
        ScoreModel(Recorder(), VP()).predict("noise", X, 0.5)


def test_an_unknown_kind_costs_no_evaluation() -> None:
    model = ScoreModel(Recorder(), VP())
    with pytest.raises(ValueError, match="unknown prediction"):
        model.predict("noise", X, 0.5)
    assert model.nfe == 0
