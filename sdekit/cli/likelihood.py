"""``sdekit likelihood``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdekit.cli import options
from sdekit.cli.options import Data, Device, Json, Model, Seed
from sdekit.cli.shell import app


@app.command()
def likelihood(
    model: Model = "",
    data: Data = "",
    samples: Annotated[int | None, typer.Option(help="How many held-out digits, or of --data; default all.")] = None,
    probes: Annotated[
        int | None, typer.Option(help="Probes of the divergence for each sample; default 4, what an error bar needs.")
    ] = None,
    draws: Annotated[int, typer.Option(help="Draws of each sample in its bins.")] = 1,
    method: Annotated[str, typer.Option(help='How the ODE is solved, e.g. "unipc-3" with --steps 40.')] = "per-sample",
    steps: Annotated[int | None, typer.Option(help="Steps of a method that takes a fixed number.")] = None,
    grid: Annotated[str, typer.Option(help="Time grid of a solver of the registry.")] = "auto",
    batch_size: Annotated[int, typer.Option(help="Samples solved at once.")] = 64,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for the record.")] = Path("out/likelihood"),
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Measure bits/dim of held-out digits under the shipped network; a run that was stopped goes on.

    With --model and --data, of 8-bit images under a model of your own.
    """
    if bool(model) != bool(data):
        raise ValueError("--model, --data: give both of them, or neither for the digits")
    if samples is not None and samples < 1:
        raise ValueError(f"samples={samples}: at least 1 is needed; there is nothing to measure otherwise")
    subject = options.subject_of(None, model, device, data=data, limit=samples)
    from sdekit.likelihood import measure
    from sdekit.loading import check_runs

    if subject.quantization is None:
        raise ValueError(
            f"--data {data}: bits/dim count levels, and these are floats: give images or uint8; densities of floats are"
            " sdekit.log_prob in Python"
        )
    check_runs(subject.model, subject.event, {})
    assert subject.reference is not None
    held_out = subject.reference[:samples].to(options.torch_device(device))
    with options.progress() as progress:
        record = measure(
            subject.model, held_out, out, quantization=subject.quantization, progress=progress,
            batch_size=batch_size, probes=probes, draws=draws, method=method, steps=steps, grid=grid,
            seed=seed,
        )  # fmt: skip
    errors = {name.removeprefix("error_"): value for name, value in record.items() if name.startswith("error_")}
    spread = _error(record["standard_error"], ".4f")
    what = "samples" if model else "digits"
    options.tell(
        as_json,
        f"{record['bits_per_dim']:.4f} ± {spread} bits/dim over {record['samples']} {what}"
        f"\nof which {', '.join(f'{name} {_error(value)}' for name, value in errors.items())}"
        f"\n{out / 'likelihood.json'}",
        {**record, "files": [out / "likelihood.json"]},
    )


def _error(value: float | None, digits: str = ".2g") -> str:
    """
    >>> _error(0.0123), _error(None)
    ('0.012', 'unknown')
    """
    return "unknown" if value is None else f"{value:{digits}}"
