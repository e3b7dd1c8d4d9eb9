"""A plan as diffusers runs one: one evaluation a step, and runs that begin in the middle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdekit.prediction import convert
from sdekit.process import Knot, Process
from sdekit.solvers import Plan, Row, Solver


@dataclass(frozen=True)
class Stage:
    """One evaluation at ``knot`` and the rows up to the next; ``fresh`` where x is the anchor there."""

    knot: Knot
    rows: tuple[Row, ...]
    fresh: bool


def stages(plan: Plan) -> list[Stage]:
    """The plan cut before each of its evaluations. Raises ValueError where its first row evaluates nothing.

    >>> from sdekit import VP
    >>> from sdekit.solvers import get
    >>> [(round(stage.knot.t, 3), stage.fresh) for stage in stages(get("heun").plan(VP(), steps=1, final="none"))]
    [(1.0, True), (0.001, False)]
    """
    starts = [i for i, row in enumerate(plan.rows) if row.evaluate]
    if starts[:1] != [0]:
        raise ValueError("the solver's first row evaluates nothing: a pipeline of diffusers begins with an evaluation")
    knots = [plan.start, *(row.to for row in plan.rows)]
    fresh = [True, *(row.commit for row in plan.rows)]
    return [Stage(knots[i], plan.rows[i:j], fresh[i]) for i, j in zip(starts, [*starts[1:], len(plan.rows)])]


def rest(solver: Solver, process: Process, plan: Plan, index: int) -> Plan:
    """The plan of a run that begins at evaluation ``index`` of ``plan``, with nothing known of those before it.

    Its evaluations are those that are left, at the same times: the solver starts anew on the knots that are left. Where
    the evaluation lies inside a step, those up to that step's end lead from one to the next as DDIM does.

    Raises ValueError for a solver that anew evaluates at other times: whose first steps take more evaluations, whose
    churn depends on the number of steps, or that goes back to more noise.
    """
    every = stages(plan)
    for whole in range(index, min(index + solver.evaluations, len(every) + 1)):
        found = _from(solver, process, plan, every, index, whole)
        if found is not None:
            return found
    raise ValueError(
        f"solver {solver.label!r} cannot begin at step {index} of {len(every)}, as img2img with a strength asks: anew"
        " from there it evaluates elsewhere; a solver of one evaluation a step can, as dpmpp-2m"
    )


def _from(solver: Solver, process: Process, plan: Plan, every: Sequence[Stage], index: int, whole: int) -> Plan | None:
    """DDIM from evaluation ``index`` to ``whole``, the solver from there; None where that evaluates at other times."""
    after = every[whole].knot if whole < len(every) else plan.rows[-1].to
    places = [*(stage.knot for stage in every[index:whole]), after]
    head = [_constant(process, plan.predicts, s, t) for s, t in zip(places, places[1:])]
    try:
        rows = _anew(solver, process, plan, every, whole) if whole < len(every) else ()
        found = Plan(places[0], (*head, *rows), plan.predicts)
    except ValueError:
        return None
    same = [stage.knot.t for stage in stages(found)] == [stage.knot.t for stage in every[index:]]
    return found if same else None


def _anew(solver: Solver, process: Process, plan: Plan, every: Sequence[Stage], whole: int) -> tuple[Row, ...]:
    """The solver's rows on the knots from evaluation ``whole`` on."""
    here, last = every[whole].knot, plan.rows[-1]
    later = [row.to for stage in every[whole:] for row in stage.rows if row.commit and row.to.sigma > 0]
    times = [here.t, *(knot.t for knot in later if knot.half_log_snr > here.half_log_snr)]
    if len(times) == 1:  # the final denoising alone
        return (last,)
    final = "none" if last.to.sigma > 0 else "denoise" if last.evaluate else "reuse"
    return solver.plan(process, nfe=len(every) - whole, grid=times, final=final).rows


def _constant(process: Process, predicts: str, s: Knot, t: Knot) -> Row:
    """DDIM's step from s to t (Song, Meng & Ermon 2021, eq. 12 with σ = 0)."""
    c_x, c_F = convert(predicts, "x0", process, s.t)  # noqa: N806
    keep = t.sigma / s.sigma
    weight = t.alpha - s.alpha * keep
    return Row(to=t, anchor=keep + weight * c_x, history=(weight * c_F,))


def through(times: Sequence[float], solver: Solver, process: Process, final: str) -> Plan:
    """The plan that evaluates at each of the times; by default it ends with the x_0 that is predicted at the last."""
    if final in ("auto", "denoise") and len(times) > 1:
        return solver.plan(process, grid=tuple(times), final="denoise")
    ending = "none" if final == "none" else "reuse"
    return solver.plan(process, grid=(*times, process.t_min), steps=len(times), final=ending)
