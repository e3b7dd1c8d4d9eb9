r"""DDRM: each singular direction of the operator is denoised by what is known of it.

With A = U diag(s) Vᵀ, x̄ = Vᵀ x_t/α, ȳ = Uᵀ y/s, X = Vᵀ x̂_0 and noise levels τ = σ/α, in each direction

    s = 0             x̄' ~ N(X + √(1 − η²) τ' (x̄ − X)/τ, η² τ'²)
    τ' < σ_y/s        x̄' ~ N(X + √(1 − η²) τ' (ȳ − X) s/σ_y, η² τ'²)
    τ' ≥ σ_y/s        x̄' ~ N((1 − η_b) X + η_b ȳ, τ'² − η_b² σ_y²/s²)

(Kawar, Elad, Ermon & Song 2022, section 3.2). It starts from N(ȳ, τ² − σ_y²/s²) where that is one, and ends with x̂_0.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from sdekit.grid import Grid
from sdekit.inverse.chains import Chain, chains
from sdekit.inverse.conditioned import noise_std
from sdekit.inverse.registry import Posterior, Run, register
from sdekit.names import Between
from sdekit.process import Knot
from sdekit.solvers.registry import check_count


def _into(chain: Chain, apart: Tensor, seen: Tensor) -> Tensor:
    """``apart`` [batch, D] with its part along V replaced by ``seen`` [batch, k] in V's coordinates."""
    v = chain.spectrum.v.to(apart.dtype)
    return apart + (seen - apart @ v) @ v.T


def _step(chain: Chain, s: Knot, t: Knot, x: Tensor, x0: Tensor, z: Tensor, eta: float, eta_b: float) -> Tensor:
    """From x at s to t, all flat [batch, D]; z is the noise to draw."""
    spectrum, std = chain.spectrum, noise_std(chain.run.measurement)
    before, after, rest = s.sigma / s.alpha, t.sigma / t.alpha, (1 - eta**2) ** 0.5
    free = x0 + rest * after / before * (x / s.alpha - x0) + eta * after * z
    v, level = spectrum.v.to(x.dtype), (std / spectrum.s).to(x.dtype)
    y = chain.y.flatten(1) @ spectrum.u.to(x.dtype) / spectrum.s.to(x.dtype)
    X, Z, sharp = x0 @ v, z @ v, after >= level  # noqa: N806
    low = X + rest * after * (y - X) / torch.where(sharp, 1.0, level) + eta * after * Z
    high = (1 - eta_b) * X + eta_b * y + (after**2 - (eta_b * level) ** 2).clamp(min=0).sqrt() * Z
    return t.alpha * _into(chain, free, torch.where(sharp, high, low))


def _start(chain: Chain, knot: Knot) -> Tensor:
    spectrum, std = chain.spectrum, noise_std(chain.run.measurement)
    tau, z = knot.sigma / knot.alpha, chain.normal(0).flatten(1)
    level = (std / spectrum.s).to(z.dtype)
    y = chain.y.flatten(1) @ spectrum.u.to(z.dtype) / spectrum.s.to(z.dtype)
    Z, sharp = z @ spectrum.v.to(z.dtype), tau >= level  # noqa: N806
    known = y + (tau**2 - level.square()).clamp(min=0).sqrt() * Z
    return knot.alpha * _into(chain, tau * z, torch.where(sharp, known, tau * Z))


@register("ddrm", reference="Kawar, Elad, Ermon & Song 2022 (DDRM), section 3.2")
def ddrm(
    run: Run, *, eta: Annotated[float, Between(0, 1)] = 0.85, eta_b: Annotated[float, Between(0, 1)] = 1.0
) -> Posterior:
    """Each singular direction denoised by its own noise level; it has steps of its own and takes no ``solver``."""
    check_count("nfe", run.nfe, 2, "a step and the denoising at the end")
    knots, model = Grid.make(run.model.process, run.grid, [1] * (run.nfe - 1)).knots, run.model

    def go(chain: Chain) -> Tensor:
        shape = (len(chain.samples), *run.shape[1:])
        x = _start(chain, knots[0])
        for i, (s, t) in enumerate(zip(knots, knots[1:]), start=1):
            x0 = model.predict("x0", x.reshape(shape), s.t, **chain.conditions).flatten(1)
            x = _step(chain, s, t, x, x0, chain.normal(i).flatten(1), eta, eta_b)
        return model.predict("x0", x.reshape(shape), knots[-1].t, **chain.conditions)

    return chains(run, "ddrm", go)
