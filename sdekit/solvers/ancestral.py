"""Ancestral sampling: DDPM and DDIM."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from sdekit.grid import Grid
from sdekit.names import Between, OneOf
from sdekit.process import Knot
from sdekit.solvers.registry import register
from sdekit.solvers.tableau import Draw, Row


def _lost(s: Knot, t: Knot) -> float:
    """1 − (α_s/σ_s)²/(α_t/σ_t)²: the share of σ_s² that is new noise since t."""
    return -math.expm1(2 * (s.half_log_snr - t.half_log_snr))


def _vary(variance: str) -> Mapping[str, Any]:
    return {"invariant": variance == "small"}  # β = 1 − α_s²/α_t² is VP's own


@register("ddpm", order=1, predicts="eps", vary=_vary, reference="Ho et al. 2020, eq. 7 and 11")
def ddpm(grid: Grid, *, variance: Annotated[str, OneOf("small", "large")] = "small") -> Iterator[Row]:
    """Ancestral sampling with the posterior q(x_t | x_s, x_0) at the predicted x_0.

    x_t = (α_t/α_s) (x_s − σ²_{s|t}/σ_s ε) + c z, σ²_{s|t} = σ_s² (1 − e^{2(λ_s−λ_t)}). The two published variances
    c²: "small" is the posterior's, σ²_{s|t} σ_t²/σ_s² (β̃), "large" is the forward step's, σ²_{s|t} (β) (section 3.2).
    """
    for s, t, _ in grid:
        scale, lost = t.alpha / s.alpha, _lost(s, t)
        std = math.sqrt(lost) * (t.sigma if variance == "small" else s.sigma)
        noise = Draw(std, s.half_log_snr, t.half_log_snr)
        yield Row(to=t, anchor=scale, history=(-scale * s.sigma * lost,), noise=(noise,))


@register("ddim", order=1, predicts="eps", reference="Song, Meng & Ermon 2021, eq. 12 and 16")
def ddim(grid: Grid, *, eta: Annotated[float, Between(0, 1)] = 0.0) -> Iterator[Row]:
    """x_t = (α_t/α_s) (x_s − σ_s ε) + √(σ_t² − c²) ε + c z, c = η σ_t √(1 − e^{2(λ_s−λ_t)}).

    η = 0 is deterministic and equals DPM-Solver-1, the exponential Euler method: the factor of ε is then
    −σ_t (e^h − 1), h = λ_t − λ_s. η = 1 is ``ddpm`` with the small variance.
    """
    for s, t, _ in grid:
        h, std = t.half_log_snr - s.half_log_snr, eta * t.sigma * math.sqrt(_lost(s, t)) if eta else 0.0
        # √(σ_t² − c²) − σ_t, without cancellation at small c
        shrink = -(std**2) / (t.sigma + math.sqrt(t.sigma**2 - std**2))
        noise = (Draw(std, s.half_log_snr, t.half_log_snr),) if eta else ()
        yield Row(to=t, anchor=t.alpha / s.alpha, history=(-t.sigma * math.expm1(h) + shrink,), noise=noise)
