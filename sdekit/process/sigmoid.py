"""The sigmoid schedule in continuous time."""

from __future__ import annotations

from dataclasses import dataclass

from sdekit.door import door
from sdekit.elementwise import Scalar, exp, expm1, log, log1p, sigmoid, softplus
from sdekit.process.base import check_positive_range, check_range
from sdekit.process.vp import VariancePreserving


@door
@dataclass(frozen=True)
class SigmoidVP(VariancePreserving):
    """VP with α² = (s(b) − s(u))/(s(b) − s(a)), s the logistic function, u = a + (b − a) t, a = ``start``/``tau``,
    b = ``end``/``tau`` (Jabri et al. 2022; Chen 2023, algorithm 1, with its defaults).

    λ is ±∞ at t = 0 and 1; at the default t_max the data's factor in x is α = 0.016.

    >>> round(SigmoidVP().alpha(0.5) ** 2, 12)  # symmetric
    0.5
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0
    t_min: float = 1e-3
    t_max: float = 0.999

    def __post_init__(self) -> None:
        check_range(self)
        if not (self.start < self.end and self.t_min > 0 and self.t_max < 1):
            raise ValueError(
                f"start={self.start}, end={self.end}, t_min={self.t_min}, t_max={self.t_max}: they need start < end,"
                " t_min > 0 and t_max < 1, where sigma and alpha are 0"
            )
        check_positive_range("tau, 1e6", self.tau, 1e6)

    @property
    def _ends(self) -> tuple[float, float]:
        return self.start / self.tau, self.end / self.tau

    @property
    def _range(self) -> float:
        """log(s(b) − s(a))."""
        a, b = self._ends
        return _log_difference(b, a)

    def _place(self, t: Scalar) -> Scalar:
        a, b = self._ends
        return t * (b - a) + a

    def log_alpha(self, t: Scalar) -> Scalar:
        u, (a, b) = self._place(t), self._ends
        return 0.5 * (log(-expm1((t - 1) * (b - a))) - softplus(u) - softplus(-b) - self._range)

    def log_sigma(self, t: Scalar) -> Scalar:
        u, (a, b) = self._place(t), self._ends
        return 0.5 * (log(-expm1(t * (a - b))) - softplus(-u) - softplus(a) - self._range)

    def drift_rate(self, t: Scalar) -> Scalar:
        u, (a, b) = self._place(t), self._ends
        return -0.5 * (b - a) * (1 / expm1((1 - t) * (b - a)) + sigmoid(u))

    def t_of_half_log_snr(self, half_log_snr: Scalar) -> Scalar:
        # s(u) = s(a) + σ² (s(b) − s(a)), and u − a as a difference of logits: no cancellation at small t
        (a, b), risen = self._ends, sigmoid(-2 * half_log_snr) * exp(self._range)
        return (log1p(risen / sigmoid(a)) - log1p(-risen / sigmoid(-a))) / (b - a)


def _log_difference(high: float, low: float) -> float:
    """log(s(high) − s(low)) = log(1 − e^{low − high}) + log s(high) + log s(−low): no cancellation."""
    return log(-expm1(low - high)) - softplus(-high) - softplus(low)
