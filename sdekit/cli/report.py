"""``sdekit report``: the page of a folder of ``compare``, written anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdekit.cli import options
from sdekit.cli.options import Json
from sdekit.cli.shell import app


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="What --out of compare was.")], as_json: Json = False) -> None:
    """Write report.html anew from a folder's records, of all the runs that it holds."""
    from sdekit.report import rebuild

    page = rebuild(folder)
    options.tell(as_json, str(page), {"files": [page]})
