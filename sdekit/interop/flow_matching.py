"""Velocity networks of facebookresearch/flow_matching: ``model(x=, t=, **extras)``, the data at t = 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sdekit.door import door
from sdekit.interop.adapter import adapted
from sdekit.model import ScoreModel
from sdekit.process import Flow, Process


@door
def wrap(model: Callable[..., Tensor], *, process: Process | None = None) -> ScoreModel:
    """A ``ModelWrapper``, or any network called as ``model(x=x, t=t, **extras)``, as a ``ScoreModel``.

    Its velocity is dx/dt towards the data at t = 1 (Lipman et al. 2023); it is told 1 − t for every sample, as [batch].
    Extras (labels, masks) are conditions of ``sample``.

    Args:
        model: returns x's shape.
        process: the path, with its data at t = 0: by default ``Flow()``, which is ``CondOTScheduler``.
            ``VPScheduler(beta_min, beta_max)`` is ``VP(beta_min, beta_max)``.

    >>> import torch
    >>> model = wrap(lambda x, t: (1 - 2 * t[:, None]) * x)
    >>> model.flow(torch.ones(2, 3), 0.25)[0, 0].item()  # minus the velocity at their t = 0.75
    0.5
    """
    return ScoreModel(adapted(model, _by_name), Flow() if process is None else process, "flow-to-data")


def _by_name(model: Callable[..., Tensor], x: Tensor, t: Tensor, **extras: Any) -> Tensor:
    return model(x=x, t=t, **extras)
