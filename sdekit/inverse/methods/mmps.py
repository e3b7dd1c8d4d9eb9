r"""MMPS: the likelihood of y under a Gaussian of x_0 with the model's own covariance.

    ∇ log p(y | x_t) ≈ Jᵀ Aᵀ (σ_y² I + A V Aᵀ)⁻¹ (y − A x̂_0),   V = (σ²/α) J,   J = ∂x̂_0/∂x_t

(Rozet et al. 2024, moment matching posterior sampling.) V is the covariance of x_0 given x_t, by Tweedie's formula; the
system is solved by conjugate gradients, of which each iteration takes one vector–Jacobian product. Exact where x_0
given x_t is Gaussian, once the iterations converge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from sdekit.inverse.conditioned import Conditioned, Point, noise_std
from sdekit.inverse.measurement import Measurement
from sdekit.inverse.registry import Posterior, Run, register
from sdekit.names import Between
from sdekit.sampling import Model
from sdekit.solvers.registry import check_count


class MMPS(Conditioned):
    """``model`` given ``measurement`` by moment matching.

    Each evaluation takes one gradient an iteration, and one more.

    Args:
        model: any model.
        measurement: of a linear operator, with Gaussian noise.
        iterations: of conjugate gradients. Of a trained network more than a few can make samples run away: its Jacobian
            is no covariance.

    Raises ValueError for another measurement, and fewer than 1 iteration.
    """

    def __init__(self, model: Model, measurement: Measurement, iterations: int = 1) -> None:
        super().__init__(model, measurement)
        check_count("iterations", iterations, 1, "of conjugate gradients")
        self.iterations = iterations

    def change(self, at: Point) -> Tensor:
        A, noise = self.measurement.operator, noise_std(self.measurement) ** 2  # noqa: N806

        def system(u: Tensor) -> Tensor:
            return noise * u + A.apply(at.covariance(A.adjoint(u)))

        return at.covariance(A.adjoint(conjugate_gradients(system, self.residual(at), self.iterations)))


def conjugate_gradients(system: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """u with ``system(u)`` = b [batch, …], each row by itself; a row stands still where it has converged.

    A direction of no or negative curvature, which a network's Jacobian may have, ends a row as well. Nothing is read
    from the device.

    >>> conjugate_gradients(lambda u: 2 * u, torch.ones(1, 3), 2)
    tensor([[0.5000, 0.5000, 0.5000]])
    """
    u, left, direction = torch.zeros_like(b), b, b
    size = _dot(left, left)
    for _ in range(iterations):
        image = system(direction)
        curvature = _dot(direction, image)
        step = torch.where(curvature > 0, size / curvature.where(curvature > 0, torch.ones_like(size)), 0.0)
        u, left = u + step * direction, left - step * image
        new = _dot(left, left)
        direction = left + torch.where(size > 0, new / size.where(size > 0, torch.ones_like(size)), 0.0) * direction
        size = new
    return u


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Σ a b of each row, shaped to broadcast."""
    return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))


@register("mmps", reference="Rozet et al. 2024 (MMPS)")
def mmps(run: Run, *, iterations: Annotated[int, Between(1, 1000)] = 1) -> Posterior:
    """The score of N(y; A x̂_0, σ_y² I + A V Aᵀ), V the model's covariance of x_0 given x_t."""
    return run.sample(MMPS(run.model, run.measurement, iterations))
