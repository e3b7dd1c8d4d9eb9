r"""One curve of knots and weights, by few numbers, that gives a table for every number of evaluations.

With u = i/N along a run of N steps, and a solver of the registry on a grid λ(u):

    λ_i = λ(u + u(1 − u) Σ_k c_k P_k(u))            the grid, warped
    b_ij += f_j(i) |Σ_j b_ij|,   a_i ·= 1 + f(i)    the solver's weights on those knots, and what is added to them
    told_i = λ_i + f(i) (λ_{i+1} − λ_i)             the time told to the network

P_k are Legendre polynomials on [0, 1], and each f(i) = Σ_p (4/N)^p Σ_k c_pk φ_k(i), p = 1, 2, with φ such
polynomials of i/(N − 1) and one number each for the first, the second and the last row, where a multistep method starts
and ends. As N grows f vanishes, and with it what the curve adds to a method that converges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from sdekit.grid import Grid
from sdekit.process import Process
from sdekit.solvers import get
from sdekit.tuning.table import Table

WARP, DEGREES, LAGS, POWERS = 6, 6, 3, 2
FIELDS = 2 + LAGS
"""Of a_i, of the time told, and of the newest weights."""
COUNT = WARP + FIELDS * POWERS * (DEGREES + 3)
"""How many numbers a curve has."""
_DENSE, _STEP = 480, 1e-4


@dataclass(frozen=True)
class Curve:
    """A solver and a grid of the registry, and the numbers that bend them; all 0 leave them as they are.

    >>> from sdekit.process import VP
    >>> straight = Curve(VP(), "dpmpp-2m", "logsnr", (0.0,) * COUNT)
    >>> straight.table(6).nfe, [round(t, 3) for t in straight.table(3).times]
    (6, [1.0, 0.604, 0.075])
    """

    process: Process
    solver: str
    grid: str
    numbers: tuple[float, ...]

    def bent(self, numbers: Sequence[float]) -> Curve:
        return replace(self, numbers=tuple(float(number) for number in numbers))

    @cached_property
    def _fields(self) -> np.ndarray:
        return np.array(self.numbers[WARP:]).reshape(FIELDS, POWERS, DEGREES + 3)

    def table(self, nfe: int) -> Table:
        """The table of ``nfe`` evaluations. Raises ValueError where the knots do not rise in λ, or the times told."""
        process = self.process
        levels, table = _unbent(process, self.solver, self.grid, self.numbers[:WARP], nfe)
        powers = (4 / nfe) ** np.arange(1, POWERS + 1)
        anchor, told, *lags = np.einsum("fpk,p,ki->fi", self._fields, powers, _rows(nfe))
        told = levels[1:-1] + told[1:] * np.diff(levels)[1:]
        if not (np.diff([levels[0], *told, levels[-1]]) > 0).all():
            raise ValueError(f"nfe={nfe}: the times told do not fall")
        history = [np.array(weights) for weights in table.history]
        for i, weights in enumerate(history):
            unit = abs(weights.sum())
            for lag in range(min(LAGS, i + 1)):
                weights[i - lag] += unit * lags[lag][i]
        times = (process.t_max, *(process.t_of_half_log_snr(float(level)) for level in told))
        anchors = tuple((np.array(table.anchor) * (1 + anchor)).tolist())
        return Table(table.predicts, times, anchors, tuple(tuple(weights.tolist()) for weights in history))


@lru_cache(maxsize=1024)  # all but WARP of the numbers leave it as it is
def _unbent(process: Process, solver: str, grid: str, warp: tuple[float, ...], nfe: int) -> tuple[np.ndarray, Table]:
    """λ at the N + 1 knots, and the solver's own table on them."""
    u = np.linspace(0, 1, nfe + 1)
    u = u + u * (1 - u) * (_legendre(u, WARP).T @ np.array(warp))
    if not (np.diff(u) > 0).all():
        raise ValueError(f"nfe={nfe}: the knots do not rise")
    levels = np.interp(u, np.linspace(0, 1, _DENSE + 1), _dense(process, grid))
    times = [process.t_max, *(process.t_of_half_log_snr(float(level)) for level in levels[1:-1]), process.t_min]
    return levels, Table.of(get(solver).make_plan(process, nfe, None, times, "reuse"), process)


@lru_cache(maxsize=64)
def _dense(process: Process, grid: str) -> np.ndarray:
    return np.array([knot.half_log_snr for knot in Grid.make(process, grid, _DENSE).knots])


def _legendre(u: np.ndarray, count: int) -> np.ndarray:
    return np.polynomial.legendre.legvander(2 * u - 1, count - 1).T


def derivative(curve: Curve, nfe: int, vector: Callable[[Table], np.ndarray]) -> np.ndarray:
    """∂ vector(table)/∂ numbers [numbers, …], by central differences."""
    columns, numbers = list[np.ndarray](), np.array(curve.numbers)
    for k in range(COUNT):
        step = np.zeros(COUNT)
        step[k] = _STEP
        up, down = (vector(curve.bent((numbers + sign * step).tolist()).table(nfe)) for sign in (1, -1))
        columns.append((up - down) / (2 * _STEP))
    return np.array(columns)


@lru_cache(maxsize=64)
def _rows(nfe: int) -> np.ndarray:
    """φ_k(i) [k, i]."""
    ends = np.eye(nfe)[[0, 1, nfe - 1]]
    return np.concatenate([_legendre(np.linspace(0, 1, nfe), DEGREES), ends])
