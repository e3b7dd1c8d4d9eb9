"""The default: a solver and a grid for each number of evaluations, found by measuring; and its stochastic sibling."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from sdekit.grid import Grid
from sdekit.solvers.registry import Solver, get, register
from sdekit.solvers.tableau import Row

CHOICES: dict[int, tuple[str, str]] = {
    1: ("ipndm-2", "vp-time(power=3)"),
    5: ("ipndm-3", "vp-time(power=3)"),
    6: ("ipndm-3", "vp-time(power=2.5)"),
    8: ("ipndm", "vp-time(power=3)"),
    10: ("ipndm", "vp-time(power=2.5)"),
    19: ("unipc-3(variant='bh1')", "vp-time(power=4, blend=0.4)"),
}
"""From each number of evaluations up to the next: the solver and its grid. A final denoising is not counted.

Of 105 fixed choices the one that is nearest to the best in the mean over 16 problems of ``benchmarks/auto.py``, by the
median and by the 90% quantile of the error; neighbours that differ by less than a tenth were made one. On nine problems
that had no say it is as good, and none chosen on all 25 is better. No fixed choice is near the best everywhere: see the
page on ``auto``.
"""
SAFE = "ipndm-2"
"""On a grid that the user gives: of those that are at most 2.1 times as far off as DDIM on each grid and problem that
was measured, the nearest to the best in the median."""


SDE_CHOICES: dict[int, tuple[str, str]] = {
    1: ("dpmpp-2m-sde(eta=0.5)", "logsnr"),
    25: ("er-sde-3", "vp-time(power=4, blend=0.4)"),
}
"""As ``CHOICES``, by sliced Wasserstein to the data over four trained networks (``benchmarks/auto_sde.py``)."""
SDE_SAFE = "dpmpp-2m-sde(eta=0.5)"


@lru_cache
def choose(evaluations: int, own_grid: bool = True) -> Solver:
    """``auto``'s solver for that many evaluations, with its own grid, or for a grid that is given.

    >>> choose(10).name, choose(10).grid, choose(10, own_grid=False).name
    ('ipndm', 'vp-time(power=2.5)', 'ipndm-2')
    """
    return _chosen(CHOICES, SAFE, evaluations, own_grid)


@lru_cache
def choose_sde(evaluations: int, own_grid: bool = True) -> Solver:
    """``auto-sde``'s solver, as ``choose`` is ``auto``'s.

    >>> choose_sde(20).label, choose_sde(49).grid
    ('dpmpp-2m-sde(eta=0.5)', 'vp-time(power=4, blend=0.4)')
    """
    return _chosen(SDE_CHOICES, SDE_SAFE, evaluations, own_grid)


def _chosen(choices: dict[int, tuple[str, str]], safe: str, evaluations: int, own_grid: bool) -> Solver:
    if not own_grid:
        return get(safe)
    counts = list(choices)
    solver, grid = choices[counts[bisect.bisect_right(counts, evaluations) - 1]]
    return replace(get(solver), grid=grid)


@register(
    "auto",
    order=1,
    predicts="eps",
    choose=choose,
    reference="measured; iPNDM (Zhang & Chen 2023), UniPC (Zhao et al. 2023)",
)
def auto(grid: Grid) -> Iterator[Row]:
    """The solver and the grid that measured best for the number of evaluations: iPNDM, and UniPC from 19 on.

    Deterministic. All of its choices give the same samples under every process and every prediction, and the grid is
    laid in λ, so the number of evaluations is all that it looks at. With ``grid=`` it is ``ipndm-2``, which is safe on
    every grid (order 1, on smooth ones 2); on its own grid, with many steps, UniPC has order 4. ``plan`` shows the
    table; ``sdekit.solvers.auto.choose(n)`` says which solver it is.
    """
    yield from get(SAFE).rows(grid)


@register(
    "auto-sde",
    order=2,
    predicts="x0",
    choose=choose_sde,
    reference="measured; DPM-Solver++ SDE (Lu et al. 2022), ER-SDE (Cui et al. 2023)",
)
def auto_sde(grid: Grid) -> Iterator[Row]:
    """The stochastic solver and grid whose samples were nearest to the data: for the look of samples, not for the ODE.

    Noise corrects what the network gets wrong, which from some twenty evaluations on is all that is left of an ODE's
    error. It was chosen on networks of images, and on other problems it is often the worse one: see the page on
    ``auto``. With ``grid=`` it is ``dpmpp-2m-sde(eta=0.5)``.
    """
    safe = get(SDE_SAFE)
    yield from safe.rows(grid, **dict(safe.options))
