r"""TMPD: moments by Tweedie's formula, the covariance of A x_0 by its row sums.

    ∇ log p(y | x_t) ≈ Jᵀ Aᵀ C⁻¹ (y − A x̂_0),   C = σ_y² I + diag(A V Aᵀ 1),   V = (σ²/α) J

(Boys et al. 2024, Tweedie moment projected diffusions.) With the whole A V Aᵀ it is the score that MMPS solves for;
this is the cheaper form of the paper's image experiments, which replaces the matrix by the sums of its rows: exact
where A V Aᵀ is diagonal. A row sum may be negative; it is then taken as 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdekit.inverse.conditioned import Conditioned, Point, noise_std
from sdekit.inverse.registry import Posterior, Run, register


class TMPD(Conditioned):
    """``model`` given ``measurement``, with the covariance's row sums. Each evaluation takes two gradients.

    Args:
        model: any model.
        measurement: of a linear operator, with Gaussian noise.

    Raises ValueError for another measurement.
    """

    def change(self, at: Point) -> Tensor:
        A, noise = self.measurement.operator, noise_std(self.measurement) ** 2  # noqa: N806
        residual = self.residual(at)
        sums = A.apply(at.covariance(A.adjoint(torch.ones_like(residual)))).clamp(min=0)
        tiny = torch.finfo(residual.dtype).tiny
        return at.covariance(A.adjoint(residual / (noise + sums).clamp(min=tiny)))


@register("tmpd", reference="Boys et al. 2024 (TMPD), the variant with a diagonal covariance")
def tmpd(run: Run) -> Posterior:
    """The score of N(y; A x̂_0, σ_y² I + D), D the row sums of A V Aᵀ."""
    return run.sample(TMPD(run.model, run.measurement))
