"""Song et al.'s predictor, and predictor–corrector with Langevin steps of a size known beforehand.

The published corrector scales its step by the norms of the score and of the noise at that moment, which no table can
hold (``sdekit.Langevin`` does that, after the steps of any solver); in high dimension ‖z‖/‖s‖ is close to σ, and that
is the step here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

from sdekit.grid import Grid
from sdekit.names import Between, OneOf
from sdekit.process import Knot, Process
from sdekit.solvers.registry import full_steps, register
from sdekit.solvers.tableau import Draw, Row

_PAPER = "Song et al. 2021"


def _reverse_diffusion(process: Process, s: Knot, t: Knot) -> tuple[float, float, float]:
    scale, std = process.transition(t.t, s.t)
    return 2 - scale, std**2, std


def _euler_maruyama(process: Process, s: Knot, t: Knot) -> tuple[float, float, float]:
    step, g = s.t - t.t, process.diffusion(s.t)
    return 1 - process.drift_rate(s.t) * step, g**2 * step, g * math.sqrt(step)


_PREDICTORS: dict[str, Callable[[Process, Knot, Knot], tuple[float, float, float]]] = {
    "reverse-diffusion": _reverse_diffusion,
    "euler-maruyama": _euler_maruyama,
}


@register("reverse-diffusion", order=1, predicts="score", invariant=False, reference=f"{_PAPER}, appendix E, eq. 46")
def reverse_diffusion(grid: Grid) -> Iterator[Row]:
    """x_t = (2 − a) x_s + b² s + b z, with the forward process' transition x_s = a x_t + b z from t to s.

    For a table a = √(1 − β), b² = β; for VE a = 1, b² = σ_s² − σ_t².
    """
    for s, t, _ in grid:
        anchor, weight, std = _reverse_diffusion(grid.process, s, t)
        yield Row(to=t, anchor=anchor, history=(weight,), noise=(Draw(std, s.half_log_snr, t.half_log_snr),))


def _parts(s: Knot, t: Knot, count: int) -> list[tuple[float, float]]:
    """``count`` adjoining λ-intervals from s to t: a name for each draw of the step."""
    start, h = s.half_log_snr, t.half_log_snr - s.half_log_snr
    edges = [start + h * i / count for i in range(count)] + [t.half_log_snr]
    return list(zip(edges, edges[1:]))


def _vary_pc(predictor: str, corrections: int, snr: float) -> Mapping[str, Any]:
    return {"evaluations": 1 + corrections, "split": full_steps(1 + corrections)}


@register(
    "pc",
    order=1,
    evaluations=2,
    predicts="score",
    invariant=False,
    pathwise=False,
    vary=_vary_pc,
    reference=f"{_PAPER}, algorithms 2, 4 and 5",
)
def pc(
    grid: Grid,
    *,
    predictor: Annotated[str, OneOf(*_PREDICTORS)] = "reverse-diffusion",
    corrections: Annotated[int, OneOf(1, 2, 3, 4, 5)] = 1,
    snr: Annotated[float, Between(0.001, 1)] = 0.16,
) -> Iterator[Row]:
    """A predictor's step to t, then Langevin steps there: x += ε s + √(2ε) z with ε = 2a² (r σ)², r = ``snr``.

    a is α_s/α_t of the step, so that a² = 1 − β for a table and 1 for VE. Where the paper has ‖z‖/‖s‖ this has σ.
    Order 1 as long as the predictor's error leads; a Langevin step of that size leaves a relative bias of about
    (r σ)²/(2 var x) in the variance, which does not fall with the steps. Path by path there is no limit: corrections
    draw new noise however small the steps are. z are named by equal parts of the step's λ-interval.
    """
    for s, t, evaluations in grid:
        anchor, weight, std = _PREDICTORS[predictor](grid.process, s, t)
        size = 2 * (s.alpha / t.alpha * snr * t.sigma) ** 2
        stds = [std] + [math.sqrt(2 * size)] * (evaluations - 1)
        noise = [Draw(c, *part) for c, part in zip(stds, _parts(s, t, evaluations))]
        for done in range(evaluations):
            yield Row(
                to=t,
                anchor=anchor,
                history=(*[size] * done, weight),
                noise=tuple(noise[: done + 1]),
                commit=done == evaluations - 1,
            )
