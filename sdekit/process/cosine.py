"""The cosine schedule in continuous time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sdekit.door import door
from sdekit.elementwise import Scalar, atan2, cos, log, sigmoid, sin, sqrt, tan
from sdekit.process.base import check_range
from sdekit.process.vp import VariancePreserving


@door
@dataclass(frozen=True)
class CosineVP(VariancePreserving):
    """VP with α = cos(u(t))/cos(u(0)), u = π/2 (t + s)/(1 + s) (Nichol & Dhariwal 2021, eq. 17).

    λ is −∞ at t = 1; sampling starts at t_max = 0.9946 (Lu et al. 2022, appendix D.4), where the data's
    factor in x is α = 0.0084, which a start from N(0, σ²) leaves out.

    >>> round(CosineVP().alpha(0.9946), 4)
    0.0084
    """

    s: float = 0.008
    t_min: float = 1e-3
    t_max: float = 0.9946

    def __post_init__(self) -> None:
        check_range(self)
        if not (self.s > 0 and self.t_max < 1):
            raise ValueError(f"s={self.s}, t_max={self.t_max}: they need s > 0 and t_max < 1, where alpha is 0")

    @property
    def _rate(self) -> float:
        return math.pi / 2 / (1 + self.s)  # du/dt

    def log_alpha(self, t: Scalar) -> Scalar:
        return log(cos((t + self.s) * self._rate)) - math.log(math.cos(self.s * self._rate))

    def log_sigma(self, t: Scalar) -> Scalar:
        # 1 − cos²u/cos²u₀ = sin(u − u₀) sin(u + u₀)/cos²u₀: no cancellation at small t
        product = sin(t * self._rate) * sin((t + 2 * self.s) * self._rate)
        return 0.5 * log(product) - math.log(math.cos(self.s * self._rate))

    def drift_rate(self, t: Scalar) -> Scalar:
        return -self._rate * tan((t + self.s) * self._rate)

    def t_of_half_log_snr(self, half_log_snr: Scalar) -> Scalar:
        # cos u = α cos u₀, solved for u − u₀ by its sine and cosine: no cancellation at small t
        sin_u0, cos_u0 = math.sin(self.s * self._rate), math.cos(self.s * self._rate)
        alpha, sigma2 = sqrt(sigmoid(2 * half_log_snr)), sigmoid(-2 * half_log_snr)
        sin_u = sqrt(sin_u0**2 + cos_u0**2 * sigma2)
        angle = atan2(cos_u0 * sigma2 / (sin_u + alpha * sin_u0), alpha * cos_u0**2 + sin_u * sin_u0)
        return angle / self._rate
