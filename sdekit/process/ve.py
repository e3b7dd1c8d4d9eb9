"""The variance-exploding process."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sdekit.door import door
from sdekit.elementwise import Scalar
from sdekit.process.base import Process, check_positive_range, check_range


@door
@dataclass(frozen=True)
class VE(Process):
    """Variance exploding: α = 1, σ = σ_min (σ_max/σ_min)^t (Song et al. 2021, eq. 30–31).

    σ(0) = σ_min > 0, so that t_min is 0. As in the paper's code the marginal is N(x_0, σ(t)²): the
    data at t = 0 already carries noise σ_min.

    >>> round(VE().sigma(0.0), 12), round(VE().prior_std, 12)
    (0.01, 50.0)
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self) -> None:
        check_positive_range("sigma_min, sigma_max", self.sigma_min, self.sigma_max)
        check_range(self)

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def log_alpha(self, t: Scalar) -> Scalar:
        return 0.0 * t

    def log_sigma(self, t: Scalar) -> Scalar:
        return math.log(self.sigma_min) + t * self._log_ratio

    def drift_rate(self, t: Scalar) -> Scalar:
        return 0.0 * t

    def diffusion(self, t: Scalar) -> Scalar:
        return math.sqrt(2 * self._log_ratio) * self.sigma(t)

    def t_of_half_log_snr(self, half_log_snr: Scalar) -> Scalar:
        return (-half_log_snr - math.log(self.sigma_min)) / self._log_ratio
