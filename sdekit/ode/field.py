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
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sdekit.door import Count, bare, door
from sdekit.elementwise import atan2, log, tan
from sdekit.names import lookup
from sdekit.prediction import PREDICTIONS
from sdekit.process import Process
from sdekit.sampling import Model, batched

Evaluate = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
"""x [m, *event], t [m], rows of the batch (None: all) → F [m, *event] and its divergences [m, probes] or None."""


@dataclass(frozen=True)
class Variable:
    """An integration variable u: u(t), t(u), σ of (process, t, u, α), and dθ/du of (process, t, α, σ, α² + σ²)."""

    of_t: Callable[[Process, Any], Any]
    to_t: Callable[[Process, Any], Any]
    sigma: Callable[[Process, Tensor, Tensor, Tensor], Tensor]
    angle_rate: Callable[[Process, Tensor, Tensor, Tensor, Tensor], Tensor]


VARIABLES: dict[str, Variable] = {
    "half-log-snr": Variable(
        lambda process, t: process.half_log_snr(t),
        lambda process, u: process.t_of_half_log_snr(u),
        lambda process, t, u, alpha: alpha * (-u).exp(),
        lambda process, t, alpha, sigma, square: -alpha * sigma / square,
    ),
    # dλ/dt = −g²/(2σ²)
    "t": Variable(
        lambda process, t: t,
        lambda process, u: u,
        lambda process, t, u, alpha: process.sigma(t),
        lambda process, t, alpha, sigma, square: process.diffusion(t) ** 2 * alpha / (2 * sigma * square),
    ),
    "angle": Variable(
        lambda process, t: atan2(process.sigma(t), process.alpha(t)),
        lambda process, u: process.t_of_half_log_snr(-log(tan(u))),
        lambda process, t, u, alpha: alpha * u.tan(),
        lambda process, t, alpha, sigma, square: torch.ones_like(t),
    ),
}


@dataclass(frozen=True)
class At:
    """Coefficients at one u, t [m] and the others [m, 1]: dy/du = linear y + network F, s = √(α² + σ²)."""

    t: Tensor
    scale: Tensor
    linear: Tensor
    network: Tensor
    volume: Tensor
    """The factor of div F in div(dy/du)/D."""
    slope: Tensor
    """cot θ (dθ/du)⁻¹, the factor of dy/du in −∇ log p(y)."""


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

    @cached_property
    def range(self) -> tuple[float, float]:
        """The times that the network may be told."""
        return inside(self.process, self.dtype)

    def at(self, u: Tensor) -> list[At]:
        """The coefficients at u [stages, m], a list over the stages: computed in u's dtype, returned in the state's."""
        process = self.process
        t = self.variable.to_t(process, u).clamp(*self.range)
        alpha = process.alpha(t)
        sigma = self.variable.sigma(process, t, u, alpha)
        square = torch.addcmul(alpha * alpha, sigma, sigma)
        rate, scale = self.variable.angle_rate(process, t, alpha, sigma, square), square.sqrt()
        # F = a x_0 + b ε and x = α x_0 + σ ε, solved for v = α ε − σ x_0
        a, b = lookup("prediction", self.kind, PREDICTIONS)(process, t)
        per_determinant = rate / _mix(b, alpha, a, -sigma)
        linear, volume = -_mix(a, alpha, b, sigma) * per_determinant, square * per_determinant
        values = torch.stack([scale, linear, volume / scale, volume / self.size, alpha / (sigma * rate)])
        columns = values.to(self.dtype)[..., None].flatten(0, 1).unbind(0)
        return [At(time, *columns[k :: len(u)]) for k, time in enumerate(t.to(self.dtype).unbind(0))]

    def __call__(self, at: At, z: Tensor, rows: Tensor | None = None) -> Tensor:
        """dz/du of z [m, D + probes]."""
        tracked = z.shape[1] > self.size
        y = z[:, : self.size] if tracked else z
        F, divergence = self.evaluate((at.scale * y).view(-1, *self.event), at.t.expand(len(z)), rows)  # noqa: N806
        dy = torch.addcmul(at.linear * y, at.network, F.flatten(1))
        if divergence is None:
            return dy
        return torch.cat([dy, torch.addcmul(at.linear, at.volume, divergence)], 1)

    def log_density_slope(self, at: At, z: Tensor, dz: Tensor, error: Tensor) -> Tensor:
        """What a small error of z changes in the log density [m]: ∇ log p(y)·e_y + D e_integral.

        ∇ log p(y) = −ε/sin θ with ε = sin θ y + cos θ dy/dθ.
        """
        y, dy, e = (part[:, : self.size] for part in (z, dz, error))
        minus_score = torch.addcmul(y, at.slope, dy)
        return self.size * error[:, self.size :].mean(1) - (minus_score * e).sum(1)


def _mix(a: Any, x: Tensor, b: Any, y: Tensor) -> Tensor:
    """a x + b y, without the kernels of a weight that is the number 0 or 1."""
    parts = [v if isinstance(w, float) and w == 1.0 else w * v for w, v in ((a, x), (b, y))
             if not (isinstance(w, float) and w == 0.0)]  # fmt: skip
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


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
        return model.predict(kind, x, t, **bare(rows_of)(conditions, rows, n)), None

    return evaluate


@door
def rows_of(conditions: Mapping[str, Any], rows: Int[Tensor, "part"] | None, n: Count) -> dict[str, Any]:
    """The conditions of these rows: tensors whose first dimension is n are indexed, all else passes.

    >>> rows_of({"label": torch.tensor([3, 4, 5]), "scale": 2.0}, torch.tensor([2]), 3)
    {'label': tensor([5]), 'scale': 2.0}
    """
    if rows is None:
        return dict(conditions)
    return {**conditions, **{name: value[rows] for name, value in batched(conditions, n).items()}}
