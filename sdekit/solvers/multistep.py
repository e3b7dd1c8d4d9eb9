"""What multistep methods share: which past prediction gets which weight, and how a run starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from sdekit.grid import Grid
from sdekit.names import Between, OneOf
from sdekit.process import Knot
from sdekit.solvers.registry import Split, full_steps, starting
from sdekit.solvers.tableau import Row

Weigh = Callable[[Knot, Knot, Sequence[Knot]], tuple[float, Sequence[float]]]
SingleStep = Callable[[Grid, Knot, Knot, int], Iterator[Row]]

START = OneOf("lower-order", "single-step")
"""How a multistep method of order p begins.

"lower-order": the first steps use the predictions there are, so the first is an Euler step, with an error O(h²)
that caps the order at 2 (where the prediction changes little at the noise end the cap is not seen at usual step
sizes). "single-step": the first p − 1 steps are single-step DPM-Solver steps of order p − 1, at most 3, of as many
evaluations each; their error is O(h^p), so the method keeps its order.
"""


def start_split(order: int, start: str) -> Split:
    """Evaluations of each step of a multistep method of that order with that start."""
    return starting(max(1, min(order - 1, 3)), order - 1) if start == "single-step" else full_steps(1)


BELOW = Between(0, math.inf)
"""In runs of fewer steps than ``lower_order_below`` the order falls to 1 over the last steps, by one a step.

A polynomial in λ through past predictions overshoots near the data, where steps are large in λ: without this, three of
ten runs of such methods with up to 20 steps are more than twice as far off as DDIM on the same grid, with it none,
but for those that a single-step start leaves few steps (the page of solvers names them).
Polynomials in σ/α or in t do not overshoot, and lose up to half of their accuracy by it. Published code has it as
lower_order_final: UniPC's always (``inf``), DPM-Solver's below 10 steps, diffusers' below 15, k-diffusion's never (0);
the page of libraries has each one's default by name.

An order that falls in every run caps the order of the method at 2; one that falls below a number of steps caps nothing.
"""
FEW, NEVER = 25.0, 0.0
"""The defaults of methods that are polynomial in λ, and of others."""


def order_at(grid: Grid, step: int, order: int, below: float) -> int:
    """The order of step number ``step``, counted from 0, with ``BELOW``'s rule; towards noise nothing is lowered.

    >>> from sdekit.process import VP
    >>> grid = Grid.make(VP(), "logsnr", 5)
    >>> [order_at(grid, step, 3, math.inf) for step in range(5)], order_at(grid, 4, 3, 5)
    ([3, 3, 3, 2, 1], 3)
    """
    steps, falling = len(grid.evaluations), grid.knots[0].half_log_snr < grid.knots[-1].half_log_snr
    return min(order, steps - step) if falling and steps < below else order


def lowered(order: int, below: float) -> int:
    """The order of a method of this order with ``BELOW``'s rule: at most 2 where the last steps fall in every run.

    >>> lowered(3, 20), lowered(3, math.inf)
    (3, 2)
    """
    return min(order, 2) if below == math.inf else order


def multistep(grid: Grid, order: int, weigh: Weigh, single: SingleStep, below: float = 0.0) -> Iterator[Row]:
    """Rows of a multistep method; a step of several evaluations is a ``single`` step.

    ``weigh(s, t, past)`` gives the factor of x_s and the weights of the predictions at ``past``: s first, then the
    knots before it, ``order`` of them where there are so many, or fewer by ``BELOW``'s rule.
    """
    made: list[Knot | None] = []  # where each prediction was made, newest first; None inside a step
    for i, (s, t, evaluations) in enumerate(grid):
        if evaluations > 1:
            yield from single(grid, s, t, evaluations)
            made = [*[None] * (evaluations - 1), s, *made]
            continue
        made = [s, *made]
        past = [knot for knot in made if knot][: order_at(grid, i, order, below)]
        anchor, weights = weigh(s, t, past)
        yield Row(to=t, anchor=anchor, history=place(made, past, weights))


def place(made: Sequence[Knot | None], knots: Sequence[Knot], weights: Sequence[float]) -> tuple[float, ...]:
    """A row's history: the weights of the predictions at ``knots``, and zeros for others ``made`` between them."""
    weight_at: dict[Knot | None, float] = dict(zip(knots, weights))
    last = max(made.index(knot) for knot in knots)
    return tuple(weight_at.get(knot, 0.0) for knot in made[: last + 1])
