r"""ΠGDM: the likelihood of y under a Gaussian of x_0 with a covariance known beforehand.

    ∇ log p(y | x_t) ≈ Jᵀ Aᵀ (r_t² A Aᵀ + σ_y² I)⁻¹ (y − A x̂_0),   r_t² = τ² σ²/(α² τ² + σ²)

(Song, Vahdat, Mardani & Kautz 2023, pseudoinverse guidance.) r_t² is the variance of x_0 given x_t for data N(0, τ² I);
with τ = 1 and α = 1 it is the paper's σ²/(1 + σ²). Data of another covariance C may be given it: then r_t² I becomes
σ² C (α² C + σ² I)⁻¹, and the score is exact for Gaussian data.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from sdekit.inverse.conditioned import Point, Spectral, noise_std
from sdekit.inverse.measurement import Measurement
from sdekit.inverse.registry import Posterior, Run, register
from sdekit.names import Between
from sdekit.sampling import Model


class PiGDM(Spectral):
    """``model`` given ``measurement`` by pseudoinverse guidance. Each evaluation takes one gradient.

    Args:
        model: any model.
        measurement: of a linear operator, with Gaussian noise.
        tau: τ, the standard deviation that data are taken to have.
        covariance: C [D, D] of the flattened data, instead of τ² I.

    Raises ValueError for another measurement, τ not above 0, and a covariance of another shape.
    """

    def __init__(
        self, model: Model, measurement: Measurement, tau: float = 1.0, covariance: Tensor | None = None
    ) -> None:
        super().__init__(model, measurement)
        if not tau > 0:
            raise ValueError(f"tau={tau}: a standard deviation, it must be above 0")
        self.tau, self.eigen = tau, None
        if covariance is not None:
            matrix = measurement.operator.matrix()
            if covariance.shape != (matrix.shape[1],) * 2:
                raise ValueError(f"covariance has shape {list(covariance.shape)}: it must be {[matrix.shape[1]] * 2}")
            variances, basis = torch.linalg.eigh(covariance.double().cpu())
            self.eigen = tuple(part.to(model.device) for part in (variances, basis, matrix @ basis))

    def change(self, at: Point) -> Tensor:
        if self.eigen is not None:
            return at.tweedie * at.pull(self._solved(at, self.eigen))
        variance: Any = self.tau**2 * at.sigma**2 / (at.alpha**2 * self.tau**2 + at.sigma**2)
        return at.tweedie / variance * at.pull(self.gain(at, variance))

    def _solved(self, at: Point, eigen: tuple[Tensor, ...]) -> Tensor:
        """Aᵀ (A C_t Aᵀ + σ_y² I)⁻¹ (y − A x_0), C_t = σ² C (α² C + σ² I)⁻¹."""
        variances, basis, seen = (part.to(at.x.dtype) for part in eigen)
        alpha, sigma = (value.reshape(-1, 1) if isinstance(value, Tensor) else value for value in (at.alpha, at.sigma))
        spread = sigma**2 * variances / (alpha**2 * variances + sigma**2)
        system = (seen * spread[..., None, :]) @ seen.T + noise_std(self.measurement) ** 2 * torch.eye(
            len(seen), dtype=seen.dtype, device=seen.device
        )
        residual = self.residual(at).flatten(1)
        root = torch.linalg.cholesky_ex(system).L  # _ex: no look at the device whether it failed
        solved = torch.cholesky_solve(residual[..., None], root.expand(len(residual), *root.shape[-2:]))[..., 0]
        return (solved @ seen @ basis.T).reshape(at.x.shape)


@register("pigdm", reference="Song, Vahdat, Mardani & Kautz 2023 (ΠGDM)")
def pigdm(run: Run, *, tau: Annotated[float, Between(1e-6, 1e6)] = 1.0) -> Posterior:
    """The score of N(y; A x̂_0, σ_y² I + r_t² A Aᵀ), r_t² = τ² σ²/(α² τ² + σ²)."""
    return run.sample(PiGDM(run.model, run.measurement, tau))
