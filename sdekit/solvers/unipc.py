"""UniPC: a unified predictor–corrector of any order, multistep, for the data prediction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

from sdekit.grid import Grid
from sdekit.names import OneOf
from sdekit.process import Knot
from sdekit.solvers.dpm_solver import single_step
from sdekit.solvers.multistep import BELOW, FEW, START, lowered, order_at, place
from sdekit.solvers.registry import full_steps, register, starting
from sdekit.solvers.tableau import Row, phi, quadrature

_PAPER = "Zhao et al. 2023 (UniPC), algorithm 5 and 6"
_VARIANT = OneOf("bh1", "bh2")
_B = {"bh1": lambda h: h, "bh2": math.expm1}


def _weights(ratios: Sequence[float], h: float, scale: float) -> list[float]:
    """a_k with Σ_k a_k r_k^{n−1} B = n! h φ_{n+1}(h) for n = 1 … p (the paper's eq. 5 and 10)."""
    if len(ratios) == 1:
        return [0.5]  # satisfies the order condition for every B (the paper, after theorem 3.1)
    moments = [math.factorial(n) * h * phi(n + 1, h) / scale for n in range(1, len(ratios) + 1)]
    return quadrature(ratios, moments)


def _move(
    s: Knot, t: Knot, others: Sequence[Knot], made: Sequence[Knot | None], variant: str
) -> tuple[float, tuple[float, ...]]:
    """Factor of x_s and history of x_t from the predictions at s and ``others``: past knots, and t in the corrector."""
    h = s.half_log_snr - t.half_log_snr  # the paper's h has the other sign in data prediction
    scale = _B[variant](h)
    ratios = [(s.half_log_snr - other.half_log_snr) / h for other in others]
    weights = [a / r for a, r in zip(_weights(ratios, h, scale), ratios)] if others else []
    own = -t.alpha * (math.expm1(h) - scale * sum(weights))
    return t.sigma / s.sigma, place(made, [s, *others], [own, *(-t.alpha * scale * weight for weight in weights)])


def _unipc(grid: Grid, order: int, variant: str, below: float = 0.0) -> Iterator[Row]:
    made: list[Knot | None] = []  # where each prediction was made, newest first; None inside a step
    for i, (s, t, evaluations) in enumerate(grid):
        if evaluations > 1:
            yield from single_step("x0", grid, s, t, evaluations)
            made = [*[None] * (evaluations - 1), s, *made]
            continue
        fresh = made[:1] != [s]
        made = [s, *made] if fresh else made
        past = [knot for knot in made if knot][1 : order_at(grid, i, order, below)]
        last = t is grid.knots[-1]
        anchor, history = _move(s, t, past, made, variant)
        yield Row(to=t, anchor=anchor, history=history, evaluate=fresh, commit=last)
        if not last:  # the corrector uses the evaluation that the next predictor needs anyway
            made = [t, *made]
            anchor, history = _move(s, t, [t, *past], made, variant)
            yield Row(to=t, anchor=anchor, history=history)


@register("unipc-1", order=2, predicts="x0", reference=_PAPER)
def unipc_1(grid: Grid, *, variant: Annotated[str, _VARIANT] = "bh2") -> Iterator[Row]:
    """UniP-1, which is DDIM, with UniC-1, of order 2 together; see ``unipc-2``."""
    yield from _unipc(grid, 1, variant)


def _vary(order: int) -> Callable[..., Mapping[str, Any]]:
    # the corrector gains an order, so the starting steps need one more than those of an Adams method
    def vary(variant: str, lower_order_below: float, start: str = "lower-order") -> Mapping[str, Any]:
        split = starting(3, order - 1) if start == "single-step" else full_steps(1)
        return {"order": lowered(order + 1, lower_order_below), "split": split}

    return vary


@register("unipc-2", order=3, predicts="x0", vary=_vary(2), reference=_PAPER)
def unipc_2(
    grid: Grid, *, variant: Annotated[str, _VARIANT] = "bh2", lower_order_below: Annotated[float, BELOW] = FEW
) -> Iterator[Row]:
    """UniP-2 with UniC-2, of order 3 together: predict x_t, evaluate there, correct x_t, go on from that evaluation.

    ``variant`` is the paper's B(h): "bh1" is h, "bh2" is e^h − 1. The last step is not corrected.
    """
    yield from _unipc(grid, 2, variant, lower_order_below)


@register("unipc-3", order=4, predicts="x0", vary=_vary(3), reference=_PAPER)
def unipc_3(
    grid: Grid,
    *,
    variant: Annotated[str, _VARIANT] = "bh2",
    start: Annotated[str, START] = "lower-order",
    lower_order_below: Annotated[float, BELOW] = FEW,
) -> Iterator[Row]:
    """UniP-3 with UniC-3, of order 4 together; see ``unipc-2``.

    Its first step is UniPC-1, as published: an error O(h³) that caps the order at 3 where the prediction changes
    at the noise end (measured from t = 0.6: 3.6; with two single-step steps of order 3 first: 4).
    """
    yield from _unipc(grid, 3, variant, lower_order_below)


@register("unipc-4", order=5, predicts="x0", vary=_vary(4), reference=_PAPER)
def unipc_4(
    grid: Grid,
    *,
    variant: Annotated[str, _VARIANT] = "bh2",
    start: Annotated[str, START] = "lower-order",
    lower_order_below: Annotated[float, BELOW] = FEW,
) -> Iterator[Row]:
    """UniP-4 with UniC-4, of order 5 together; see ``unipc-2`` and, for the start, ``unipc-3``.

    The single-step start has order 3, which caps the order at 4; the lower-order one caps it at 3.
    """
    yield from _unipc(grid, 4, variant, lower_order_below)
