"""Tables of single steps: what methods that are defined by a step ask of a solver."""

from __future__ import annotations

from collections.abc import Iterator

from sdekit.process import Knot
from sdekit.solvers import Plan, Row


def one_step(name: str, plan: Plan, noisy: bool = False) -> Iterator[tuple[Knot, Row]]:
    """Each row with the knot where it evaluates; every one evaluates, commits and uses its own prediction alone.

    Raises ValueError, which names the method, for a plan of other rows; with ``noisy`` also where one draws no noise or
    several, but for the last.

    >>> from sdekit.process import VP
    >>> from sdekit.solvers import get
    >>> [round(s.t, 3) for s, _ in one_step("a method", get("ddim").plan(VP(), nfe=3, final="denoise"))]
    [1.0, 0.305, 0.001]
    """
    here = plan.start
    for row in plan.rows:
        if not row.evaluate or not row.commit or len(row.history) != 1 or row.linear is not None:
            raise ValueError(
                f"solver: {name} needs one whose steps each make one evaluation and use no other, such as 'ddpm',"
                " 'ddim(eta=1.0)' or 'euler-maruyama'"
            )
        if noisy and row.to.sigma > 0 and len(row.noise) != 1:
            raise ValueError(
                f"solver: {name} needs one that draws noise once a step, such as 'ddpm', not {len(row.noise)}"
            )
        yield here, row
        here = row.to
