r"""Split Gibbs: draws of x near the measurement and of x under the prior take turns, closer and closer together.

    z ~ N(z; x, ρ²) p(y | z),   x ~ N(x; z, ρ²) p(x),   ρ falling from ``rho_max`` to ``rho_min``

(Vono, Dobigeon & Chainais 2019; with a diffusion model for the prior, Xu & Chi 2024 and Wu et al. 2024, PnP-DM,
algorithm 1.) The first draw is exact for a linear operator and Gaussian noise. The second is the reverse SDE from
α z at σ/α = ρ: x given x_t = α z is x under the prior times N(z; x, ρ²). The law is the posterior as ρ falls, turns and
steps grow.
"""

from __future__ import annotations

import math
from typing import Annotated

from torch import Tensor

from sdekit.inverse.chains import Chain, chains, times_from
from sdekit.inverse.registry import Posterior, Run, register
from sdekit.names import Between, OneOf


@register("gibbs", reference="Wu et al. 2024 (PnP-DM), algorithm 1; Xu & Chi 2024", solver="ddpm", exact=True)
def gibbs(
    run: Run,
    *,
    steps: Annotated[int, OneOf(*range(1, 101))] = 5,
    rho_max: Annotated[float, Between(1e-4, 1e4)] = 3.0,
    rho_min: Annotated[float, Between(1e-4, 1e4)] = 0.1,
) -> Posterior:
    """Turns of z near x and y, and of x by the reverse SDE in ``steps`` evaluations from z; ρ falls geometrically."""
    if rho_min > rho_max:
        raise ValueError(f"gibbs: rho_min={rho_min} is above rho_max={rho_max}")
    turns = max(1, run.nfe // steps)
    counts = [run.nfe // turns + (i < run.nfe % turns) for i in range(turns)]
    process = run.model.process
    low, high = (process.half_log_snr(t) for t in (process.t_max, process.t_min))
    wanted = [-math.log(rho_max * (rho_min / rho_max) ** (i / max(1, turns - 1))) for i in range(turns)]
    knots = [process.knot_at(min(max(one, low), low + 0.999 * (high - low))) for one in wanted]

    def go(chain: Chain) -> Tensor:
        x = knots[0].sigma / knots[0].alpha * chain.normal(0)
        for i, (knot, count) in enumerate(zip(knots, counts)):
            z = chain.given(x, (knot.sigma / knot.alpha) ** 2, 2 * i + 1)
            x = chain.solve(knot.alpha * z, run.solver, times_from(process, knot, count), i)
        return x

    return chains(run, "gibbs", go)
