"""PNDM and iPNDM: Adams–Bashforth coefficients of equal steps, with DDIM as the transfer from knot to knot.

Where neighbouring steps differ, coefficients of equal steps have order 1: that is the order stated. On a smooth grid (a
smooth function of i/N, as most named ones are) neighbours become equal, and the order is 2. On equal steps in κ = σ/α,
in which the ODE is d(x/α)/dκ = ε, it is the name's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Annotated

from sdekit.grid import Grid
from sdekit.names import Between
from sdekit.process import Knot
from sdekit.solvers.classical import Variable, constant_eps, runge_kutta, time_between
from sdekit.solvers.dpm_solver import single_step
from sdekit.solvers.multistep import BELOW, NEVER, multistep
from sdekit.solvers.registry import register, starting
from sdekit.solvers.tableau import Row, quadrature

_IPNDM = "Zhang & Chen 2023 (DEIS), iPNDM"
_pseudo = Variable(time_between, constant_eps)


@cache
def _equal_steps(order: int) -> list[float]:
    """Adams–Bashforth's weights for equal steps: 1; 3/2, −1/2; 23/12, −16/12, 5/12; …"""
    return quadrature([-j for j in range(order)], [1 / (k + 1) for k in range(order)])


def _weigh(s: Knot, t: Knot, past: Sequence[Knot]) -> tuple[float, Sequence[float]]:
    anchor, step = constant_eps(s, t)
    return anchor, [step * weight for weight in _equal_steps(len(past))]


def _pseudo_runge_kutta(grid: Grid, s: Knot, t: Knot, evaluations: int) -> Iterator[Row]:
    yield from runge_kutta(grid, s, t, evaluations, _pseudo)


@register(
    "pndm",
    order=1,
    predicts="eps",
    invariant=False,
    split=starting(4, 3),
    reference="Liu et al. 2022 (PNDM), algorithm 2",
)
def pndm(grid: Grid, *, lower_order_below: Annotated[float, BELOW] = NEVER) -> Iterator[Row]:
    """PNDM: three pseudo Runge–Kutta steps of 4 evaluations, then the pseudo linear multistep method, one each.

    Each step is DDIM with ε replaced by a combination of predictions: Runge–Kutta's over the middle and the end of
    the step in t, then Adams–Bashforth's with the coefficients of equal steps. A budget under 12 starts with as many
    full Runge–Kutta steps as it has; a rest of 3 or 2 is a step of Kutta's or Heun's method.

    Order 1, and not 4: the combination is right for an ε that is integrated over equal steps, but DDIM integrates it
    over σ/α. On smooth grids the order is 2; with equal steps in σ/α, ``ipndm-4``, which is this without the start, has
    order 4.
    """
    yield from multistep(grid, 4, _weigh, _pseudo_runge_kutta, lower_order_below)


@register("ipndm-1", order=1, predicts="eps", reference=_IPNDM)
def ipndm_1(grid: Grid) -> Iterator[Row]:
    """iPNDM of order 1, which is DDIM."""
    yield from multistep(grid, 1, _weigh, partial(single_step, "eps"))


@register("ipndm-2", order=1, predicts="eps", reference=_IPNDM)
def ipndm_2(grid: Grid, *, lower_order_below: Annotated[float, BELOW] = NEVER) -> Iterator[Row]:
    """DDIM with ε replaced by 3/2 ε − 1/2 ε_{−1}, the Adams–Bashforth combination of equal steps.

    Order 1, and not 2: the coefficients are those of equal steps in σ/α. On smooth grids the order is 2.
    """
    yield from multistep(grid, 2, _weigh, partial(single_step, "eps"), lower_order_below)


@register("ipndm-3", order=1, predicts="eps", reference=_IPNDM)
def ipndm_3(grid: Grid, *, lower_order_below: Annotated[float, BELOW] = NEVER) -> Iterator[Row]:
    """DDIM with ε replaced by (23 ε − 16 ε_{−1} + 5 ε_{−2})/12; the first steps use the lower orders.

    Order 1, and not 3: the coefficients are those of equal steps in σ/α. There the order is 3, on smooth grids 2;
    ``ipndm-v(order=3)`` has 3 on every grid.
    """
    yield from multistep(grid, 3, _weigh, partial(single_step, "eps"), lower_order_below)


@register("ipndm-4", order=1, predicts="eps", reference=_IPNDM)
def ipndm_4(grid: Grid, *, lower_order_below: Annotated[float, BELOW] = NEVER) -> Iterator[Row]:
    """DDIM with ε replaced by (55 ε − 59 ε_{−1} + 37 ε_{−2} − 9 ε_{−3})/24; the first steps use the lower orders.

    Order 1, and not 4: the coefficients are those of equal steps in σ/α. There the order is 4, on smooth grids 2;
    ``ipndm-v`` has 4 on every grid.
    """
    yield from multistep(grid, 4, _weigh, partial(single_step, "eps"), lower_order_below)


_ORDER = Between(1, 6)


@register("ipndm", order=1, predicts="eps", reference=f"{_IPNDM}; the order falls along the run")
def ipndm(grid: Grid, *, first: Annotated[float, _ORDER] = 4.0, last: Annotated[float, _ORDER] = 3.0) -> Iterator[Row]:
    """iPNDM whose order goes from ``first`` to ``last``, linearly over the steps; between two orders it mixes both.

    At the noise end, where ε changes little, a high order is right; near the data, where it changes fast, a high order
    overshoots. ``ipndm-4`` is first = last = 4. As there, the order is 1, and 2 on smooth grids.
    """
    steps = len(grid.evaluations)
    for past, (s, t, _) in enumerate(grid, start=1):
        order = first + (last - first) * (past - 1) / max(1, steps - 1)
        low, share = int(order), order - int(order)
        anchor, step = constant_eps(s, t)
        weights = [0.0] * min(past, low + (share > 0))
        for part, mixed in ((low, 1 - share), (low + 1, share)):
            for j, weight in enumerate(_equal_steps(min(part, past))[: len(weights)]):
                weights[j] += mixed * step * weight
        yield Row(to=t, anchor=anchor, history=tuple(weights))
