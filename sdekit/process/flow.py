"""Flow matching's straight path."""

from __future__ import annotations

from dataclasses import dataclass

from sdekit.door import door
from sdekit.elementwise import Scalar, log, log1p, sigmoid, sqrt
from sdekit.process.base import Process, check_range


@door
@dataclass(frozen=True)
class Flow(Process):
    """Flow matching's straight path α = 1 − t, σ = t: data at t = 0, noise at t = 1 (Esser et al. 2024, SD3, eq. 13).

    Liu et al. 2023 (eq. 1) and Lipman et al. 2023 (eq. 20, here with σ_min = 0) state the same path with the data at
    t = 1. ``predicts`` of ``ScoreModel`` says which one a network was trained with: ``"flow"`` for the first, ε − x_0
    told t; ``"flow-to-data"`` for the second, x_0 − ε told 1 − t.

    λ is ∓∞ at both ends; t stays in [0.001, 0.999]. A start from N(0, σ²) leaves out 0.001 x_0.

    >>> Flow().half_log_snr(0.5)
    0.0
    """

    t_min: float = 1e-3
    t_max: float = 1.0 - 1e-3

    def __post_init__(self) -> None:
        check_range(self)
        if not (self.t_min > 0 and self.t_max < 1):
            raise ValueError(f"t_min={self.t_min}, t_max={self.t_max}: Flow needs both strictly inside (0, 1)")

    def log_alpha(self, t: Scalar) -> Scalar:
        return log1p(-t)

    def log_sigma(self, t: Scalar) -> Scalar:
        return log(t)

    def drift_rate(self, t: Scalar) -> Scalar:
        return -1 / (1 - t)

    def diffusion(self, t: Scalar) -> Scalar:
        return sqrt(2 * t / (1 - t))

    def t_of_half_log_snr(self, half_log_snr: Scalar) -> Scalar:
        return sigmoid(-half_log_snr)
