"""The default: a solver and a grid for each number of evaluations, found by measuring."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from sdekit.grid import Grid
from sdekit.solvers.registry import Solver, get, register
from sdekit.solvers.tableau import Row

CHOICES: dict[int, tuple[str, str]] = {
    1: ("ipndm-2", "vp-time(power=2.5)"),
    3: ("ipndm-2", "vp-time(power=4)"),
    4: ("ipndm-3", "vp-time(power=4)"),
    5: ("ipndm(first=3.18, last=2.82)", "vp-time(power=2.5)"),
    6: ("ipndm(first=2.85, last=2.92)", "vp-time(power=2.43)"),
    7: ("ipndm(first=3.92, last=3.04)", "vp-time(power=2.42)"),
    8: ("ipndm(first=5.52, last=3.15)", "vp-time(power=2.42)"),
    9: ("ipndm(first=4.56, last=3.12)", "vp-time(power=2.25)"),
    10: ("ipndm(first=4.12, last=3.09)", "vp-time(power=2.08)"),
    11: ("ipndm(first=4, last=3)", "vp-time(power=2.1)"),
    12: ("ipndm(first=3.63, last=3.03)", "vp-time(power=1.9)"),
    13: ("ipndm(first=4, last=3)", "vp-time(power=2.1)"),
    15: ("ipndm(first=4.36, last=4.55)", "vp-time(power=3.59)"),
    18: ("unipc-3(variant='bh1')", "vp-time(power=3.4)"),
    24: ("unipc-3", "vp-time(power=4.1, blend=0.41)"),
    40: ("unipc-4", "vp-time(power=3)"),
}
"""From each number of evaluations up to the next: the solver and its grid.

Found by a random search over a few numbers at each budget, for the error of both problems of ``benchmarks/quality.py``
in the root mean square, and of seven more in the median. Each number of evaluations is a step's: a final denoising is
not counted.
"""


@lru_cache
def choose(evaluations: int) -> Solver:
    """``auto``'s solver for that many evaluations, with its own grid.

    >>> choose(10).options, choose(10).grid
    ((('first', 4.12), ('last', 3.09)), 'vp-time(power=2.08)')
    """
    counts = list(CHOICES)
    solver, grid = CHOICES[counts[bisect.bisect_right(counts, evaluations) - 1]]
    return replace(get(solver), grid=grid)


@register(
    "auto",
    order=5,
    predicts="eps",
    choose=choose,
    reference="measured; iPNDM (Zhang & Chen 2023), UniPC (Zhao et al. 2023)",
)
def auto(grid: Grid) -> Iterator[Row]:
    """The solver and the grid that measured best for the number of evaluations: ``ipndm`` up to 17, then ``unipc``.

    Deterministic. All of its choices give the same samples under every process and every prediction, and the grid is
    laid in λ, so the number of evaluations is all that it looks at. ``grid=`` overrides the grid. ``plan`` shows the
    table; ``sdekit.solvers.auto.choose(n)`` says which solver it is.
    """
    chosen = choose(len(grid.evaluations))
    yield from chosen.rows(grid, **dict(chosen.options))
