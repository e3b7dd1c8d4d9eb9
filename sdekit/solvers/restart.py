"""Restart: solve the ODE, then put noise back over an interval and solve it again, some times over."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any

from sdekit.grid import Grid
from sdekit.names import Between, OneOf
from sdekit.solvers.edm import heun_step, noise_ratio
from sdekit.solvers.registry import register
from sdekit.solvers.tableau import Draw, Row


def _interval(steps: int, low: float, high: float) -> tuple[int, int]:
    """How many steps a restart repeats, and the knot at which it ends; ``low`` and ``high`` are shares of the steps."""
    span = max(1, math.floor((high - low) * steps + 1e-9))
    return span, min(steps, max(span, round(high * steps)))


@lru_cache
def _split(repeats: int, low: float, high: float) -> Callable[[int], Sequence[int]]:
    """Two evaluations a step; the step that ends the interval gets those of the restarts, and what is left over."""

    def split(budget: int) -> Sequence[int]:
        pairs = budget // 2
        steps = min(2, pairs)
        while steps > 1 and steps + 1 + repeats * _interval(steps + 1, low, high)[0] <= pairs:
            steps += 1
        evaluations = [2] * steps
        if steps:
            evaluations[_interval(steps, low, high)[1] - 1] += 2 * (pairs - steps)
        return [*evaluations, *[1] * (budget % 2)]

    return split


def _vary(repeats: int, low: float, high: float) -> Mapping[str, Any]:
    if not low < high:
        raise ValueError(f"restart: low={low}, high={high}: the interval needs low < high")
    return {"split": _split(repeats, low, high)}


@register(
    "restart", order=2, evaluations=2, predicts="eps", vary=_vary, split=_split(2, 0.5, 0.75),
    reference="Xu et al. 2023 (Restart Sampling), algorithm 1",
)  # fmt: skip
def restart(
    grid: Grid,
    *,
    repeats: Annotated[int, OneOf(1, 2, 3, 4, 5, 6, 8, 10, 15, 20)] = 2,
    low: Annotated[float, Between(0, 1)] = 0.5,
    high: Annotated[float, Between(0, 1)] = 0.75,
) -> Iterator[Row]:
    """``heun``, and at the end of the interval ``repeats`` times: y += √(κ_max² − κ_min²) z, ``heun`` down again.

    The interval lies between the knots at the shares ``low`` and ``high`` of the steps. (The paper gives its ends in
    κ = σ/α, and the repeats a grid of their own; here they take the knots of the run.) Evaluations left over make
    further restarts, the last of them shorter. z are named by equal parts of the run's λ-range, one for each restart.
    """
    span, _ = _interval(sum(count > 1 for count in grid.evaluations), low, high)
    again = (max(grid.evaluations) - 2) // 2
    spans = [min(span, again - done) for done in range(0, again, span)]
    start, end = grid.knots[0].half_log_snr, grid.knots[-1].half_log_snr
    edges = [start + (end - start) * i / max(1, len(spans)) for i in range(len(spans) + 1)]
    for i, (s, t, count) in enumerate(grid):
        yield from heun_step(s, t, min(count, 2))
        for span, begin, stop in zip(spans if count > 2 else (), edges, edges[1:]):
            up = grid.knots[i + 1 - span]
            noise = Draw(up.alpha * math.sqrt(noise_ratio(up) ** 2 - noise_ratio(t) ** 2), begin, stop)
            yield Row(to=up, anchor=up.alpha / t.alpha, noise=(noise,), evaluate=False)
            for above, below in zip(grid.knots[i + 1 - span : i + 1], grid.knots[i + 2 - span :]):
                yield from heun_step(above, below, 2)
