"""A schedule that is learned, as variational diffusion models do."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from sdekit.door import Evaluations, Width, door
from sdekit.elementwise import Scalar, clock, sigmoid, softplus
from sdekit.process.base import check_range
from sdekit.process.discrete import DiscreteVP
from sdekit.process.vp import VariancePreserving


@door
class MonotoneCurve(nn.Module):
    """A strictly rising curve from (0, 0) to (1, 1): t + Σ_k a_k s(b_k (t − c_k)), s the logistic function, a_k and
    b_k > 0, shifted and scaled. It begins within 0.002 of the straight line.

    Args:
        width: how many steps of s, their places c_k spread over [0, 1] at first.

    >>> curve = MonotoneCurve()
    >>> curve(torch.tensor([0.0, 1.0])).detach()
    tensor([0., 1.])
    """

    def __init__(self, width: Width = 32) -> None:
        super().__init__()
        self.heights = nn.Parameter(torch.full((width,), -6.0))  # a = softplus
        self.rates = nn.Parameter(torch.full((width,), 0.5 * width).expm1().log())  # b = softplus
        self.places = nn.Parameter((torch.arange(width) + 0.5) / width)

    def _rises(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The curve before it is scaled, and its slope."""
        a, b, c = (weight.to(t) for weight in (self.heights, self.rates, self.places))
        a, b = nn.functional.softplus(a), nn.functional.softplus(b)
        step = torch.sigmoid(b * (t[..., None] - c))
        return t + (a * step).sum(-1), 1 + (a * b * step * (1 - step)).sum(-1)

    def _ends(self, t: Tensor) -> tuple[Tensor, Tensor]:
        first, last = self._rises(torch.arange(2, dtype=t.dtype, device=t.device))[0].unbind()
        return first, last - first

    def forward(self, t: Tensor) -> Tensor:
        """The curve at t, in t's shape."""
        first, span = self._ends(t)
        return (self._rises(t)[0] - first) / span

    def slope(self, t: Tensor) -> Tensor:
        """Its derivative at t."""
        return self._rises(t)[1] / self._ends(t)[1]


@door
@dataclass(frozen=True)
class LearnedVP(VariancePreserving):
    """VP with λ(t) = λ_0 + (λ_1 − λ_0) curve(t), the curve a monotone network that is trained (Kingma et al. 2021).

    λ_0 = ``first`` and λ_1 = ``last`` stay; by default γ = −2λ runs from −13.3 to 5. The variational bound does not
    depend on what lies between, but the variance of its estimate at uniform t does: minimise the mean square of each
    draw's loss over ``process.curve.parameters()``. At the least, −λ'(t) is in inverse proportion to the root mean
    square of the ε-loss at t.

    Solvers and grids ask it anew at each run, since it may have changed, and the host reads its numbers. ``table``
    fixes what was learned, in numbers that a sampling loop need not read and that files can hold.

    >>> process = LearnedVP(first=5.0, last=-3.0)
    >>> process.half_log_snr(0.0), process.half_log_snr(1.0)
    (5.0, -3.0)
    """

    curve: MonotoneCurve = field(default_factory=MonotoneCurve)
    first: float = 6.65
    last: float = -2.5
    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self) -> None:
        check_range(self)
        if not self.first > self.last:
            raise ValueError(f"first={self.first}, last={self.last}: λ falls with t, so first must be above last")
        if self.t_max > 1:
            raise ValueError(f"t_max={self.t_max}: the curve ends at 1")

    def half_log_snr(self, t: Scalar) -> Scalar:
        return self.first + (self.last - self.first) * self._of(self.curve, t)

    def _of(self, formula: Any, t: Any) -> Any:
        """The curve's value in float64 where the device has it: λ of 6 in float32 alone is 5e-7 off."""
        if isinstance(t, Tensor):
            return formula(t.to(clock(t))).to(t.dtype)
        with torch.no_grad():
            return formula(torch.tensor(t, dtype=torch.float64, device=self.curve.places.device)).item()

    def log_alpha(self, t: Scalar) -> Scalar:
        return -0.5 * softplus(-2 * self.half_log_snr(t))

    def log_sigma(self, t: Scalar) -> Scalar:
        return -0.5 * softplus(2 * self.half_log_snr(t))

    def drift_rate(self, t: Scalar) -> Scalar:
        # σ² dλ/dt
        return (self.last - self.first) * sigmoid(-2 * self.half_log_snr(t)) * self._of(self.curve.slope, t)

    def t_of_half_log_snr(self, half_log_snr: Scalar) -> Scalar:
        share: Any = (half_log_snr - self.first) / (self.last - self.first)
        return self._of(self._halve, share) if isinstance(share, Tensor) else self._root(share)

    def _root(self, share: float) -> Any:
        share = min(max(share, 0.0), 1.0)  # a rounding beyond an end is that end
        return brentq(lambda t: self._of(self.curve, t) - share, 0.0, 1.0, xtol=1e-15)

    @torch.no_grad()
    def _halve(self, share: Tensor) -> Tensor:
        """Where the curve has this value; times have no gradient of the curve."""
        low, high = torch.zeros_like(share), torch.ones_like(share)
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            early = self.curve(middle) < share
            low, high = torch.where(early, middle, low), torch.where(early, high, middle)
        return 0.5 * (low + high)

    def table(self, steps: Evaluations = 1000) -> DiscreteVP:
        """The schedule at (n + 1)/steps as a table of β, between which log α is linear.

        >>> process = LearnedVP()
        >>> abs(process.table().half_log_snr(0.5) - process.half_log_snr(0.5)) < 1e-9
        True
        """
        logs = [0.0, *(self.log_alpha((n + 1) / steps) for n in range(steps))]
        return DiscreteVP([-math.expm1(2 * (b - a)) for a, b in zip(logs, logs[1:])])


_HALVINGS = 56
