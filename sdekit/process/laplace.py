"""The Laplace schedule: log-SNR has a Laplace law where t is uniform."""

from __future__ import annotations

from dataclasses import dataclass

from sdekit.door import door
from sdekit.elementwise import Scalar, absolute, exp, log, lower, sigmoid, sign, softplus
from sdekit.process.base import check_positive_range, check_range
from sdekit.process.vp import VariancePreserving


@door
@dataclass(frozen=True)
class LaplaceVP(VariancePreserving):
    """VP with 2λ(t) = μ − b sgn(½ − t) log(1 − 2 |t − ½|): 2λ ~ Laplace(μ, b) at uniform t (Hang & Gu 2024, table 1).

    Times are so many where 2λ is near μ, that training with ``times="uniform"`` spends itself there. The paper's b is
    0.5; the default is wider, so that λ reaches ±5 within the times that it has.

    >>> LaplaceVP().half_log_snr(0.5)
    0.0
    """

    mu: float = 0.0
    b: float = 1.0
    t_min: float = 2.5e-5
    t_max: float = 1 - 2.5e-5

    def __post_init__(self) -> None:
        check_range(self)
        check_positive_range("b, 1e6", self.b, 1e6)
        if not (self.t_min > 0 and self.t_max < 1):
            raise ValueError(
                f"t_min={self.t_min}, t_max={self.t_max}: they need t_min > 0 and t_max < 1, where λ is ±∞"
            )

    def half_log_snr(self, t: Scalar) -> Scalar:
        return 0.5 * (self.mu + self.b * (log(lower(2 * (1 - t), 1.0)) - log(lower(2 * t, 1.0))))

    def log_alpha(self, t: Scalar) -> Scalar:
        return -0.5 * softplus(-2 * self.half_log_snr(t))

    def log_sigma(self, t: Scalar) -> Scalar:
        return -0.5 * softplus(2 * self.half_log_snr(t))

    def drift_rate(self, t: Scalar) -> Scalar:
        # σ² dλ/dt
        return -0.5 * self.b * sigmoid(-2 * self.half_log_snr(t)) / (0.5 - absolute(t - 0.5))

    def t_of_half_log_snr(self, half_log_snr: Scalar) -> Scalar:
        x = (2 * half_log_snr - self.mu) / self.b
        near = 0.5 * exp(-absolute(x))  # the distance to the nearer end, of which no digit is lost at t = 0
        return near + (0.5 - 0.5 * sign(x)) * (1 - 2 * near)
