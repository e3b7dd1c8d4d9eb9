"""The variance-preserving family with β(t) linear in t: VP and sub-VP."""

from __future__ import annotations

from dataclasses import dataclass

from sdekit.door import door
from sdekit.elementwise import Scalar, asinh, exp, expm1, log, softplus, sqrt
from sdekit.process.base import Process, check_positive_range, check_range


class VariancePreserving(Process):
    """α² + σ² = 1, so that log α alone says everything: g² = −2f = β(t)."""

    def log_sigma(self, t: Scalar) -> Scalar:
        return 0.5 * log(-expm1(2 * self.log_alpha(t)))

    def diffusion(self, t: Scalar) -> Scalar:
        return sqrt(-2 * self.drift_rate(t))


@dataclass(frozen=True)
class _LinearBeta(Process):
    """What VP and sub-VP share: β(t) linear from β_min to β_max, f = −β/2."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        check_positive_range("beta_min, beta_max", self.beta_min, self.beta_max)
        check_range(self)

    def log_alpha(self, t: Scalar) -> Scalar:
        return -t * (self.beta_min / 2 + t * (self.beta_max - self.beta_min) / 4)

    def drift_rate(self, t: Scalar) -> Scalar:
        return -0.5 * (self.beta_min + t * (self.beta_max - self.beta_min))

    def _t_of_minus_log_alpha(self, value: Scalar) -> Scalar:
        # the root of log_alpha's quadratic in the form without cancellation
        half = self.beta_min / 2
        return 2 * value / (half + sqrt(half**2 + (self.beta_max - self.beta_min) * value))


@door
@dataclass(frozen=True)
class VP(_LinearBeta, VariancePreserving):
    """Variance preserving: β(t) linear from β_min to β_max, f = −β/2, g = √β (Song et al. 2021, eq. 32–33).

    >>> VP().drift_rate(0.0), VP(beta_max=10.0).t_max
    (-0.05, 1.0)
    """

    def t_of_half_log_snr(self, half_log_snr: Scalar) -> Scalar:
        return self._t_of_minus_log_alpha(0.5 * softplus(-2 * half_log_snr))


@door
@dataclass(frozen=True)
class SubVP(_LinearBeta):
    """Sub-VP: VP's drift, g² = β (1 − α⁴), hence σ = 1 − α² (Song et al. 2021, eq. 27–29).

    >>> abs(SubVP().sigma(0.5) - VP().sigma(0.5) ** 2) < 1e-15
    True
    """

    def log_sigma(self, t: Scalar) -> Scalar:
        return log(-expm1(2 * self.log_alpha(t)))

    def diffusion(self, t: Scalar) -> Scalar:
        return sqrt(2 * self.drift_rate(t) * expm1(4 * self.log_alpha(t)))

    def t_of_half_log_snr(self, half_log_snr: Scalar) -> Scalar:
        # α/(1 − α²) = 1/(2 sinh(−log α))
        return self._t_of_minus_log_alpha(asinh(exp(-half_log_snr) / 2))
