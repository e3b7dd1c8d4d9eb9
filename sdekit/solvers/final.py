r"""The last denoising without an evaluation: the noise left at the end is taken off with the predictions already made.

At the last knot x = α x_0 + σ ε. What a run knows of that noise is what it drew in its last step, Σ c z, and its
predictions of ε on the way, extrapolated from the places κ = σ/α where they were made. So

    x_0 = (x − √(σ² − Σ c²) ε̂ − Σ c z)/α,        ε̂ the polynomial in κ through the last ε, at the end.

As x is linear in what came before, ε of a solver that predicts x_0 or v is a combination of x and of the history, too:
the result is one more row of the table. A last row that keeps nothing of x keeps none of its noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sdekit.grid import GridSpec
from sdekit.names import unknown
from sdekit.prediction import convert
from sdekit.process import Knot, Process
from sdekit.solvers.tableau import DATA, Coefficient, Draw, Plan, Row, quadrature

FINALS = ("auto", "reuse", "denoise", "none")
LEAST, FEW = 0.02, 20
"""``"auto"`` evaluates where σ/α at the end is above ``LEAST``, and from ``FEW`` evaluations on.

Measured on mixtures of modes of width 0.1: without that evaluation the error is 0.3 to 1 times the one with it where
σ/α is up to 0.02, and 1.5 to 3 times from 0.08 on. What a network predicts at the end is no smooth continuation: from
20 evaluations on the last one costs less than it gives.
"""
Interval = tuple[float, float]
_ROUNDING = 1e-9


def resolve(final: str, process: Process, nfe: int | None, steps: int | None, grid: GridSpec) -> str:
    """``"auto"`` as one of the others; a run of explicit times evaluates at the last, too, unless ``nfe`` is one less.

    >>> from sdekit.process import VP
    >>> resolve("auto", VP(), 10, None, "logsnr"), resolve("auto", VP(t_min=0.1), 10, None, "logsnr")
    ('reuse', 'denoise')
    """
    if final not in FINALS:
        raise unknown("final", final, FINALS)
    if final != "auto":
        return final
    if not isinstance(grid, str):
        return "reuse" if nfe == len(grid) - 1 else "denoise"
    small = math.exp(-process.half_log_snr(process.t_min)) <= LEAST
    return "reuse" if small and (nfe or steps or 0) < FEW else "denoise"


@dataclass(frozen=True)
class _Sum:
    """end·(x at the end) + Σ_e F[e]·(prediction e, counted from 0) + Σ z + shift."""

    end: Coefficient = 0.0
    F: Mapping[int, Coefficient] = field(default_factory=dict[int, Coefficient])
    z: Mapping[Interval, Coefficient] = field(default_factory=dict[Interval, Coefficient])
    shift: Coefficient = 0.0

    def plus(self, other: _Sum, factor: Coefficient = 1.0) -> _Sum:
        """self + factor·other."""

        def both(mine: Mapping[Any, Coefficient], more: Mapping[Any, Coefficient]) -> dict[Any, Coefficient]:
            return {key: mine.get(key, 0.0) + factor * more.get(key, 0.0) for key in {**mine, **more}}

        return _Sum(
            self.end + factor * other.end,
            both(self.F, other.F),
            both(self.z, other.z),
            self.shift + factor * other.shift,
        )

    def times(self, factor: Coefficient) -> _Sum:
        return _Sum().plus(self, factor)


@dataclass(frozen=True)
class _Made:
    """A prediction: its number, where it was made, the row before which it was, and its ``linear``."""

    number: int
    place: Knot
    row: int
    linear: Coefficient | None


def reuse(process: Process, plan: Plan, points: int) -> Row:
    """The row that denoises the end of ``plan`` with at most its last ``points`` predictions; it evaluates nothing.

    >>> from sdekit.process import VP
    >>> from sdekit.solvers import get
    >>> plan = get("ddim").plan(VP(), nfe=3, final="none")
    >>> end, row = plan.rows[-1].to, reuse(VP(), plan, 1)
    >>> row.evaluate, abs(row.history[0] + end.sigma / end.alpha) < 1e-12
    (False, True)
    """
    rows, end = plan.rows, plan.rows[-1].to
    drawn = _Sum(z={(draw.start, draw.end): draw.coefficient for draw in rows[-1].noise})
    left = end.sigma**2 - sum(float(draw.coefficient) ** 2 for draw in rows[-1].noise)
    noise = drawn
    if left > _ROUNDING * end.sigma**2 and _keeps(rows[-1]):
        made = _newest(plan, points)
        kappas = [math.exp(-one.place.half_log_snr) for one in made]
        last = math.exp(-end.half_log_snr)
        weights = quadrature([kappa / last for kappa in kappas], [1.0] * len(made))  # the polynomial's value at the end
        for one, weight in zip(made, weights):
            noise = noise.plus(_eps(process, plan, one), math.sqrt(left) * weight)
    x0 = _Sum(end=1.0).plus(noise, -1.0).times(1 / end.alpha)
    oldest, count = min(x0.F, default=plan.nfe), plan.nfe
    return Row(
        to=DATA,
        anchor=x0.end,
        history=tuple(x0.F.get(number, 0.0) for number in range(count - 1, oldest - 1, -1)),
        noise=tuple(Draw(c, start, stop) for (start, stop), c in x0.z.items()),
        evaluate=False,
        shift=x0.shift if isinstance(x0.shift, Tensor) or x0.shift else None,
    )


def _newest(plan: Plan, points: int) -> list[_Made]:
    """The last predictions, newest first, as long as each was made at a higher noise than the one after it."""
    made, here = list[_Made](), plan.start
    for i, row in enumerate(plan.rows):
        if row.evaluate:
            made.append(_Made(len(made), here, i, row.linear))
        here = row.to
    chosen = [made[-1]]
    for one in made[-2::-1]:
        if len(chosen) == points or not one.place.half_log_snr < chosen[-1].place.half_log_snr:
            break
        chosen.append(one)
    return chosen


def _eps(process: Process, plan: Plan, made: _Made) -> _Sum:
    """ε of a prediction."""
    c_x, c_F = convert(plan.predicts, "eps", process, made.place.t)  # noqa: N806
    own = _Sum(F={made.number: c_F})
    factor: Coefficient = c_x if made.linear is None else c_x + c_F * made.linear
    if isinstance(factor, float) and abs(factor) == 0:
        return own
    return own.plus(_state(plan, made.row), factor)


def _state(plan: Plan, row: int) -> _Sum:
    """x before that row: each step, x_after = a x_before + rest, is undone, from the end backwards."""
    rows, counts = plan.rows, _counts(plan.rows)
    x = _Sum(end=1.0)
    for i in range(len(rows) - 1, row - 1, -1):
        if rows[i].commit:  # the anchor of its step
            x = x.plus(_rest(rows[i], counts[i]), -1.0).times(1 / rows[i].anchor)
    if row == 0 or rows[row - 1].commit:
        return x
    return x.times(rows[row - 1].anchor).plus(_rest(rows[row - 1], counts[row - 1]))


def _keeps(row: Row) -> bool:
    return isinstance(row.anchor, Tensor) or abs(row.anchor) > 0


def _counts(rows: Sequence[Row]) -> list[int]:
    """How many predictions were made up to each row."""
    total, counts = 0, list[int]()
    for row in rows:
        total += row.evaluate
        counts.append(total)
    return counts


def _rest(row: Row, count: int) -> _Sum:
    """What a row adds to its anchor's part."""
    return _Sum(
        F={count - 1 - j: weight for j, weight in enumerate(row.history)},
        z={(draw.start, draw.end): draw.coefficient for draw in row.noise},
        shift=0.0 if row.shift is None else row.shift,
    )
