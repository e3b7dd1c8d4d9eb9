"""``sdekit solvers``: the registry."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer

from sdekit.cli import options
from sdekit.cli.shell import app


@app.command()
def solvers(
    name: Annotated[str, typer.Argument(help="Show what this solver computes, and its source.")] = "",
) -> None:
    """List every solver: order, network evaluations of a step, whether it draws noise, options, source."""
    from sdekit import report
    from sdekit.solvers import get

    if not name:
        options.show(report.show_solvers)
        return
    solver = get(name)
    typer.echo(f"{solver.name}: {inspect.getdoc(solver.rows)}\n\n{solver.reference}")
    for option, rule in solver.available.items():
        typer.echo(f"option {option}={rule.default!r}: {rule.rule}")
