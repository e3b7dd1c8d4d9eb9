r"""The knots of a run: where a solver's steps begin and end.

A grid of N steps has N + 1 knots from t_max (noise) down to t_min (data), in float64, with λ strictly
increasing and both endpoints exact. Explicit times may start and end anywhere in that range.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sdekit.door import Evaluations, door
from sdekit.grid.named import GRIDS
from sdekit.names import check_options, lookup, options_of, parse
from sdekit.process import Knot, Process

GridSpec = str | Sequence[float]


@door
@dataclass(frozen=True)
class Grid:
    """The knots of a run and how many network evaluations each step may use.

    Iterating gives each step as (from, to, evaluations).

    >>> from sdekit.process import VP
    >>> [round(knot.t, 4) for knot in Grid.make(VP(), "time", 2).knots]
    [1.0, 0.5005, 0.001]
    """

    process: Process
    knots: tuple[Knot, ...]
    evaluations: tuple[int, ...]

    @classmethod
    @door
    def make(cls, process: Process, grid: GridSpec, evaluations: Evaluations | Sequence[Evaluations]) -> Grid:
        """That grid with one step for each entry of ``evaluations`` (or that many of one each).

        Args:
            grid: a name in ``GRIDS``, with options as in ``"karras(rho=5)"``, or the times themselves,
                strictly decreasing, within [t_min, t_max]. An end outside by a rounding is moved onto t_max or t_min.

        Raises ValueError for an unknown name, a non-monotone or out-of-range grid, or a wrong count.
        """
        budget = (1,) * evaluations if isinstance(evaluations, int) else tuple(evaluations)
        if isinstance(grid, str):
            times = _named_times(process, grid, len(budget))
        else:
            times = _explicit_times(process, [float(t) for t in grid], len(budget))
        knots = tuple(process.knot(t) for t in times)
        for s, t in zip(knots, knots[1:]):
            if not s.half_log_snr < t.half_log_snr < math.inf:
                raise ValueError(
                    f"grid={grid!r} with {len(budget)} steps: half_log_snr must increase, but from t={s.t} to {t.t}"
                    " it does not"
                )
        return cls(process, knots, budget)

    def __iter__(self) -> Iterator[tuple[Knot, Knot, int]]:
        return zip(self.knots, self.knots[1:], self.evaluations)

    def between(self, s: Knot, t: Knot, fraction: float) -> Knot:
        """The knot at λ_s + fraction (λ_t − λ_s)."""
        return self.process.knot_at(s.half_log_snr + fraction * (t.half_log_snr - s.half_log_snr))


def identified(spec: GridSpec) -> tuple[GridSpec, object]:
    """``spec`` as a key of a cache, and with it the function of a name: another grid may take the name later.

    >>> identified([1, 0.5])
    ((1.0, 0.5), None)
    """
    if isinstance(spec, str):
        return spec, GRIDS.get(parse(spec)[0])
    return tuple(float(t) for t in spec), None


def without_data(process: Process, spec: GridSpec) -> GridSpec:
    """``spec`` without a last time 0 that lies below t_min: lists of other libraries end with the denoised state.

    >>> from sdekit.process import EDM
    >>> without_data(EDM(), [80.0, 1.0, 0.0]), without_data(EDM(), "karras")
    ([80.0, 1.0], 'karras')
    """
    if isinstance(spec, str) or len(spec) < 3 or float(spec[-1]) != 0 or process.t_min == 0:
        return spec
    return spec[:-1]


_ROUNDING = 1e-6  # relative: a number of float32 that was computed in some steps


def _named_times(process: Process, spec: str, steps: int) -> list[float]:
    name, options = parse(spec)
    function = lookup("grid", name, GRIDS)
    check_options(name, options_of(function), options)
    # a grid whose knots are no function of the fraction alone declares ``steps``
    count = (steps,) if "steps" in inspect.signature(function).parameters else ()
    inner = [function(process, i / steps, *count, **options) for i in range(1, steps)]
    return [process.t_max, *inner, process.t_min]


def _explicit_times(process: Process, times: list[float], steps: int) -> list[float]:
    if len(times) != steps + 1:
        raise ValueError(f"grid: {len(times)} times given, {steps} steps need {steps + 1}")
    for s, t in zip(times, times[1:]):
        if not s > t:
            raise ValueError(f"grid: times must strictly decrease, from noise to data, but {s} is followed by {t}")
    times[0] = _onto(times[0], process.t_max, times[0] > process.t_max)
    times[-1] = _onto(times[-1], process.t_min, times[-1] < process.t_min)
    if not (times[0] <= process.t_max and times[-1] >= process.t_min):
        raise ValueError(
            f"grid: times from {times[0]} to {times[-1]} leave the process's range"
            f" [t_min, t_max] = [{process.t_min}, {process.t_max}]{_hint(process, times)}"
        )
    return times


def _onto(time: float, end: float, outside: bool) -> float:
    return end if outside and math.isclose(time, end, rel_tol=_ROUNDING) else time


def _hint(process: Process, times: list[float]) -> str:
    """What to give instead of an end that the process stops short of."""
    name, hints = type(process).__name__, ""
    if times[0] > process.t_max:
        hints += f"; begin at t_max, where named grids begin (t_max= of {name} says where that is)"
    if times[-1] == 0 < process.t_min:
        hints += (
            "; leave the 0 out: the final denoising, final='denoise' of sample, leads there from the time before it"
        )
    return hints
