"""DEIS: ε extrapolated by a polynomial in t or in ρ = σ/α and integrated exactly (Zhang & Chen 2023)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch

from sdekit.grid import Grid
from sdekit.names import OneOf
from sdekit.process import Knot
from sdekit.solvers.adams import adams_in_noise_ratio
from sdekit.solvers.classical import in_noise_ratio, runge_kutta
from sdekit.solvers.dpm_solver import single_step
from sdekit.solvers.multistep import BELOW, NEVER, START, Weigh, lowered, multistep, start_split
from sdekit.solvers.registry import full_steps, register
from sdekit.solvers.tableau import Row, exponential, quadrature

_PAPER = "Zhang & Chen 2023 (DEIS)"
# Gauss-Legendre on [0, 1]: the integrands are smooth in λ, and 64 points give rounding for a step of 12 in λ
_POINTS, _WEIGHTS = (np.polynomial.legendre.leggauss(64)[0] + 1) / 2, np.polynomial.legendre.leggauss(64)[1] / 2


def _in_time(grid: Grid) -> Weigh:
    def weigh(s: Knot, t: Knot, past: Sequence[Knot]) -> tuple[float, Sequence[float]]:
        anchor, (constant,) = exponential("eps", s, t, 1)
        h = t.half_log_snr - s.half_log_snr
        # dκ = −κ dλ: the integral over t of κ'(t) t^k, with λ as the variable
        density = _WEIGHTS * np.exp(-_POINTS * h)
        times = grid.process.t_of_half_log_snr(torch.from_numpy(s.half_log_snr + _POINTS * h)).numpy()
        part = (times - s.t) / (t.t - s.t)
        means = [float(density @ part**k / density.sum()) for k in range(len(past))]
        nodes = [(knot.t - s.t) / (t.t - s.t) for knot in past]
        return anchor, quadrature(nodes, [constant * mean for mean in means])

    return weigh


def _vary(order: int) -> Callable[..., Mapping[str, Any]]:
    def vary(lower_order_below: float, start: str = "lower-order") -> Mapping[str, Any]:
        return {"order": lowered(order, lower_order_below), "split": start_split(order, start)}

    return vary


@register("deis-1", order=1, predicts="eps", reference=f"{_PAPER}, tAB-DEIS with r = 0")
def deis_1(grid: Grid) -> Iterator[Row]:
    """tAB0-DEIS: ε is constant over the step, which is DDIM."""
    yield from multistep(grid, 1, _in_time(grid), partial(single_step, "eps"))


@register("deis-2", order=2, predicts="eps", invariant=False, reference=f"{_PAPER}, tAB-DEIS with r = 1")
def deis_2(grid: Grid, *, lower_order_below: Annotated[float, BELOW] = NEVER) -> Iterator[Row]:
    """tAB1-DEIS: x_t = (α_t/α_s) x_s + α_t ∫ ε dκ, ε the polynomial in t through the last two predictions, κ = σ/α."""
    yield from multistep(grid, 2, _in_time(grid), partial(single_step, "eps"), lower_order_below)


@register("deis-3", order=3, predicts="eps", invariant=False, vary=_vary(3), reference=f"{_PAPER}, tAB-DEIS with r = 2")
def deis_3(
    grid: Grid, *, start: Annotated[str, START] = "lower-order", lower_order_below: Annotated[float, BELOW] = NEVER
) -> Iterator[Row]:
    """tAB2-DEIS: as ``deis-2`` with the last three predictions."""
    yield from multistep(grid, 3, _in_time(grid), partial(single_step, "eps"), lower_order_below)


@register("deis-4", order=4, predicts="eps", invariant=False, vary=_vary(4), reference=f"{_PAPER}, tAB-DEIS with r = 3")
def deis_4(
    grid: Grid, *, start: Annotated[str, START] = "lower-order", lower_order_below: Annotated[float, BELOW] = NEVER
) -> Iterator[Row]:
    """tAB3-DEIS: as ``deis-2`` with the last four predictions."""
    yield from multistep(grid, 4, _in_time(grid), partial(single_step, "eps"), lower_order_below)


@register(
    "deis-rho-ab",
    order=4,
    predicts="eps",
    vary=lambda order, start, lower_order_below: {
        "order": lowered(order, lower_order_below),
        "split": start_split(order, start),
    },
    reference=f"{_PAPER}, ρAB-DEIS",
)
def deis_rho_ab(
    grid: Grid,
    *,
    order: Annotated[int, OneOf(1, 2, 3, 4)] = 4,
    start: Annotated[str, START] = "lower-order",
    lower_order_below: Annotated[float, BELOW] = NEVER,
) -> Iterator[Row]:
    """ρAB-DEIS: Adams–Bashforth in ρ = σ/α on d(x/α)/dρ = ε, the same table as ``lms`` and ``ipndm-v``.

    ``order`` predictions are used, the paper's r + 1.
    """
    yield from multistep(grid, order, adams_in_noise_ratio, partial(single_step, "eps"), lower_order_below)


@register(
    "deis-rho-rk",
    order=3,
    evaluations=3,
    predicts="eps",
    vary=lambda order: {"order": order, "evaluations": order, "split": full_steps(order)},
    reference=f"{_PAPER}, ρRK-DEIS",
)
def deis_rho_rk(grid: Grid, *, order: Annotated[int, OneOf(2, 3, 4)] = 3) -> Iterator[Row]:
    """ρRK-DEIS: Runge–Kutta in ρ = σ/α on d(x/α)/dρ = ε. Order 2 is Heun's (``heun``), 3 Kutta's, 4 the classical."""
    for s, t, evaluations in grid:
        yield from runge_kutta(grid, s, t, evaluations, in_noise_ratio)
