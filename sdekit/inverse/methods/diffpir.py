r"""DiffPIR: the predicted x_0 pulled to the measurement by a proximal step.

    x̂_0 ← argmin_x ‖y − A x‖² + ρ_t ‖x − x̂_0‖²,   ρ_t = λ σ_y² (α/σ)²

(Zhu et al. 2023, algorithm 1), and a step x_t = α x̂_0 + σ (√(1 − ζ) ε̂ + √ζ z) with ε̂ = (x_s − α_s x̂_0)/σ_s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated

from torch import Tensor

from sdekit.grid import Grid
from sdekit.inverse.conditioned import Point, Spectral
from sdekit.inverse.measurement import Measurement
from sdekit.inverse.registry import Posterior, Run, register
from sdekit.names import Between
from sdekit.sampling import Model
from sdekit.solvers import Draw, Row, Solver, get


class DiffPIR(Spectral):
    """``model`` with the proximal point for x_0. No gradients.

    Args:
        model: any model.
        measurement: of a linear operator, with Gaussian noise.
        lambda_: λ, how much of the prior is kept.

    Raises ValueError for another measurement, and λ not above 0.
    """

    differentiates = False

    def __init__(self, model: Model, measurement: Measurement, lambda_: float = 7.0) -> None:
        super().__init__(model, measurement)
        if not lambda_ > 0:
            raise ValueError(f"lambda_={lambda_}: it must be above 0")
        self.lambda_ = lambda_

    def change(self, at: Point) -> Tensor:
        return self.gain(at, (at.sigma / at.alpha) ** 2 / self.lambda_)


def steps(zeta: float) -> Solver:
    """The paper's steps as a solver. ζ = 1 draws all noise anew, ζ = 0 is ``ddim``.

    >>> from sdekit.process import VP
    >>> row = steps(1.0).plan(VP(), nfe=2, final="denoise").rows[0]
    >>> row.anchor, row.history[0] == row.to.alpha, row.noise[0].coefficient == row.to.sigma
    (0.0, True, True)
    """

    def rows(grid: Grid) -> Iterator[Row]:
        for s, t, _ in grid:
            kept = math.sqrt(1 - zeta) * t.sigma / s.sigma
            noise = (Draw(math.sqrt(zeta) * t.sigma, s.half_log_snr, t.half_log_snr),) if zeta else ()
            yield Row(to=t, anchor=kept, history=(t.alpha - kept * s.alpha,), noise=noise)

    return replace(get("ddim"), rows=rows, name=f"diffpir-steps(zeta={zeta})", predicts="x0", vary=None)


@register("diffpir", reference="Zhu et al. 2023 (DiffPIR), algorithm 1", solver="ddim")
def diffpir(
    run: Run, *, lambda_: Annotated[float, Between(1e-6, 1e6)] = 7.0, zeta: Annotated[float, Between(0, 1)] = 0.3
) -> Posterior:
    """x̂_0 by a proximal step, then x_t = α x̂_0 + σ (√(1 − ζ) ε̂ + √ζ z); another ``solver`` takes the steps' place."""
    wrapped = DiffPIR(run.model, run.measurement, lambda_)
    return run.sample(wrapped, steps(zeta) if run.solver.label == "ddim" else run.solver)
