"""Adams methods: the prediction is extrapolated by a polynomial through its past values and integrated exactly."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

from sdekit.grid import Grid
from sdekit.names import OneOf
from sdekit.process import Knot
from sdekit.solvers.dpm_solver import single_step
from sdekit.solvers.multistep import BELOW, FEW, NEVER, START, Weigh, lowered, multistep, start_split
from sdekit.solvers.registry import register
from sdekit.solvers.tableau import Row, exponential, quadrature


def exponential_adams(kind: str) -> Weigh:
    """Weights of the polynomial in λ through the past predictions, integrated with the exponential weight."""

    def weigh(s: Knot, t: Knot, past: Sequence[Knot]) -> tuple[float, Sequence[float]]:
        anchor, moments = exponential(kind, s, t, len(past))
        h = t.half_log_snr - s.half_log_snr
        return anchor, quadrature([(knot.half_log_snr - s.half_log_snr) / h for knot in past], moments)

    return weigh


def adams_in_noise_ratio(s: Knot, t: Knot, past: Sequence[Knot]) -> tuple[float, Sequence[float]]:
    """Weights of the polynomial in κ = σ/α through past ε: x_t/α_t = x_s/α_s + ∫ ε dκ."""
    anchor, (step,) = exponential("eps", s, t, 1)

    def part(knot: Knot) -> float:
        """(κ − κ_s)/(κ_t − κ_s)."""
        back, h = (other.half_log_snr - s.half_log_snr for other in (knot, t))
        return math.expm1(-back) / math.expm1(-h)

    moments = [step / (k + 1) for k in range(len(past))]
    return anchor, quadrature([part(knot) for knot in past], moments)


_ADAMS = "Hochbruck & Ostermann 2010 (exponential Adams–Bashforth)"
_ORDER = OneOf(1, 2, 3, 4, 5, 6)


def _vary(order: int, start: str, lower_order_below: float) -> Mapping[str, Any]:
    if start == "lower-order" and order > 3:
        raise ValueError(f"order={order} needs start='single-step': a lower-order start keeps no order above 3")
    return {"order": lowered(order, lower_order_below), "split": start_split(order, start)}


@register("adams-eps", order=3, predicts="eps", vary=_vary, reference=_ADAMS)
def adams_eps(
    grid: Grid,
    *,
    order: Annotated[int, _ORDER] = 3,
    start: Annotated[str, START] = "single-step",
    lower_order_below: Annotated[float, BELOW] = FEW,
) -> Iterator[Row]:
    """Exponential Adams–Bashforth for ε: the polynomial in λ through the last predictions, integrated exactly.

    The starting steps have at most order 3; above order 4 they cap the order where their error is seen.
    """
    yield from multistep(grid, order, exponential_adams("eps"), partial(single_step, "eps"), lower_order_below)


@register("adams-x0", order=3, predicts="x0", vary=_vary, reference=_ADAMS)
def adams_x0(
    grid: Grid,
    *,
    order: Annotated[int, _ORDER] = 3,
    start: Annotated[str, START] = "single-step",
    lower_order_below: Annotated[float, BELOW] = FEW,
) -> Iterator[Row]:
    """Exponential Adams–Bashforth for x_0; see ``adams-eps``."""
    yield from multistep(grid, order, exponential_adams("x0"), partial(single_step, "x0"), lower_order_below)


def _vary_classical(order: int, start: str, lower_order_below: float) -> Mapping[str, Any]:
    return {"order": lowered(order, lower_order_below), "split": start_split(order, start)}


_FOUR = OneOf(1, 2, 3, 4)


@register(
    "lms",
    order=4,
    predicts="eps",
    vary=_vary_classical,
    reference="k-diffusion (linear multistep, Adams–Bashforth in σ)",
)
def lms(
    grid: Grid,
    *,
    order: Annotated[int, _FOUR] = 4,
    start: Annotated[str, START] = "lower-order",
    lower_order_below: Annotated[float, BELOW] = NEVER,
) -> Iterator[Row]:
    """Linear multistep in κ = σ/α: d(x/α)/dκ = ε, the polynomial in κ through the last predictions, integrated exactly.

    For α = 1 this is k-diffusion's sampler in σ.
    """
    yield from multistep(grid, order, adams_in_noise_ratio, partial(single_step, "eps"), lower_order_below)


@register(
    "ipndm-v",
    order=4,
    predicts="eps",
    vary=_vary_classical,
    reference="Zhang & Chen 2023 (DEIS), iPNDM; variable steps",
)
def ipndm_v(
    grid: Grid,
    *,
    order: Annotated[int, _FOUR] = 4,
    start: Annotated[str, START] = "lower-order",
    lower_order_below: Annotated[float, BELOW] = NEVER,
) -> Iterator[Row]:
    """iPNDM with the Adams–Bashforth coefficients of the grid's own steps in κ = σ/α: the same table as ``lms``."""
    yield from multistep(grid, order, adams_in_noise_ratio, partial(single_step, "eps"), lower_order_below)
