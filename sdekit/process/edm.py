"""The process of EDM, in which time is the noise level."""

from __future__ import annotations

from dataclasses import dataclass

from sdekit.door import door
from sdekit.elementwise import Scalar, exp, log, sqrt
from sdekit.process.base import Process, check_positive_range


@door
@dataclass(frozen=True)
class EDM(Process):
    """α = 1, σ = t (Karras et al. 2022, section 3 and table 1, column "Ours"): time is the noise level.

    f = 0, g = √(2t), and dx/dt = ε. t_min and t_max are the paper's σ_min and σ_max. A network D(x; σ) of the
    paper's code, preconditioning and all, is ``ScoreModel(D, EDM(), predicts="x0")``.

    >>> round(EDM().sigma(0.5), 12), round(EDM().prior_std, 12)
    (0.5, 80.0)
    """

    t_min: float = 0.002
    t_max: float = 80.0

    def __post_init__(self) -> None:
        check_positive_range("t_min, t_max", self.t_min, self.t_max)

    def log_alpha(self, t: Scalar) -> Scalar:
        return 0.0 * t

    def log_sigma(self, t: Scalar) -> Scalar:
        return log(t)

    def drift_rate(self, t: Scalar) -> Scalar:
        return 0.0 * t

    def diffusion(self, t: Scalar) -> Scalar:
        return sqrt(2 * t)

    def t_of_half_log_snr(self, half_log_snr: Scalar) -> Scalar:
        return exp(-half_log_snr)
