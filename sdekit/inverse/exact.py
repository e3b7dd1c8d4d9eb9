r"""The exact posterior of a known law: a Gaussian's is a Gaussian, a mixture's a mixture.

With y = A x + σ_y n and A = U diag(s) Vᵀ, the component N(m_k, s_k² I) of the prior becomes, in V's coordinates μ of
the mean and U's coordinates w of y,

    mean μ_j + s_k² s_j (w_j − s_j μ_j)/(σ_y² + s_k² s_j²),   variance s_k² σ_y²/(σ_y² + s_k² s_j²),

and its weight w_k is multiplied by N(y; A m_k, s_k² A Aᵀ + σ_y² I). The posterior stays of its kind under every
process: it is a target, with score, density and samples of its own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sdekit import noise
from sdekit.door import door
from sdekit.inverse.measurement import GaussianNoise, Measurement
from sdekit.targets import Gaussian, GaussianMixture, Target

_PICK, _MOVE = 0, 1


@door
class RotatedMixture(GaussianMixture):
    r"""Σ_k w_k N(m_k, V diag(v_k) Vᵀ): components whose covariances have one basis V.

    Args:
        means: [K, *event].
        variances: [K, D], positive.
        basis: V [D, D], orthogonal.
        log_weights: [K], up to a constant.

    >>> law = RotatedMixture(torch.zeros(1, 2), torch.tensor([[1.0, 4.0]]), torch.eye(2), torch.zeros(1))
    >>> law.sample(20_000).std(0).round(decimals=1)
    tensor([1., 2.])
    """

    basis: Tensor

    def __init__(
        self,
        means: Float[Tensor, "modes *event"],
        variances: Float[Tensor, "modes elements"],
        basis: Float[Tensor, "elements elements"],
        log_weights: Float[Tensor, "modes"],
    ) -> None:
        super().__init__(means, 1.0)
        self.variances = variances.to(means)
        self.log_weights = log_weights.log_softmax(0).to(means)
        self.register_buffer("basis", basis.to(means))

    def _parts(self, x: Tensor, alpha: Any, sigma: Any) -> tuple[Tensor, Tensor, Any]:
        """x − α m_k in V's coordinates [batch, K, D], α² v_k + σ², and α, to broadcast against them."""
        basis = self.basis.to(x.dtype)
        alpha, sigma = (value[..., None] if isinstance(value, Tensor) and value.ndim else value
                        for value in (alpha, sigma))  # fmt: skip
        apart = (x @ basis)[:, None] - alpha * (self.location.to(x.dtype) @ basis)
        return apart, alpha**2 * self.variances.to(x.dtype) + sigma**2, alpha

    def _log_joint(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        apart, total, _ = self._parts(x, alpha, sigma)
        return self.log_weights.to(x.dtype) - 0.5 * (apart.square() / total + total.log()).sum(-1), total

    def _means(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        share = self._log_joint(x, alpha, sigma)[0].softmax(1)[..., None]
        apart, total, factor = self._parts(x, alpha, sigma)
        whitened = apart / total
        within = (share * factor * self.variances.to(x.dtype) * whitened).sum(1)
        turn = self.basis.to(x.dtype).T
        return share[..., 0] @ self.location.to(x.dtype) + within @ turn, (share * whitened).sum(1) @ turn

    def _draw(self, seed: int, samples: Tensor) -> Tensor:
        ends = self.log_weights.to("cpu", torch.float64).softmax(0).cumsum(0)
        share = torch.special.ndtr(noise.normal(seed, _PICK, torch.arange(len(samples)), (), torch.float64))
        pick = torch.searchsorted(ends, share).clamp(max=len(ends) - 1).to(samples.device)
        z = noise.normal(seed, _MOVE, samples, (self.location.shape[1],), self.location.dtype)
        return self.location[pick] + (self.variances[pick].sqrt() * z) @ self.basis.T


@door
def posterior(target: Target, measurement: Measurement) -> Target:
    """The law of x given the measurement, for x from ``target``; computed in float64, in the target's dtype.

    A ``Gaussian`` gives a ``Gaussian``, a ``GaussianMixture`` (``Empirical`` too) a ``RotatedMixture`` with as many
    components, whose ``weights`` are those of the modes.

    Raises ValueError for another target, an operator that is not linear or does not fit the target's shape, and for
    noise that is not Gaussian with a std above 0.

    >>> from sdekit.inverse import Mask
    >>> seen = Measurement(Mask(torch.tensor([True])), torch.tensor([1.0]), GaussianNoise(1.0))
    >>> posterior(Gaussian(torch.zeros(1), torch.eye(1)), seen).location  # halfway, as prior and noise are equal
    tensor([0.5000])
    """
    matrix, y, std = _check(target, measurement)
    if isinstance(target, GaussianMixture):
        return _mixture(target, matrix, y, std)
    assert isinstance(target, Gaussian)
    mean, cov = _moments(target)
    cross = cov @ matrix.T
    gain = torch.linalg.solve(matrix @ cross + std**2 * torch.eye(len(y), dtype=y.dtype), cross.T).T
    left = torch.eye(len(mean), dtype=y.dtype) - gain @ matrix
    after = left @ cov @ left.T + std**2 * gain @ gain.T  # Joseph's form, which stays positive
    after, new = (after + after.T) / 2, mean + gain @ (y - matrix @ mean)
    return Gaussian(new.to(target.location).reshape(target.event), after.to(target.location))


@door
def log_evidence(target: Target, measurement: Measurement) -> float:
    """log p(y), y the measurement of an x from ``target``. Raises ValueError as ``posterior``.

    >>> from sdekit.inverse import Mask
    >>> seen = Measurement(Mask(torch.tensor([True])), torch.tensor([0.0]), GaussianNoise(1.0))
    >>> round(log_evidence(Gaussian(torch.zeros(1), torch.eye(1)), seen) + 0.5 * math.log(4 * math.pi), 6)
    0.0
    """
    matrix, y, std = _check(target, measurement)
    if isinstance(target, GaussianMixture):
        return (target.log_weights.double().cpu() + _log_evidences(target, matrix, y, std)).logsumexp(0).item()
    mean, cov = _moments(target)
    total = matrix @ cov @ matrix.T + std**2 * torch.eye(len(y), dtype=y.dtype)
    root = torch.linalg.cholesky(total)
    apart = torch.linalg.solve_triangular(root, (y - matrix @ mean)[:, None], upper=False)
    return -(0.5 * apart.square().sum() + root.diagonal().log().sum() + 0.5 * len(y) * math.log(2 * math.pi)).item()


def _check(target: Target, measurement: Measurement) -> tuple[Tensor, Tensor, float]:
    """A [m, D], y [m] and σ_y, float64 on the CPU."""
    if not isinstance(target, Gaussian | GaussianMixture) or isinstance(target, RotatedMixture):
        raise ValueError(f"target: a {type(target).__name__} given: Gaussian and GaussianMixture have exact posteriors")
    if not isinstance(measurement.noise, GaussianNoise) or measurement.noise.std == 0:
        raise ValueError(f"noise={measurement.noise}: the posterior is known for GaussianNoise with a std above 0")
    if measurement.operator.event != tuple(target.event):
        raise ValueError(
            f"operator: it measures {list(measurement.operator.event)}, samples of the target have the shape"
            f" {list(target.event)}"
        )
    return measurement.operator.matrix(), measurement.y.double().cpu().flatten(), measurement.noise.std


def _moments(target: Any) -> tuple[Tensor, Tensor]:
    basis = target.basis.double().cpu()
    return target.location.double().cpu(), (basis * target.variances.double().cpu()) @ basis.T


def _mixture(target: GaussianMixture, matrix: Tensor, y: Tensor, std: float) -> RotatedMixture:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=True)
    size, rank = matrix.shape[1], len(s)
    stretch, seen = torch.zeros(size, dtype=y.dtype), torch.zeros(size, dtype=y.dtype)
    stretch[:rank], seen[:rank] = s, (u.T @ y)[:rank]
    spread = target.variances.double().cpu()[:, None]
    means = target.location.double().cpu() @ vh.T
    total = std**2 + spread * stretch**2
    means = means + spread * stretch * (seen - stretch * means) / total
    weights = target.log_weights.double().cpu() + _log_evidences(target, matrix, y, std)
    found = RotatedMixture((means @ vh).reshape(-1, *target.event), spread * std**2 / total, vh.T, weights)
    return found.to(target.location.device, target.location.dtype)


def _log_evidences(target: GaussianMixture, matrix: Tensor, y: Tensor, std: float) -> Tensor:
    """log N(y; A m_k, s_k² A Aᵀ + σ_y² I) [K]."""
    u, s, _ = torch.linalg.svd(matrix, full_matrices=True)
    stretch = torch.zeros(len(y), dtype=y.dtype)
    stretch[: len(s)] = s
    total = target.variances.double().cpu()[:, None] * stretch**2 + std**2
    apart = (y - target.location.double().cpu() @ matrix.T) @ u
    return -0.5 * (apart.square() / total + total.log() + math.log(2 * math.pi)).sum(1)
