r"""TDS: guided particles with weights that make up for what guidance leaves.

    twist      log ψ_t(x_t) = log N(y; A x̂_0, σ_y² I + r_t² A Aᵀ),   r_t² = τ² σ²/(α² τ² + σ²)
    proposal   the model's step with the score ∇ log p(x_t) + ∇ log ψ_t(x_t)
    weights    p(x_t | x_s) ψ_t(x_t)/(q(x_t | x_s) ψ_s(x_s))

(Wu et al. 2023, twisted diffusion sampler, algorithm 1.) The law of the weighted particles is the posterior under the
model's chain as their number grows, and the mean of the estimates of p(y) is p(y) for any number; steps alone have an
error. With τ = 0, and for operators that are not linear or noise that is not Gaussian, the twist is p(y | x̂_0).
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from sdekit.inverse.conditioned import Conditioned, Point, noise_std
from sdekit.inverse.measurement import GaussianNoise, Measurement
from sdekit.inverse.particles import Look, filtered
from sdekit.inverse.registry import Posterior, Run, register
from sdekit.inverse.spectrum import Spectrum
from sdekit.names import Between
from sdekit.prediction import convert
from sdekit.process import Knot, match
from sdekit.sampling import Model


class Twisted(Conditioned):
    """``model`` with the gradient of the twist; each evaluation takes one gradient.

    Args:
        model: any model.
        measurement: any with a density: the noise's std must be above 0, the operator differentiable.
        tau: τ, the standard deviation that data are taken to have; 0 twists by p(y | x̂_0).

    Raises ValueError for another measurement.
    """

    linear = False

    def __init__(self, model: Model, measurement: Measurement, tau: float = 1.0) -> None:
        super().__init__(model, measurement)
        gaussian = isinstance(measurement.noise, GaussianNoise)
        if gaussian and noise_std(measurement) == 0:
            raise ValueError("std=0: a measurement without noise has no density; give the noise a small std")
        self.tau = tau
        spread = gaussian and measurement.operator.linear and tau > 0
        self.spectrum = Spectrum.of(measurement.operator, model.device) if spread else None

    def log_twist(self, at: Point) -> tuple[Tensor, Tensor]:
        """log ψ [batch], and its gradient in x_0."""
        if self.spectrum is not None:
            variance: Any = self.tau**2 * at.sigma**2 / (at.alpha**2 * self.tau**2 + at.sigma**2)
            noise, residual = noise_std(self.measurement) ** 2, self.residual(at)
            slope = self.spectrum.gain(residual, variance, noise, at.x0.shape[1:]) / variance
            return self.spectrum.log_density(residual, variance, noise), slope

        def total(x0: Tensor) -> tuple[Tensor, Tensor]:
            values = self.measurement.log_prob(x0, at.y)
            return values.sum(), values

        slope, values = torch.func.grad(total, has_aux=True)(at.x0)
        return values, slope

    def change(self, at: Point) -> Tensor:
        return at.tweedie * at.pull(self.log_twist(at)[1])


@register(
    "tds", reference="Wu et al. 2023 (TDS), algorithm 1", solver="ddpm(variance='large')", exact=True, operators="any"
)
def tds(
    run: Run,
    *,
    tau: Annotated[float, Between(0, 1e6)] = 1.0,
    resample_below: Annotated[float, Between(0, 1)] = 0.5,
) -> Posterior:
    """Weighted particles, guided by ∇ log N(y; A x̂_0, σ_y² I + r_t² A Aᵀ): exact as they and the steps grow."""
    twisted, predicts = Twisted(run.model, run.measurement, tau), run.plan.predicts

    def find(here: Knot, x: Tensor, measured: Tensor) -> Look:
        F, at = twisted.look(predicts, x, here.t, measured, run.conditions)  # noqa: N806
        values, slope = twisted.log_twist(at)
        back = match(convert("x0", predicts, twisted.process, here.t)[1], x)
        return Look(F, back * at.tweedie * at.pull(slope), values)

    return filtered(run, "tds", find, run.measurement.log_prob, resample_below, lambda: twisted.gradients)
