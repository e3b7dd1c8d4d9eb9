"""SA-Solver: stochastic Adams methods in λ for the data prediction, as predictor and corrector."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from sdekit.grid import Grid
from sdekit.names import Between, OneOf
from sdekit.process import Knot
from sdekit.solvers.edm import noise_ratio
from sdekit.solvers.multistep import BELOW, FEW, lowered, order_at
from sdekit.solvers.registry import register
from sdekit.solvers.tableau import Draw, Row, phi, quadrature


def _weights(s: Knot, t: Knot, knots: Sequence[Knot], rate: float, slope: str) -> tuple[float, ...]:
    """α_t ∫ H e^{−H(1−u)} l_j(u) du over a step, H = (1 + τ²) h, for the Lagrange polynomials l_j of ``knots``."""
    h = t.half_log_snr - s.half_log_snr
    full = (1 + rate) * h
    moments = [t.alpha * full * math.factorial(k) * phi(k + 1, -full) for k in range(len(knots))]
    if slope == "published" and len(knots) == 2:
        moments[1] = t.alpha * full / 2
    return tuple(quadrature([(knot.half_log_snr - s.half_log_snr) / h for knot in knots], moments))


def _vary(
    predictor: int, corrector: int, tau: float, s_min: float, s_max: float, slope: str, lower_order_below: float
) -> Mapping[str, Any]:
    order = 1 + min(predictor, corrector) if corrector else predictor
    return {"order": lowered(min(2, order) if tau else order, lower_order_below)}


@register("sa-solver", order=2, predicts="x0", vary=_vary, reference="Xue et al. 2023 (SA-Solver), algorithm 1")
def sa_solver(
    grid: Grid,
    *,
    predictor: Annotated[int, OneOf(1, 2, 3, 4)] = 3,
    corrector: Annotated[int, OneOf(0, 1, 2, 3, 4)] = 3,
    tau: Annotated[float, Between(0, 2)] = 1.0,
    s_min: Annotated[float, Between(0, math.inf)] = 0.0,
    s_max: Annotated[float, Between(0, math.inf)] = math.inf,
    slope: Annotated[str, OneOf("exact", "published")] = "exact",
    lower_order_below: Annotated[float, BELOW] = FEW,
) -> Iterator[Row]:
    """x_t = (σ_t/σ_s) e^{−τ²h} x_s + Σ_j b_j x_0(x_j) + σ_t √(1 − e^{−2τ²h}) z, b_j exact for polynomials in λ.

    The predictor goes through the last ``predictor`` predictions; the corrector takes the prediction at the predicted
    x_t and the last ``corrector``, with the same z, and costs no evaluation of its own: the next step goes on from it.
    corrector = 0 leaves it out. τ = ``tau`` on steps that start at s_min ≤ σ/α ≤ s_max, else 0 (the paper takes
    0.05 to 1); τ = 0 is the probability-flow ODE, τ = 1 Anderson's reverse SDE. The last step is not corrected.
    slope = "published" is what the authors' code and diffusers run where a polynomial goes through two predictions: its
    slope is weighed by α_t H/2, H = (1 + τ²) h, as if e^{−H(1−u)} were 1; a difference of O(h³) a step.
    For τ = 0 the order is that of the Adams pair, one more than the smaller option; for τ > 0 it is 2 in law at most,
    and 1 path by path.
    """
    last = len(grid.evaluations) - 1
    for i, (s, t, _) in enumerate(grid):
        h, rate = t.half_log_snr - s.half_log_snr, tau**2 if s_min <= noise_ratio(s) <= s_max else 0.0
        past, anchor = grid.knots[i::-1], t.sigma / s.sigma * math.exp(-rate * h)
        std = t.sigma * math.sqrt(-math.expm1(-2 * rate * h))
        noise = (Draw(std, s.half_log_snr, t.half_log_snr),) if rate else ()
        predicted, corrected = (order_at(grid, i, order, lower_order_below) for order in (predictor, corrector))
        correct = bool(corrector) and i < last
        yield Row(
            to=t,
            anchor=anchor,
            history=_weights(s, t, past[:predicted], rate, slope),
            noise=noise,
            evaluate=not corrector or i == 0,
            commit=not correct,
        )
        if correct:
            yield Row(to=t, anchor=anchor, history=_weights(s, t, [t, *past[:corrected]], rate, slope), noise=noise)
