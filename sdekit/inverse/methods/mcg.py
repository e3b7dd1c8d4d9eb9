r"""MCG: a step down the residual's norm, and the known elements replaced.

    x_t ← x_t − ζ ∇_{x_s} ‖y − A x̂_0(x_s)‖²/‖y − A x̂_0(x_s)‖,   then   x_t[known] ← α y + σ z

(Chung, Sim, Ryu & Ye 2022, manifold constrained gradients, for inpainting: the gradient of DPS and the projection of
``replacement``.) The projection takes y as free of noise.
"""

from __future__ import annotations

from typing import Annotated

from sdekit.inverse.methods.dps import DPS, factors_of
from sdekit.inverse.methods.replacement import Replacement
from sdekit.inverse.registry import Posterior, Run, register
from sdekit.names import Between


@register("mcg", reference="Chung, Sim, Ryu & Ye 2022 (MCG), algorithm 1", operators="mask")
def mcg(run: Run, *, zeta: Annotated[float, Between(0, 1e6)] = 1.0) -> Posterior:
    """After each step, DPS's gradient of the residual and the known elements replaced by α y + σ z."""
    corrector, plan = Replacement(run.measurement, run.measured), run.plan
    return run.sample(DPS(run.model, run.measurement, factors_of(plan), plan.predicts, zeta), corrector=corrector)
