r"""azula's denoisers, each with the process of its schedule: x_t = α(t) x_0 + σ(t) ε, t from 0 at the data to 1.

| schedule | α | σ | process |
|---|---|---|---|
| ``VESchedule`` | 1 | σ_min (σ_max/σ_min)^t | ``VE`` |
| ``VPSchedule`` | α_min^{t²} | √(1 − α² + σ_min²) | ``Quadratic`` |
| ``CosineSchedule`` | cos(t arccos α_min) | √(1 − α² + σ_min²) | ``Cosine`` |
| ``RectifiedSchedule`` | 1 − t + t α_min | t + (1 − t) σ_min | ``Rectified`` |
| ``DecaySchedule`` | those at τ = (1 − γ^t)/(1 − γ) | | ``Decay`` |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.elementwise import Scalar, atan2, cos, exp, expm1, log, log1p, sin, softplus, sqrt, tan
from sdekit.interop.adapter import Adapter
from sdekit.model import ScoreModel
from sdekit.names import unknown
from sdekit.process import VE, Process


@dataclass(frozen=True)
class _Leaking(Process):
    """σ² = 1 − α² + σ_min², so that g² = −2f (1 + σ_min²) and α² = (1 + σ_min²)/(1 + e^{−2λ})."""

    alpha_min: float = 1e-3
    sigma_min: float = 1e-3
    t_min: float = 0.0
    t_max: float = 1.0

    def log_sigma(self, t: Scalar) -> Scalar:
        return 0.5 * log(self.sigma_min**2 - expm1(2 * self.log_alpha(t)))

    def diffusion(self, t: Scalar) -> Scalar:
        return sqrt(-2 * self.drift_rate(t) * (1 + self.sigma_min**2))

    def _minus_log_alpha(self, half_log_snr: Scalar) -> Scalar:
        # a rounding at t = 0 may leave less than 0
        value = 0.5 * (softplus(-2 * half_log_snr) - math.log1p(self.sigma_min**2))
        return 0.5 * (value + sqrt(value * value))


@dataclass(frozen=True)
class Quadratic(_Leaking):
    """azula's ``VPSchedule``: log α = t² log α_min.

    >>> round(Quadratic().alpha(1.0), 12), round(Quadratic().sigma(0.0), 12)
    (0.001, 0.001)
    """

    def log_alpha(self, t: Scalar) -> Scalar:
        return math.log(self.alpha_min) * t**2

    def drift_rate(self, t: Scalar) -> Scalar:
        return 2 * math.log(self.alpha_min) * t

    def t_of_half_log_snr(self, half_log_snr: Scalar) -> Scalar:
        return sqrt(self._minus_log_alpha(half_log_snr) / -math.log(self.alpha_min))


@dataclass(frozen=True)
class Cosine(_Leaking):
    """azula's ``CosineSchedule``: α = cos(t arccos α_min).

    >>> round(Cosine().alpha(1.0), 12), round(Cosine().sigma(0.0), 12)
    (0.001, 0.001)
    """

    def log_alpha(self, t: Scalar) -> Scalar:
        return log(cos(math.acos(self.alpha_min) * t))

    def log_sigma(self, t: Scalar) -> Scalar:  # 1 − cos² = sin²: no cancellation at small t
        return 0.5 * log(sin(math.acos(self.alpha_min) * t) ** 2 + self.sigma_min**2)

    def drift_rate(self, t: Scalar) -> Scalar:
        return -math.acos(self.alpha_min) * tan(math.acos(self.alpha_min) * t)

    def t_of_half_log_snr(self, half_log_snr: Scalar) -> Scalar:
        # the angle by its sine, √(1 − α²): no cancellation at small t
        minus_log = self._minus_log_alpha(half_log_snr)
        return atan2(sqrt(-expm1(-2 * minus_log)), exp(-minus_log)) / math.acos(self.alpha_min)


@dataclass(frozen=True)
class Rectified(Process):
    """azula's ``RectifiedSchedule``: α = 1 − t (1 − α_min), σ = σ_min + t (1 − σ_min).

    >>> round(Rectified().alpha(1.0), 12), round(Rectified().sigma(0.0), 12)
    (0.001, 0.001)
    """

    alpha_min: float = 1e-3
    sigma_min: float = 1e-3
    t_min: float = 0.0
    t_max: float = 1.0

    def log_alpha(self, t: Scalar) -> Scalar:
        return log1p(-(1 - self.alpha_min) * t)

    def log_sigma(self, t: Scalar) -> Scalar:
        return log(self.sigma_min + (1 - self.sigma_min) * t)

    def drift_rate(self, t: Scalar) -> Scalar:
        return -(1 - self.alpha_min) / self.alpha(t)

    def diffusion(self, t: Scalar) -> Scalar:
        # g² = dσ²/dt − 2fσ²
        sigma = self.sigma(t)
        return sqrt(2 * sigma * (1 - self.sigma_min - self.drift_rate(t) * sigma))

    def t_of_half_log_snr(self, half_log_snr: Scalar) -> Scalar:
        ratio = exp(-half_log_snr)
        return (ratio - self.sigma_min) / (1 - self.sigma_min + (1 - self.alpha_min) * ratio)


@dataclass(frozen=True)
class Decay(Process):
    """azula's ``DecaySchedule``: ``Rectified`` at τ(t) = (1 − γ^t)/(1 − γ).

    >>> round(Decay().alpha(1.0), 12), round(Decay().sigma(0.0), 12)
    (0.001, 0.001)
    """

    alpha_min: float = 1e-3
    sigma_min: float = 1e-3
    gamma: float = 0.1
    t_min: float = 0.0
    t_max: float = 1.0

    @property
    def _straight(self) -> Rectified:
        return Rectified(self.alpha_min, self.sigma_min)

    def _tau(self, t: Scalar) -> Scalar:
        return -expm1(math.log(self.gamma) * t) / (1 - self.gamma)

    def _tau_rate(self, t: Scalar) -> Scalar:
        return -math.log(self.gamma) * exp(math.log(self.gamma) * t) / (1 - self.gamma)

    def log_alpha(self, t: Scalar) -> Scalar:
        return self._straight.log_alpha(self._tau(t))

    def log_sigma(self, t: Scalar) -> Scalar:
        return self._straight.log_sigma(self._tau(t))

    def drift_rate(self, t: Scalar) -> Scalar:
        return self._straight.drift_rate(self._tau(t)) * self._tau_rate(t)

    def diffusion(self, t: Scalar) -> Scalar:
        return self._straight.diffusion(self._tau(t)) * sqrt(self._tau_rate(t))

    def t_of_half_log_snr(self, half_log_snr: Scalar) -> Scalar:
        tau = self._straight.t_of_half_log_snr(half_log_snr)
        return log1p(-(1 - self.gamma) * tau) / math.log(self.gamma)


_PROCESSES: dict[str, tuple[Callable[..., Process], tuple[str, ...]]] = {
    "VESchedule": (VE, ("sigma_min", "sigma_max")),
    "VPSchedule": (Quadratic, ("alpha_min", "sigma_min")),
    "CosineSchedule": (Cosine, ("alpha_min", "sigma_min")),
    "RectifiedSchedule": (Rectified, ("alpha_min", "sigma_min")),
    "DecaySchedule": (Decay, ("alpha_min", "sigma_min", "gamma")),
}
"""Of each schedule, by its name: the process and the schedule's attributes that are its arguments."""


def process_of(schedule: Any) -> Process:
    """The process of one of azula's schedules, which is checked against it.

    Raises ValueError for a schedule of another kind, or one that computes other α and σ than its kind.
    """
    name = type(schedule).__name__
    if name not in _PROCESSES:
        raise unknown("schedule", name, _PROCESSES)
    kind, arguments = _PROCESSES[name]
    process = kind(**{argument: float(getattr(schedule, argument)) for argument in arguments})
    check(process, schedule)
    return process


def check(process: Process, schedule: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    """Raise ValueError unless the process has the schedule's α and σ."""
    times = [process.t_min + (process.t_max - process.t_min) * i / 4 for i in range(5)]
    for t in times:
        alpha, sigma = (float(value) for value in schedule(torch.tensor(t, dtype=torch.float64)))
        if not (
            math.isclose(process.alpha(t), alpha, rel_tol=1e-6) and math.isclose(process.sigma(t), sigma, rel_tol=1e-6)
        ):
            raise ValueError(
                f"process={process}: at t={t:g} it has alpha={process.alpha(t):.6g} and sigma={process.sigma(t):.6g},"
                f" the denoiser's schedule {alpha:.6g} and {sigma:.6g}"
            )


def wrap(denoiser: Any, *, process: Process | None = None) -> ScoreModel:
    """An ``azula.denoise.Denoiser`` as a ``ScoreModel`` that predicts x_0, the mean of its posterior.

    x reaches it in the state's own dtype: it casts to its backbone's itself. Keyword arguments are conditions of
    ``sample``. A ``GaussianDenoiser`` takes one time for a whole batch; calls with a time for each sample
    (``sample_adaptive``, ``encode``, ``log_prob``) are refused.

    Args:
        denoiser: with its ``schedule``.
        process: for a schedule of one's own; by default ``process_of(denoiser.schedule)``.

    Raises ValueError for a denoiser without a schedule, an unknown schedule, and a process that is not the schedule's.
    """
    schedule = getattr(denoiser, "schedule", None)
    if schedule is None:
        raise ValueError(f"denoiser: {type(denoiser).__name__} has no schedule, as azula's denoisers do")
    if process is None:
        process = process_of(schedule)
    else:
        check(process, schedule)
    whole = any(type(part).__name__ == "GaussianDenoiser" for part in denoiser.modules())
    model = ScoreModel(
        Adapter(denoiser, _mean_at_one_time if whole else _mean), process, "x0", _common if whole else "t"
    )
    model.dtype = None  # as it comes: the preconditioning in the state's precision, the backbone in its own
    return model


def _mean(denoiser: Any, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
    return denoiser(x, t, **conditions).mean


def _mean_at_one_time(denoiser: Any, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
    return denoiser(x, t[0], **conditions).mean


def _common(process: Process, t: float | Tensor) -> float | Tensor:
    if isinstance(t, Tensor) and t.ndim:
        raise ValueError(
            "a GaussianDenoiser takes one time for the whole batch, which serves sample alone: all else gives each"
            " sample its own"
        )
    return t
