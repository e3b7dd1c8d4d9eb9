"""``sdekit solvers``: the registry."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdekit.cli import options
from sdekit.cli.shell import app

if TYPE_CHECKING:
    from sdekit.solvers import Solver


Order = Annotated[int | None, typer.Option(min=0, max=9, help="Only those of this order, on every grid.")]
Stages = Annotated[int | None, typer.Option(min=1, max=9, help="Only those with so many evaluations a step.")]
Noise = Annotated[
    bool | None, typer.Option("--stochastic/--deterministic", help="Only those that draw noise, or that draw none.")
]


@app.command()
def solvers(
    name: Annotated[str, typer.Argument(help="Show what this solver computes, and its source.")] = "",
    order: Order = None,
    evaluations: Stages = None,
    stochastic: Noise = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list, for other programs.")] = False,
) -> None:
    """List solvers: order, network evaluations of a step, whether it draws noise, options, source."""
    from sdekit import report
    from sdekit.solvers import get, names

    wanted = {"order": order, "evaluations": evaluations, "stochastic": stochastic}
    kept = [
        solver
        for solver in map(get, [name] if name else names())
        if all(value is None or getattr(solver, fact) == value for fact, value in wanted.items())
    ]
    if as_json:
        typer.echo(json.dumps([_facts(solver) for solver in kept], indent=1, ensure_ascii=False))
    elif name and kept:
        _explain(kept[0])
    else:
        options.show(lambda console: report.show_solvers(console, kept))


def _facts(solver: Solver) -> dict[str, Any]:
    """What ``--json`` says of a solver."""
    known = {name: {"default": option.default, "rule": str(option.rule)} for name, option in solver.available.items()}
    return {
        "name": solver.name, "order": solver.order, "evaluations": solver.evaluations,
        "stochastic": solver.stochastic, "summary": solver.summary, "source": solver.reference, "options": known,
    }  # fmt: skip


def _explain(solver: Solver) -> None:
    typer.echo(f"{solver.name}: {inspect.getdoc(solver.rows)}\n\n{solver.reference}")
    for option, rule in solver.available.items():
        typer.echo(f"option {option}={rule.default!r}: {rule.rule}")
