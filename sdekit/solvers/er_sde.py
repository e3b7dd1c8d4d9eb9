"""ER-SDE-Solvers: the reverse SDE with any noise scale function, solved for the data prediction by Taylor's formula."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Annotated

import numpy as np

from sdekit.grid import Grid
from sdekit.names import OneOf
from sdekit.solvers.edm import noise_ratio
from sdekit.solvers.multistep import BELOW, NEVER, order_at
from sdekit.solvers.registry import register
from sdekit.solvers.tableau import Draw, Row

_PAPER = "Cui et al. 2023 (ER-SDE-Solvers)"

SCALES: dict[str, Callable[[float], float]] = {
    "ode": lambda k: k,
    "sde": lambda k: k**2,
    "er-sde-1": lambda k: k * (math.exp(-1 / k) + 10),
    "er-sde-2": lambda k: k**1.5,
    "er-sde-3": lambda k: k**2.5,
    "er-sde-4": lambda k: k**0.9 * math.log10(1 + 100 * k**1.5),
    "er-sde-5": lambda k: k * (math.exp(k**0.3) + 10),
}
"""φ(κ), κ = σ/α, of the paper's section 4 and appendix A.8. φ(κ)/κ may not decrease: a variance would be negative."""

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)
_SCALE = OneOf(*SCALES)


def _integrals(scale: Callable[[float], float], high: float, low: float) -> tuple[float, float]:
    """∫ dκ/φ(κ) and ∫ (κ − high) dκ/φ(κ) from low to high, by Gauss's rule in log κ."""
    half = math.log(high / low) / 2
    points = [low * math.exp(half * (1 + node)) for node in _NODES.tolist()]
    masses = [half * weight * point / scale(point) for weight, point in zip(_WEIGHTS.tolist(), points)]
    return sum(masses), sum(mass * (point - high) for mass, point in zip(masses, points))


def _derivatives(kappas: list[float]) -> list[list[float]]:
    """Weights in the last predictions, newest first, of x_0, dx_0/dκ and d²x_0/dκ², as far as there are predictions."""
    count = len(kappas)
    values = np.eye(count)
    found = [values[0]]
    if count > 1:
        found.append((values[0] - values[1]) / (kappas[0] - kappas[1]))
    if count > 2:
        before = (values[1] - values[2]) / (kappas[1] - kappas[2])
        found.append(2 * (found[1] - before) / (kappas[0] - kappas[2]))
    return [weights.tolist() for weights in found]


def _er_sde(grid: Grid, stages: int, name: str, below: float = 0.0) -> Iterator[Row]:
    scale, past = SCALES[name], list[float]()
    for i, (s, t, _) in enumerate(grid):
        k_s, k_t = noise_ratio(s), noise_ratio(t)
        past = [k_s, *past][: order_at(grid, i, stages, below)]
        ratio = scale(k_t) / scale(k_s)
        first, second = _integrals(scale, k_s, k_t)
        step = k_t - k_s
        factors = (1 - ratio, step + scale(k_t) * first, step**2 / 2 + scale(k_t) * second)
        derivatives = _derivatives(past)
        weights = [sum(f * d[j] for f, d in zip(factors, derivatives)) for j in range(len(past))]
        std = t.alpha * math.sqrt(max(0.0, k_t**2 - (k_s * ratio) ** 2))
        yield Row(
            to=t,
            anchor=t.alpha / s.alpha * ratio,
            history=tuple(t.alpha * weight for weight in weights),
            noise=(Draw(std, s.half_log_snr, t.half_log_snr),) if name != "ode" else (),
        )


@register("er-sde-1", order=1, predicts="x0", reference=f"{_PAPER}, algorithm 1")
def er_sde_1(grid: Grid, *, scale: Annotated[str, _SCALE] = "er-sde-5") -> Iterator[Row]:
    """In y = x/α and κ: y_t = r y_s + (1 − r) x_0 + √(κ_t² − r² κ_s²) z, r = φ(κ_t)/φ(κ_s); ``scale`` names φ.

    φ = κ is the probability-flow ODE (``ddim``), φ = κ² Anderson's reverse SDE (``ddpm``).
    """
    yield from _er_sde(grid, 1, scale)


@register("er-sde-2", order=2, predicts="x0", reference=f"{_PAPER}, algorithm 2")
def er_sde_2(
    grid: Grid, *, scale: Annotated[str, _SCALE] = "er-sde-5", lower_order_below: Annotated[float, BELOW] = NEVER
) -> Iterator[Row]:
    """``er-sde-1`` and [κ_t − κ_s + φ(κ_t) ∫ dκ/φ] dx_0/dκ, the derivative from the last two predictions."""
    yield from _er_sde(grid, 2, scale, lower_order_below)


@register("er-sde-3", order=2, predicts="x0", reference=f"{_PAPER}, algorithm 3")
def er_sde_3(
    grid: Grid, *, scale: Annotated[str, _SCALE] = "er-sde-5", lower_order_below: Annotated[float, BELOW] = NEVER
) -> Iterator[Row]:
    """``er-sde-2`` and [(κ_t − κ_s)²/2 + φ(κ_t) ∫ (κ − κ_s) dκ/φ] d²x_0/dκ², from the last three predictions.

    The published form: dx_0/dκ stays the first difference of ``er-sde-2``, so that the order stays 2.
    """
    yield from _er_sde(grid, 3, scale, lower_order_below)
