"""UniPC: a unified predictor–corrector of any order, multistep, for the data prediction."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

import numpy as np

from sdekit.grid import Grid
from sdekit.names import OneOf
from sdekit.process import Knot
from sdekit.solvers.registry import register
from sdekit.solvers.tableau import Row

_B = {"bh1": lambda h: h, "bh2": math.expm1}


def _weights(ratios: list[float], h: float, scale: float) -> list[float]:
    """a_k with Σ_k a_k r_k^{n−1} B = n! h^n φ_{n+1}(h)/h^{n−1} for n = 1 … p (the paper's eq. 5 and 10)."""
    if len(ratios) == 1:
        return [0.5]  # satisfies the order condition for every B (the paper, after theorem 3.1)
    powers = np.vander(np.array(ratios), increasing=True).T
    value, right = math.expm1(h) / h - 1, []
    for n in range(1, len(ratios) + 1):
        right.append(value * math.factorial(n) / scale)
        value = value / h - 1 / math.factorial(n + 1)
    return np.linalg.solve(powers, np.array(right)).tolist()


def _row(s: Knot, t: Knot, others: list[Knot], newest: int, variant: str) -> tuple[float, list[float]]:
    """Anchor and weights of x_t from D at ``others`` and s; the weights in the order newest first.

    ``others`` holds the knots beside s, the one at t first if it is known (``newest`` = 1) and then the past.
    """
    h = s.half_log_snr - t.half_log_snr  # the paper's h has the other sign in data prediction
    scale = _B[variant](h)
    ratios = [(s.half_log_snr - other.half_log_snr) / h for other in others]
    weights = [a / r for a, r in zip(_weights(ratios, h, scale), ratios)] if others else []
    own = -t.alpha * (math.expm1(h) - scale * sum(weights))
    spread = [-t.alpha * scale * weight for weight in weights]
    return t.sigma / s.sigma, [*spread[:newest], own, *spread[newest:]]


def _unipc(grid: Grid, order: int, variant: str) -> Iterator[Row]:
    for i, (s, t, _) in enumerate(grid):
        last = i == len(grid.evaluations) - 1
        past = list(grid.knots[max(0, i - order + 1) : i])[::-1]
        anchor, weights = _row(s, t, past, 0, variant)
        yield Row(to=t, anchor=anchor, history=tuple(weights), evaluate=i == 0, commit=last)
        if not last:  # the corrector uses the evaluation that the next predictor needs anyway
            anchor, weights = _row(s, t, [t, *past], 1, variant)
            yield Row(to=t, anchor=anchor, history=tuple(weights))


@register("unipc-2", order=3, predicts="x0", reference="Zhao et al. 2023 (UniPC), algorithm 5 and 6")
def unipc_2(grid: Grid, *, variant: Annotated[str, OneOf("bh1", "bh2")] = "bh2") -> Iterator[Row]:
    """UniP-2 with UniC-2, of order 3 together: predict x_t, evaluate there, correct x_t, go on from that evaluation.

    ``variant`` is the paper's B(h): "bh1" is h, "bh2" is e^h − 1. The last step is not corrected.
    """
    yield from _unipc(grid, 2, variant)
