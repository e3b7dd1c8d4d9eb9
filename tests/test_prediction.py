"""The table of predictions: each entry against its definition, and every pair back and forth."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import PREDICTIONS, at, fractions, processes, tensor

from sdekit.prediction import PREDICTIONS as TABLE
from sdekit.prediction import convert
from sdekit.process import VP, Flow, Process

pairs = st.tuples(st.sampled_from(PREDICTIONS), st.sampled_from(PREDICTIONS))
units = st.floats(-2.0, 2.0)


def defined(name: str, process: Process, t: float, x0: float, eps: float) -> float:
    """The prediction by its definition; the flow's from the moments' derivatives, not from f and g."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    if name.startswith("flow"):
        time = tensor(t).requires_grad_()
        (velocity,) = torch.autograd.grad(process.alpha(time) * x0 + process.sigma(time) * eps, time)
        return velocity.item() if name == "flow" else -velocity.item()
    return {"eps": eps, "x0": x0, "score": -eps / sigma, "v": alpha * eps - sigma * x0}[name]


@given(processes(), fractions(0.02, 0.98), pairs, units, units)
def test_each_conversion_meets_the_definitions(
    process: Process, fraction: float, pair: tuple[str, str], x0: float, eps: float
) -> None:
    t = at(process, fraction)
    x = process.alpha(t) * x0 + process.sigma(t) * eps
    before, after = (defined(name, process, t, x0, eps) for name in pair)
    c_x, c_F = convert(*pair, process, t)  # noqa: N806
    # the sum's terms may cancel: its rounding is theirs
    assert c_x * x + c_F * before == pytest.approx(
        after, rel=1e-9, abs=1e-11 * (abs(c_x) + abs(c_F)) * (1 + abs(before))
    )


@given(processes(), fractions(), pairs)
def test_conversions_round_trip(process: Process, fraction: float, pair: tuple[str, str]) -> None:
    t = at(process, fraction)
    (c_x, c_F), (d_x, d_F) = convert(*pair, process, t), convert(*pair[::-1], process, t)  # noqa: N806
    assert c_F * d_F == pytest.approx(1, rel=1e-10)
    assert d_x + d_F * c_x == pytest.approx(0, abs=1e-10 * (1 + abs(d_x)))


@given(processes(), st.lists(fractions(), min_size=1, max_size=4), pairs)
def test_tensors_convert_as_floats_do(process: Process, marks: list[float], pair: tuple[str, str]) -> None:
    times = [at(process, mark) for mark in marks]
    for column, weight in enumerate(convert(*pair, process, tensor(times))):
        expected = [convert(*pair, process, t)[column] for t in times]
        values = weight.tolist() if isinstance(weight, torch.Tensor) else [weight] * len(times)
        assert values == pytest.approx(expected, rel=1e-11, abs=1e-13)


def test_score_of_vp_is_minus_eps_over_root_of_one_minus_alpha_bar() -> None:
    bar = math.exp(-(0.1 * 0.3 + 19.9 * 0.3**2 / 2))
    assert convert("eps", "score", VP(), 0.3) == (0.0, pytest.approx(-1 / math.sqrt(1 - bar), rel=1e-12))


def test_flow_of_flow_is_eps_minus_x0() -> None:
    assert TABLE["flow"](Flow(), 0.3) == pytest.approx((-1.0, 1.0), rel=1e-12)


def test_the_same_name_costs_nothing() -> None:
    for name in PREDICTIONS:
        assert convert(name, name, VP(), 0.5) == (0.0, 1.0)


@pytest.mark.parametrize(("source", "target"), [("epss", "x0"), ("eps", "scroe")])
def test_unknown_names_suggest_the_nearest(source: str, target: str) -> None:
    with pytest.raises(ValueError, match=r"unknown prediction '(epss|scroe)': did you mean '(eps|score)'\?"):
        convert(source, target, VP(), 0.5)
