"""Where the commands register, and how they end."""

from __future__ import annotations

import os
import warnings
from typing import Any

import typer
from typer.core import TyperGroup

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class _Commands(TyperGroup):
    """Turns the errors that name an argument into one line."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, OSError) as error:
            typer.echo(f"sdekit: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("sdekit: interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=_Commands,
    help="Score-based SDE and ODE solvers for diffusion models, compared on real data.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
training = typer.Typer(cls=_Commands, help="Train a network.", no_args_is_help=True)
app.add_typer(training, name="train")


def main() -> None:
    """The entry point."""
    # threads that spin while they wait made a network call four times as slow on a busy machine; read when torch loads
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    warnings.showwarning = _one_line
    app()


def _one_line(message: Warning | str, *_: object, **__: object) -> None:
    """A warning as the commands show it: what it says, without the line of code that said it."""
    typer.echo(f"sdekit: {' '.join(str(message).split())}", err=True)
