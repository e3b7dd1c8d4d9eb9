r"""DAPS: the noise is taken off by the ODE, x_0 drawn near the measurement, and new noise of the next level put on.

    x̂_0 by the probability-flow ODE from x_t,   x_0 ~ N(x_0; x̂_0, r_t²) p(y | x_0),   x_{t'} = α' x_0 + σ' z

(Zhang et al. 2024, decoupled annealing posterior sampling, algorithm 1; r_t = σ/α.) The paper draws x_0 by Langevin
steps; for a linear operator and Gaussian noise the law is a Gaussian, and the draw here is exact.
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from sdekit.grid import Grid
from sdekit.inverse.chains import Chain, chains, times_from
from sdekit.inverse.registry import Posterior, Run, register
from sdekit.names import Between, OneOf


@register("daps", reference="Zhang et al. 2024 (DAPS), algorithm 1", solver="ddim")
def daps(
    run: Run, *, ode_steps: Annotated[int, OneOf(*range(1, 51))] = 5, scale: Annotated[float, Between(1e-3, 1e3)] = 1.0
) -> Posterior:
    """x̂_0 by ``ode_steps`` evaluations of the solver, x_0 near it and y, then noise anew; r_t = ``scale`` σ/α."""
    levels = max(1, run.nfe // ode_steps)
    counts = [run.nfe // levels + (i < run.nfe % levels) for i in range(levels)]
    process = run.model.process
    knots = Grid.make(process, run.grid, [1] * levels).knots[:levels]

    def go(chain: Chain) -> Tensor:
        x0 = knot = None
        for i, (knot, count) in enumerate(zip(knots, counts)):
            x = knot.sigma * chain.normal(4 * i)
            x = x if x0 is None else x + knot.alpha * x0
            x0 = chain.solve(x, run.solver, times_from(process, knot, count), i)
            x0 = chain.given(x0, (scale * knot.sigma / knot.alpha) ** 2, 4 * i + 1)
        assert x0 is not None
        return x0

    return chains(run, "daps", go)
