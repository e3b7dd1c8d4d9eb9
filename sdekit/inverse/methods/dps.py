r"""DPS: after each step, a step down the residual's norm.

    x_t ← x_t − ζ_t ∇_{x_s} ‖y − A(x̂_0(x_s))‖²,   ζ_t = ζ/‖y − A(x̂_0(x_s))‖

(Chung et al. 2023, algorithm 1; for Poisson noise the norm weighs by 1/(2y), algorithm 2.) As the step is
x_t = a x_s + b F + c z, the shift is a change of its prediction F by 1/b of it: so it is a wrapper that knows b at each
of its knots. Of a multistep solver b is the factor of the newest prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from sdekit.inverse.conditioned import Conditioned, Point
from sdekit.inverse.measurement import Measurement
from sdekit.inverse.operators import pulled
from sdekit.inverse.registry import Posterior, Run, register
from sdekit.names import Between
from sdekit.process import State, Time
from sdekit.sampling import Model
from sdekit.solvers import Plan


class DPS(Conditioned):
    """``model`` with what makes each step of a run end ζ ∇‖r‖²/‖r‖ lower. Each evaluation takes one gradient.

    Args:
        model: any model.
        measurement: any whose operator can be differentiated.
        factors: b, the factor of the prediction in the step from each time (``factors_of``).
        predicts: the kind of prediction that the plan is written for.
        zeta: ζ.

    Raises ValueError for an operator without gradient, and at a time or for a prediction that the run does not have.
    """

    linear = False

    def __init__(
        self, model: Model, measurement: Measurement, factors: Mapping[float, float], predicts: str, zeta: float = 1.0
    ) -> None:
        super().__init__(model, measurement)
        self.factors, self.predicts, self.zeta = dict(factors), predicts, zeta

    def predict(self, kind: str, x: State, t: Time, /, measured: Tensor | None = None, **conditions: Any) -> State:
        """The prediction of the run at one of its knots, so that the step ends where DPS does."""
        if isinstance(t, Tensor) or t not in self.factors or kind != self.predicts:
            raise ValueError(
                f"{kind!r} at t={t}: DPS shifts the steps of one run, which asks for {self.predicts!r} at its"
                f" {len(self.factors)} knots"
            )
        F, at = self.look(kind, x, t, measured, conditions)  # noqa: N806
        return F + self.change(at) * (1 / self.factors[t])

    def change(self, at: Point) -> Tensor:
        """−ζ ∇‖r‖²/‖r‖, the shift of the state."""
        a, pull = pulled(self.measurement.operator.apply, at.x0)
        residual = at.y - a
        weighed = self.measurement.noise.weights(at.y) * residual
        norm = (weighed * residual).flatten(1).sum(1).sqrt().reshape(-1, *[1] * (residual.ndim - 1))
        direction = torch.where(norm > 0, weighed / norm.where(norm > 0, torch.ones_like(norm)), 0.0)
        return 2 * self.zeta * at.pull(pull(direction))


def factors_of(plan: Plan) -> dict[float, float]:
    """The factor b of the newest prediction in each step, by the time at which it is made.

    Raises ValueError for a plan with several evaluations a step, or steps that differ at one time.
    """
    found: dict[float, float] = {}
    here = plan.start
    for row in plan.rows:
        b = row.history[0] if row.history else 0.0
        if not row.evaluate or not row.commit or isinstance(b, Tensor) or b == 0 or found.get(here.t, b) != b:
            raise ValueError(
                "solver: dps needs one with one evaluation for each step, such as 'ddpm' or 'ddim(eta=1.0)'"
            )
        found[here.t], here = b, row.to
    return found


@register("dps", reference="Chung et al. 2023 (DPS), algorithms 1 and 2", operators="any")
def dps(run: Run, *, zeta: Annotated[float, Between(0, 1e6)] = 1.0) -> Posterior:
    """After each step, −ζ ∇‖y − A(x̂_0)‖²/‖y − A(x̂_0)‖."""
    plan = run.plan
    return run.sample(DPS(run.model, run.measurement, factors_of(plan), plan.predicts, zeta))
