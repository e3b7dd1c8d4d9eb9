r"""The probability-flow ODE as one equation for every process, and its coefficients.

With θ = arctan(σ/α) and the state scaled to y = x/√(α² + σ²), x_t = α x_0 + σ ε is y = cos θ x_0 + sin θ ε, so that
dy/dθ = v/√(α² + σ²) with v = α ε − σ x_0 (Salimans & Ho 2022, appendix D). Tolerances are therefore relative to a state
of the data's size, whatever the process.
The integration variable u is an entry of ``VARIABLES``: λ = log(α/σ), t or θ.

A network that predicts F gives v = c_x x + c_F F, and dy/du = (dθ/du) (c_x y + c_F F/√(α² + σ²)). Where a divergence is
wanted too (``likelihood``), the state carries one more column for each probe: the integral of div(dy/du)/D.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.elementwise import atan2, log, tan
from sdekit.prediction import convert
from sdekit.process import Process
from sdekit.sampling import Model

Evaluate = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
"""x [m, *event], t [m], rows of the batch (None: all) → F [m, *event] and its divergences [m, probes] or None."""


@dataclass(frozen=True)
class Variable:
    """An integration variable u: u(t), t(u), and dθ/du as a function of (process, t)."""

    of_t: Callable[[Process, Any], Any]
    to_t: Callable[[Process, Any], Any]
    angle_rate: Callable[[Process, Tensor], Tensor]


def _sin_cos(process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
    alpha, sigma = process.alpha(t), process.sigma(t)
    scale = torch.hypot(alpha, sigma)
    return sigma / scale, alpha / scale


def _minus_sin_cos(process: Process, t: Tensor) -> Tensor:
    sin, cos = _sin_cos(process, t)
    return -sin * cos


VARIABLES: dict[str, Variable] = {
    "half-log-snr": Variable(
        lambda process, t: process.half_log_snr(t), lambda process, u: process.t_of_half_log_snr(u), _minus_sin_cos
    ),
    # dλ/dt = −g²/(2σ²)
    "t": Variable(
        lambda process, t: t,
        lambda process, u: u,
        lambda process, t: -_minus_sin_cos(process, t) * (process.diffusion(t) / process.sigma(t)) ** 2 / 2,
    ),
    "angle": Variable(
        lambda process, t: atan2(process.sigma(t), process.alpha(t)),
        lambda process, u: process.t_of_half_log_snr(-log(tan(u))),
        lambda process, t: torch.ones_like(t),
    ),
}


@dataclass(frozen=True)
class _At:
    """Coefficients at one u, each [m]: dy/du = linear y + network F, div(dy/du) = linear D + volume div F."""

    t: Tensor
    scale: Tensor
    linear: Tensor
    network: Tensor
    volume: Tensor
    rate: Tensor
    sin: Tensor
    cos: Tensor

    def __getitem__(self, stage: int) -> _At:
        return _At(*(getattr(self, name)[stage] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Field:
    """dz/du of the state z = (y, integrals) [m, D + probes], for a network that predicts ``kind``."""

    process: Process
    variable: Variable
    kind: str
    evaluate: Evaluate
    event: torch.Size
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """D, the number of elements of one event."""
        return self.event.numel()

    def at(self, u: Tensor) -> _At:
        """The coefficients at u, of any shape: computed in u's dtype, returned in the state's."""
        low, high = inside(self.process, self.dtype)
        t = self.variable.to_t(self.process, u).clamp(low, high)
        sin, cos = _sin_cos(self.process, t)
        scale = torch.hypot(self.process.alpha(t), self.process.sigma(t))
        rate = self.variable.angle_rate(self.process, t)
        weights = (torch.as_tensor(c, dtype=t.dtype, device=t.device) for c in convert(self.kind, "v", self.process, t))
        c_x, c_F = weights  # noqa: N806
        values = (t, scale, rate * c_x, rate * c_F / scale, rate * c_F, rate, sin, cos)
        return _At(*(value.expand(t.shape).to(self.dtype) for value in values))

    def __call__(self, at: _At, z: Tensor, rows: Tensor | None = None) -> Tensor:
        """dz/du of z [m, D + probes]."""
        y = z[:, : self.size]
        x = (at.scale[:, None] * y).reshape(-1, *self.event)
        F, divergence = self.evaluate(x, at.t.expand(len(z)), rows)  # noqa: N806
        dy = at.linear[:, None] * y + at.network[:, None] * F.flatten(1)
        if divergence is None:
            return dy
        return torch.cat([dy, at.linear[:, None] + at.volume[:, None] * divergence / self.size], 1)

    def log_density_slope(self, at: _At, z: Tensor, dz: Tensor, error: Tensor) -> Tensor:
        """What a small error of z changes in the log density [m]: ∇ log p(y)·e_y + D e_integral.

        ∇ log p(y) = −ε/sin θ with ε = sin θ y + cos θ dy/dθ.
        """
        y, dy, e = (part[:, : self.size] for part in (z, dz, error))
        score = -(y + (at.cos / (at.sin * at.rate))[:, None] * dy)
        return (score * e).sum(1) + self.size * error[:, self.size :].mean(1)


def inside(process: Process, dtype: torch.dtype) -> tuple[float, float]:
    """The first and the last number of this dtype within [t_min, t_max]: no rounding of t leaves the range.

    >>> from sdekit.process import Flow
    >>> inside(Flow(), torch.float32)[1] < 0.999 == inside(Flow(), torch.float64)[1]
    True
    """
    ends = torch.tensor([process.t_min, process.t_max], dtype=torch.float64)
    near = ends.to(dtype)
    toward = torch.tensor([math.inf, -math.inf], dtype=dtype)
    outside = torch.stack([near[0].double() < ends[0], near[1].double() > ends[1]])
    low, high = torch.where(outside, torch.nextafter(near, toward), near).tolist()
    return low, high


def network(model: Model, kind: str, n: int, conditions: Mapping[str, Any]) -> Evaluate:
    """The model as an ``Evaluate`` without divergence; conditions with n rows follow the rows."""

    def evaluate(x: Tensor, t: Tensor, rows: Tensor | None) -> tuple[Tensor, None]:
        return model.predict(kind, x, t, **rows_of(conditions, rows, n)), None

    return evaluate


def rows_of(conditions: Mapping[str, Any], rows: Tensor | None, n: int) -> dict[str, Any]:
    """The conditions of these rows: tensors whose first dimension is n are indexed, all else passes."""
    if rows is None:
        return dict(conditions)
    batched = {k: v for k, v in conditions.items() if isinstance(v, Tensor) and v.ndim > 0 and v.shape[0] == n}
    return {**conditions, **{name: value[rows] for name, value in batched.items()}}
