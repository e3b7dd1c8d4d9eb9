"""What is made of two predictions: the line through them, and its published corrections."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sdekit.door import door
from sdekit.names import Between, lookup
from sdekit.prediction import PREDICTIONS, convert
from sdekit.process import Process, match

Scale = float | Callable[[Process, "float | Tensor"], "float | Tensor"]


@runtime_checkable
class Rule(Protocol):
    """``rule(good, bad, scale)`` of two predictions of the kind that the rule is for."""

    @property
    def kind(self) -> str: ...

    def __call__(self, good: Tensor, bad: Tensor, scale: float | Tensor, /) -> Tensor: ...


def combine(good: Tensor, bad: Tensor, scale: float | Tensor) -> Tensor:
    """bad + w (good − bad), exactly good for w = 1.

    >>> combine(torch.tensor([2.0]), torch.tensor([1.0]), 3.0)
    tensor([4.])
    """
    return torch.lerp(bad, good, scale)


@door
@dataclass(frozen=True)
class Rescaled:
    r"""φ F_w std(F_good)/std(F_w) + (1 − φ) F_w, F_w the guided prediction (Lin et al. 2024, section 3.4).

    The standard deviations are each sample's, over its elements. ``kind`` is the prediction that this is done to: the
    paper's network predicts v; published code rescales whatever the network predicts.

    Raises ValueError for φ outside [0, 1], an unknown kind, and at a call for samples of one element.

    >>> good, bad = torch.tensor([[1.0, -1.0]]), torch.zeros(1, 2)
    >>> Rescaled(phi=1.0)(good, bad, 5.0)
    tensor([[ 1., -1.]])
    """

    phi: float = 0.7
    kind: str = "v"

    def __post_init__(self) -> None:
        if not 0 <= self.phi <= 1:
            raise ValueError(f"phi={self.phi}: it must be from 0 to 1")
        lookup("prediction", self.kind, PREDICTIONS)

    def __call__(self, good: Tensor, bad: Tensor, scale: float | Tensor, /) -> Tensor:
        guided = combine(good, bad, scale)
        if good[0].numel() < 2:
            raise ValueError(f"Rescaled: samples of shape {list(good.shape[1:])} have no spread; it needs 2 elements")
        wanted, found = (value.flatten(1).std(1) for value in (good, guided))
        ratio = torch.where(found > 0, wanted / found, torch.ones_like(found))
        return guided * match(self.phi * ratio + (1 - self.phi), guided)


@door
@dataclass(frozen=True)
class Projected:
    r"""D_good + (w − 1)(Δ_⊥ + η Δ_∥), Δ = D_good − D_bad cut to length r (Sadat et al. 2024, APG).

    D is x0; Δ_∥ is the part of Δ along D_good. η = 1 and r = ∞ is classifier-free guidance. The paper's momentum, a
    running sum of Δ over the steps, is not here: it would make a prediction depend on the calls before it, and with
    them on the solver's stages, on the order of batches and on rejected steps.

    Args:
        eta: η; the paper sets 0.
        norm: r, in the units of x0's Euclidean norm.

    Raises ValueError for an η that is not finite and a norm that is not positive.

    >>> good, bad = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, -1.0]])
    >>> Projected()(good, bad, 3.0), Projected(eta=1.0)(good, bad, 3.0)
    (tensor([[1., 2.]]), tensor([[3., 2.]]))
    """

    eta: float = 0.0
    norm: Annotated[float, Between(0, math.inf)] = math.inf
    kind: str = "x0"

    def __post_init__(self) -> None:
        if not math.isfinite(self.eta):
            raise ValueError(f"eta={self.eta}: it must be finite")
        if not self.norm > 0:
            raise ValueError(f"norm={self.norm}: it must be positive; inf cuts nothing")
        lookup("prediction", self.kind, PREDICTIONS)

    def __call__(self, good: Tensor, bad: Tensor, scale: float | Tensor, /) -> Tensor:
        tiny = torch.finfo(good.dtype).tiny
        difference = good - bad
        length: Any = match(_norm(difference).clamp_min(tiny), good)
        difference = difference * (self.norm / length).clamp_max(1)
        unit = good / match(_norm(good).clamp_min(tiny), good)
        along: Any = match((difference * unit).flatten(1).sum(1), good)
        return good + (scale - 1) * (difference + (self.eta - 1) * along * unit)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


def converted(value: Tensor, source: str, target: str, process: Process, x: Tensor, t: Any) -> Tensor:
    """The prediction ``target`` where ``value`` is the prediction ``source`` at (x, t)."""
    if source == target:
        return value
    c_x, c_F = convert(source, target, process, t)  # noqa: N806
    return (match(c_x, x) * x + match(c_F, x) * value).to(x.dtype)


def scale_at(scale: Scale, process: Process, t: Any, x: Tensor) -> float | Tensor:
    """The scale at t, the number that it is or what the function gives; tensors in x's dtype, to broadcast against x.

    >>> from sdekit.process import VP
    >>> scale_at(2.0, VP(), 0.5, torch.zeros(3)), scale_at(lambda process, t: 1 + t, VP(), 0.5, torch.zeros(3))
    (2.0, 1.5)
    """
    if isinstance(scale, int | float):
        return scale
    value = match(scale(process, t), x)
    if isinstance(value, Tensor):
        return value.to(x.dtype)
    if not math.isfinite(value):
        raise ValueError(f"scale: the function gave {value} at t={t}, it must give finite numbers")
    return value


def check_scale(scale: object) -> None:
    """ValueError unless it is a finite number or a function."""
    finite = isinstance(scale, int | float) and not isinstance(scale, bool) and math.isfinite(scale)
    if not (finite or callable(scale)):
        raise ValueError(f"scale={scale!r}: it must be a finite number, or a function of process and t that gives one")
