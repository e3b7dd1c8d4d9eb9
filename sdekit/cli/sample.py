"""``sdekit sample``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sdekit.cli import options
from sdekit.cli.options import BatchSize, Condition, Data, Device, Json, Model, Seed, Shape, Target
from sdekit.cli.shell import app

SHOWN = 256  # samples in the picture


@app.command()
def sample(
    target: Target = None,
    model: Model = "",
    data: Data = "",
    shape: Shape = "",
    condition: Condition = None,
    solver: Annotated[str, typer.Option(help='A solver, e.g. "heun" or "ddim(eta=0.5)".')] = "auto",
    nfe: Annotated[int, typer.Option(help="Network evaluations for each sample.")] = 20,
    grid: Annotated[str, typer.Option(help="Time grid; auto is the solver's own.")] = "auto",
    n: Annotated[int, typer.Option("--n", "-n", help="How many samples.")] = 64,
    batch_size: BatchSize = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for samples.png and samples.safetensors.")] = Path("out/sample"),
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Draw samples: a picture of the first and a safetensors file of all."""
    if n < 1:
        raise ValueError(f"--n {n}: at least 1 sample is needed")
    subject = options.subject_of(target, model, device, data=data, shape=shape, limit=SHOWN)
    from safetensors.torch import save_file

    import sdekit as sk
    from sdekit import report

    conditions = options.conditions_of(condition or [], n, subject, sk.sample)
    solution = sk.sample(
        subject.model, (n, *subject.event), solver=solver, nfe=nfe, grid=grid, seed=seed, batch_size=batch_size,
        progress=sys.stderr.isatty(), **conditions,
    )  # fmt: skip
    x = solution.x.cpu().contiguous()
    out.mkdir(parents=True, exist_ok=True)
    made = {"target": subject.name, "solver": solver, "grid": grid, "nfe": str(solution.nfe), "seed": str(seed)}
    made |= {"condition": " ".join(condition)} if condition else {}
    save_file({"x": x}, out / "samples.safetensors", metadata=made)
    report.pictures_of(x[:SHOWN], x if subject.reference is None else subject.reference, out / "samples.png")
    files = [out / "samples.png", out / "samples.safetensors"]
    said = f"{n} samples of {subject.name} by {solver}, NFE {solution.nfe}, grid {grid}, seed {seed}"
    record = {**made, "n": n, "nfe": solution.nfe, "seed": seed, "shape": list(x.shape), "files": files}
    options.tell(as_json, "\n".join([said, *map(str, files)]), record)
