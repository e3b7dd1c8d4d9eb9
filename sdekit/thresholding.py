r"""Thresholding of x_0: a wrapper of a model that keeps the predicted data where data lie.

    static    x_0 → clamp(x_0, −r, r)                                         (Ho et al. 2020; diffusers' clip_sample)
    dynamic   x_0 → clamp(x_0, −s, s)/s,  s = the quantile q of a sample's |x_0|, clamped to [1, r]
                                                                      (Saharia et al. 2022, Imagen, section 2.3)

Every prediction follows from the x_0 so changed: a change of x_0 by Δ changes ε by −(α/σ) Δ, and so on. diffusers' DDIM
does so with ``use_clipped_model_output=True``, and by default takes ε as it was beside the clamped x_0; its DDPM, which
steps in x_0, does so always.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.door import door
from sdekit.prediction import convert
from sdekit.process import Process, State, Time, match
from sdekit.sampling import Model, Wrapper


@dataclass(frozen=True)
class Static:
    """x_0 → clamp(x_0, −limit, limit). Raises ValueError for a limit that is not above 0.

    >>> Static()(torch.tensor([[-3.0, 0.5]]))
    tensor([[-1.0000,  0.5000]])
    """

    limit: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.limit < math.inf:
            raise ValueError(f"limit={self.limit}: it must be above 0")

    def __call__(self, x0: Tensor) -> Tensor:
        return x0.clamp(-self.limit, self.limit)


@dataclass(frozen=True)
class Dynamic:
    """x_0 → clamp(x_0, −s, s)/s with s the quantile ``quantile`` of each sample's |x_0|, clamped to [1, limit].

    With ``limit=1``, diffusers' default, it is ``Static()``. Raises ValueError for a quantile outside (0, 1] and a
    limit below 1.

    >>> Dynamic(quantile=1.0, limit=4.0)(torch.tensor([[-2.0, 1.0], [0.2, 0.4]]))
    tensor([[-1.0000,  0.5000],
            [ 0.2000,  0.4000]])
    """

    quantile: float = 0.995
    limit: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.quantile <= 1:
            raise ValueError(f"quantile={self.quantile}: it must lie in (0, 1]")
        if not 1 <= self.limit < math.inf:
            raise ValueError(f"limit={self.limit}: it must be at least 1")

    def __call__(self, x0: Tensor) -> Tensor:
        sizes = x0.detach().flatten(1).abs().sort(1).values  # torch.quantile takes no half precision, and few elements
        place = self.quantile * (sizes.shape[1] - 1)
        low = min(int(place), max(sizes.shape[1] - 2, 0))
        high = min(low + 1, sizes.shape[1] - 1)
        s = torch.lerp(sizes[:, low], sizes[:, high], place - low).clamp(1, self.limit)
        s = s.reshape(-1, *[1] * (x0.ndim - 1))
        return torch.minimum(torch.maximum(x0, -s), s) / s


@door
class Thresholded(Wrapper):
    """``model`` with its x_0 changed by ``rule`` before any other prediction is made of it.

    Where the rule leaves x_0 as it is, every prediction is the model's own, to the bit. A density or an encoding of a
    model so changed is not the network's: give the bare model to ``log_prob`` and ``encode``.

    Args:
        model: a ``ScoreModel``, or what wraps one.
        rule: ``Static``, ``Dynamic``, or any function of x_0 [batch, *event].

    >>> from sdekit import ScoreModel, VP
    >>> model = Thresholded(ScoreModel(lambda x, t: 2 * x, VP(), predicts="x0"), Static(1.0))
    >>> model.predict("x0", torch.tensor([[0.3, -4.0]]), 0.5)
    tensor([[ 0.6000, -1.0000]])
    """

    def __init__(self, model: Model, rule: Callable[[Tensor], Tensor] | None = None) -> None:
        self.model = model
        self.rule: Callable[[Tensor], Tensor] = Static() if rule is None else rule

    def __repr__(self) -> str:
        return f"Thresholded({self.model!r}, {self.rule!r})"

    @property
    def nfe(self) -> int:
        """The model's evaluations."""
        return self.model.nfe

    @property
    def net(self) -> Any:
        """The model's network, by which conditions are checked; None where it has none."""
        return getattr(self.model, "net", None)

    def predict(self, kind: str, x: State, t: Time, /, **conditions: Any) -> State:
        """The prediction ``kind`` after the rule; t is a float, 0-d or [batch]."""
        F = self.model.predict(kind, x, t, **conditions)  # noqa: N806
        return thresholded(self.rule, kind, self.process, t, x, F)


def thresholded(
    rule: Callable[[Tensor], Tensor],
    kind: str,
    process: Process,
    t: float | Tensor,
    x: Tensor,
    F: Tensor,  # noqa: N803
) -> Tensor:
    """The prediction F of that kind with its x_0 changed by ``rule``: F + (dF/dx_0)(rule(x_0) − x_0)."""
    if kind == "x0":
        return rule(F)
    c_x, c_F = convert(kind, "x0", process, t)  # noqa: N806
    if isinstance(c_F, float) and isinstance(c_x, float):  # as few kernels as there can be
        x0 = torch.add(x * c_x, F, alpha=c_F)
        return torch.add(F, rule(x0) - x0, alpha=1 / c_F).to(F.dtype)
    weight = match(c_F, x)
    x0 = match(c_x, x) * x + weight * F
    return (F + (rule(x0) - x0) / weight).to(F.dtype)
