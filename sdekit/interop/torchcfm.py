"""Velocity networks of torchcfm: ``model(t, x)``, in that order, the data at t = 1."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from sdekit.door import door
from sdekit.interop.adapter import adapted
from sdekit.model import ScoreModel
from sdekit.process import Flow, Process


@door
def wrap(net: Callable[..., Tensor], *, one_time: bool = False) -> ScoreModel:
    """A velocity network of torchcfm as a ``ScoreModel`` of ``Flow()``.

    It is called as ``net(t, x, **conditions)`` with t [batch]: ``UNetModelWrapper``, whose label is ``y``. A network of
    one input, as torchcfm's ``MLP``, gets ``cat([x, t])``, and a ``torch_wrapper`` of one is taken off. Where pairs
    of noise and data were drawn by optimal transport the velocity is that of their flow, but no score follows from it:
    use deterministic solvers.

    Args:
        net: returns x's shape.
        one_time: it takes one time for the whole batch, t without dimensions. Then calls with a time for each sample
            (``sample_adaptive``, ``encode``, ``log_prob``) are refused.

    Raises ValueError for a network whose first inputs are called (x, t).

    >>> model = wrap(lambda t, x: (1 - 2 * t[:, None]) * x)
    >>> model.flow(torch.ones(2, 3), 0.25)[0, 0].item()  # minus the velocity at their t = 0.75
    0.5
    """
    bare: Callable[..., Tensor] = net
    if type(net).__name__ == "torch_wrapper" and isinstance(net, nn.Module):
        bare = cast(nn.Module, net.model)
    inputs = _inputs(bare)
    if inputs[:2] == ["x", "t"]:
        raise ValueError(
            "net: it takes (x, t), and torchcfm's take (t, x): give it as"
            ' ScoreModel(net, Flow(), predicts="flow-to-data")'
        )
    call = _joined if len(inputs) == 1 else _one_time if one_time else _time_first
    return ScoreModel(adapted(bare, call), Flow(), "flow-to-data", _common if one_time else None)


def _inputs(net: Callable[..., Tensor]) -> list[str]:
    """The names of the inputs that have to be given, by their place."""
    known = inspect.signature(net.forward if isinstance(net, nn.Module) else net).parameters.values()
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in known if p.kind in by_place and p.default is inspect.Parameter.empty]


def _time_first(net: Callable[..., Tensor], x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
    return net(t, x, **conditions)


def _one_time(net: Callable[..., Tensor], x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
    return net(t[0], x, **conditions)


def _joined(net: Callable[..., Tensor], x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
    return net(torch.cat([x, t[:, None].to(x.dtype)], dim=1), **conditions)


def _common(process: Process, t: float | Tensor) -> float | Tensor:
    if isinstance(t, Tensor) and t.ndim:
        raise ValueError(
            "this network takes one time for the whole batch (one_time=True), which serves sample alone: all else gives"
            " each sample its own, so give a network that takes t [batch]"
        )
    return 1 - t
