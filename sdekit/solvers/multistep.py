"""What multistep methods share: which past prediction gets which weight, and how a run starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from sdekit.grid import Grid
from sdekit.names import OneOf
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


def multistep(grid: Grid, order: int, weigh: Weigh, single: SingleStep) -> Iterator[Row]:
    """Rows of a multistep method; a step of several evaluations is a ``single`` step.

    ``weigh(s, t, past)`` gives the factor of x_s and the weights of the predictions at ``past``: s first, then the
    knots before it, ``order`` of them where there are so many.
    """
    made: list[Knot | None] = []  # where each prediction was made, newest first; None inside a step
    for s, t, evaluations in grid:
        if evaluations > 1:
            yield from single(grid, s, t, evaluations)
            made = [*[None] * (evaluations - 1), s, *made]
            continue
        made = [s, *made]
        past = [knot for knot in made if knot][:order]
        anchor, weights = weigh(s, t, past)
        yield Row(to=t, anchor=anchor, history=place(made, past, weights))


def place(made: Sequence[Knot | None], knots: Sequence[Knot], weights: Sequence[float]) -> tuple[float, ...]:
    """A row's history: the weights of the predictions at ``knots``, and zeros for others ``made`` between them."""
    weight_at: dict[Knot | None, float] = dict(zip(knots, weights))
    last = max(made.index(knot) for knot in knots)
    return tuple(weight_at.get(knot, 0.0) for knot in made[: last + 1])
