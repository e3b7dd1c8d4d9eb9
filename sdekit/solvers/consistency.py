"""Few-step sampling with networks that jump to the data: predict x_0, put noise back, predict again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from sdekit.grid import Grid
from sdekit.names import Between
from sdekit.solvers.edm import noise_ratio
from sdekit.solvers.registry import register
from sdekit.solvers.tableau import Draw, Row


@register("consistency", order=0, predicts="x0", reference="Song et al. 2023 (Consistency Models), algorithm 1")
def consistency(grid: Grid) -> Iterator[Row]:
    """x_t = α_t (f(x_s, s) + √(κ_t² − κ_min²) z), f the network's x_0, κ = σ/α, κ_min at the grid's last knot.

    For a consistency function f, which is exact at every κ; with an ordinary denoiser it is no solver of the SDE, and
    its error does not fall with the steps (order 0). The last knot gets f as it is: take ``final="none"`` there, or let
    the grid end where the last prediction is wanted.
    """
    least = noise_ratio(grid.knots[-1])
    for s, t, _ in grid:
        std = t.alpha * math.sqrt(max(0.0, noise_ratio(t) ** 2 - least**2))
        noise = (Draw(std, s.half_log_snr, t.half_log_snr),) if t is not grid.knots[-1] else ()
        yield Row(to=t, anchor=0.0, history=(t.alpha,), noise=noise)


@register("lcm", order=0, predicts="x0", reference="Luo et al. 2023 (Latent Consistency Models), algorithm 3")
def lcm(grid: Grid) -> Iterator[Row]:
    """x_t = α_t f(x_s, s) + σ_t z: ``consistency`` with a prediction taken for clean data. Order 0 for a denoiser."""
    for s, t, _ in grid:
        yield Row(to=t, anchor=0.0, history=(t.alpha,), noise=(Draw(t.sigma, s.half_log_snr, t.half_log_snr),))


def _vary(gamma: float) -> Mapping[str, Any]:
    return {"order": 0 if gamma else 1}


@register("tcd", order=1, predicts="x0", vary=_vary, reference="Zheng et al. 2024 (TCD), algorithm 4")
def tcd(grid: Grid, *, gamma: Annotated[float, Between(0, 1)] = 0.0) -> Iterator[Row]:
    """x_u = α_u x_0 + σ_u ε at u below t, then forward to t: x_t = (α_t/α_u) x_u + √(σ_t² − (α_t σ_u/α_u)²) z.

    u = t_min + (1 − γ)(t − t_min): in a table's index (1 − γ) n, as the paper has it. γ = 0 draws no noise and is
    ``ddim``; larger γ (0.3 in the paper) is made for networks that jump along the trajectory. With an ordinary denoiser
    its error falls slowly then, with a measured order of 0.4.
    """
    process = grid.process
    for s, t, _ in grid:
        below = process.knot(process.t_min + (1 - gamma) * (t.t - process.t_min)) if gamma else t
        kept = t.alpha / below.alpha * below.sigma  # of ε; the rest of σ_t² is new noise
        std = math.sqrt(max(0.0, t.sigma**2 - kept**2))
        yield Row(
            to=t,
            anchor=kept / s.sigma,
            history=(t.alpha - kept * s.alpha / s.sigma,),
            noise=(Draw(std, s.half_log_snr, t.half_log_snr),) if gamma else (),
        )
