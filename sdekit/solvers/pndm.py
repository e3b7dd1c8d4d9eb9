"""PNDM and iPNDM: Adams–Bashforth coefficients of equal steps, with DDIM as the transfer from knot to knot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from sdekit.grid import Grid
from sdekit.process import Knot
from sdekit.solvers.classical import Variable, constant_eps, runge_kutta, time_between
from sdekit.solvers.dpm_solver import single_step
from sdekit.solvers.multistep import multistep
from sdekit.solvers.registry import register, starting
from sdekit.solvers.tableau import Row

_IPNDM = "Zhang & Chen 2023 (DEIS), iPNDM"
_EQUAL_STEPS = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
_pseudo = Variable(time_between, constant_eps)


def _weigh(s: Knot, t: Knot, past: Sequence[Knot]) -> tuple[float, Sequence[float]]:
    anchor, step = constant_eps(s, t)
    return anchor, [step * weight for weight in _EQUAL_STEPS[len(past)]]


def _pseudo_runge_kutta(grid: Grid, s: Knot, t: Knot, evaluations: int) -> Iterator[Row]:
    yield from runge_kutta(grid, s, t, evaluations, _pseudo)


@register(
    "pndm",
    order=2,
    predicts="eps",
    invariant=False,
    split=starting(4, 3),
    reference="Liu et al. 2022 (PNDM), algorithm 2",
)
def pndm(grid: Grid) -> Iterator[Row]:
    """PNDM: three pseudo Runge–Kutta steps of 4 evaluations, then the pseudo linear multistep method, one each.

    Each step is DDIM with ε replaced by a combination of predictions: Runge–Kutta's over the middle and the end of
    the step in t, then Adams–Bashforth's with the coefficients of equal steps. A budget under 12 starts with as many
    full Runge–Kutta steps as it has; a rest of 3 or 2 is a step of Kutta's or Heun's method.

    Order 2, and not 4: the combination is right for an ε that is integrated over equal steps, but DDIM integrates it
    over σ/α. On a grid with equal steps in σ/α, ``ipndm-4``, which is this without the start, has order 4.
    """
    yield from multistep(grid, 4, _weigh, _pseudo_runge_kutta)


@register("ipndm-1", order=1, predicts="eps", reference=_IPNDM)
def ipndm_1(grid: Grid) -> Iterator[Row]:
    """iPNDM of order 1, which is DDIM."""
    yield from multistep(grid, 1, _weigh, partial(single_step, "eps"))


@register("ipndm-2", order=2, predicts="eps", reference=_IPNDM)
def ipndm_2(grid: Grid) -> Iterator[Row]:
    """DDIM with ε replaced by 3/2 ε − 1/2 ε_{−1}, the Adams–Bashforth combination of equal steps.

    Order 2 on every smooth grid.
    """
    yield from multistep(grid, 2, _weigh, partial(single_step, "eps"))


@register("ipndm-3", order=2, predicts="eps", reference=_IPNDM)
def ipndm_3(grid: Grid) -> Iterator[Row]:
    """DDIM with ε replaced by (23 ε − 16 ε_{−1} + 5 ε_{−2})/12; the first steps use the lower orders.

    Order 2, and not 3: the coefficients are those of equal steps in σ/α. There the order is 3; ``ipndm-v`` has it
    on every grid.
    """
    yield from multistep(grid, 3, _weigh, partial(single_step, "eps"))


@register("ipndm-4", order=2, predicts="eps", reference=_IPNDM)
def ipndm_4(grid: Grid) -> Iterator[Row]:
    """DDIM with ε replaced by (55 ε − 59 ε_{−1} + 37 ε_{−2} − 9 ε_{−3})/24; the first steps use the lower orders.

    Order 2, and not 4: the coefficients are those of equal steps in σ/α. There the order is 4; ``ipndm-v`` has it
    on every grid.
    """
    yield from multistep(grid, 4, _weigh, partial(single_step, "eps"))
