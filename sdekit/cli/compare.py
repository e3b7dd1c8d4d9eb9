"""``sdekit compare``: the steps-versus-quality sweep."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdekit.cli import options
from sdekit.cli.options import BatchSize, Condition, Data, Device, Features, Json, Model, Target
from sdekit.cli.shell import INTERRUPTED, app
from sdekit.cli.workers import helped_by, is_first

if TYPE_CHECKING:
    from sdekit.comparison import Comparison, Function
    from sdekit.subjects import Subject

SAMPLES = 512
Sweep = Annotated[
    Path | None,
    typer.Option(
        help="A TOML file of these options, e.g. nfe = [5, 10]; what is typed wins.",
        callback=options.from_toml,
        is_eager=True,
    ),
]
Limit = Annotated[int, typer.Option(help="How many of the data are used, evenly spaced; 0 for all.")]


@app.command()
def compare(
    target: Target = None,
    model: Model = "",
    data: Data = "",
    features: Features = "",
    condition: Condition = None,
    solvers: Annotated[str, typer.Option(help='Comma-separated, e.g. "heun,ddim(eta=0.5)", or "all".')] = "",
    nfe: Annotated[str, typer.Option(help="Network evaluations, comma-separated.")] = "5,10,20,50",
    grid: Annotated[str, typer.Option(help='Time grids, comma-separated, e.g. "logsnr,karras(rho=5)".')] = "auto",
    metrics: Annotated[str, typer.Option(help='Comma-separated, e.g. "energy,kernel,1-recall".')] = "",
    samples: Annotated[
        int | None, typer.Option(help=f"Samples in each cell; default {SAMPLES}, or half of the data if that is less.")
    ] = None,
    data_limit: Limit = 4096,
    batch_size: BatchSize = None,
    seed: Annotated[str, typer.Option(help="Seeds of all noise, comma-separated; tables show the mean.")] = "0",
    peers: Annotated[
        bool, typer.Option("--peers", help="Other libraries' samplers, where they are installed.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, max=1024, help="Processes that share out the cells.")] = 1,
    sweep: Sweep = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results; default out/compare-TARGET.")] = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Measure solvers at several budgets: a report with tables and pictures, and one JSON line a cell.

    A second run with the same --out computes only what is missing; Ctrl-C keeps what is finished. The same command in
    other processes, under torchrun or srun, or on other machines that see the folder, takes its share. Own data are
    split in halves: one to measure against, one for the floor.
    """
    _check(model, data, data_limit)
    numbers, grids = options.whole_numbers("nfe", nfe, "5,10"), options.names(grid)
    seeds = options.whole_numbers("seed", seed, "0,1,2")
    subject = options.subject_of(target, model, device, data=data, features=features, limit=data_limit or None)
    from sdekit.comparison import DEFAULT_SOLVERS, Interrupted
    from sdekit.comparison import compare as measure
    from sdekit.solvers import names

    assert subject.reference is not None
    specs = [*(names() if solvers == "all" else options.names(solvers) or DEFAULT_SOLVERS), *_peers(peers)]
    if samples is None:
        samples = min(SAMPLES, max(subject.measured, 2)) if model else SAMPLES
    conditions = options.conditions_of(condition or [], samples, subject, measure)
    folder = options.folder_of("compare", subject) if out is None else out
    code = 0
    try:
        with helped_by(workers), options.progress() as progress:
            result = measure(
                subject.model, subject.reference, solvers=specs, nfe=numbers, grid=grids, samples=samples, seed=seeds,
                real=subject.real, features=subject.features, target=subject.name, out=folder, progress=progress,
                batch_size=batch_size, metrics=options.names(metrics) or None, **conditions,
            )  # fmt: skip
    except Interrupted as stop:
        result, code = stop.result, INTERRUPTED
    if is_first():
        _tell(result, folder, subject, conditions, as_json)
    if code and is_first():
        typer.echo(f"sdekit: {len(result.cells)} cells were finished; the same command goes on from there", err=True)
    raise typer.Exit(code)


def _tell(result: Comparison, folder: Path, subject: Subject, conditions: dict[str, Any], as_json: bool) -> None:
    """Print the tables, and what files there are."""
    from sdekit import report

    if not as_json:
        options.show(report.show, result)
    command = shlex.join(["sdekit", *sys.argv[1:]])
    origin = report.Origin(subject.model, subject.law, conditions)
    paths = [folder / "results.jsonl", *report.write(result, folder, command, origin)]
    files = [path for path in paths if path.exists()]
    record = {"cells": [asdict(cell) for cell in result.cells], "files": files}
    options.tell(as_json, "\n" + "\n".join(map(str, files)), record)


def _peers(wanted: bool) -> list[Function]:
    from sdekit.interop.peers import PEERS, installed

    found = installed() if wanted else []
    if wanted and not found:
        packages = ", ".join(sorted({peer.package for peer in PEERS.values()}))
        raise ValueError(f"--peers: none of {packages} is installed")
    return found


def _check(model: str, data: str, data_limit: int) -> None:
    if model and not data:
        raise ValueError("--model: there is nothing to measure it against; give --data")
    if data_limit < 0:
        raise ValueError(f"--data-limit {data_limit}: it must be at least 0, which uses all data")
