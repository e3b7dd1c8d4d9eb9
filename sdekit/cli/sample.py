"""``sdekit sample``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdekit.cli import options
from sdekit.cli.options import BatchSize, Data, Device, Model, Seed, Shape, Target
from sdekit.cli.shell import app

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SHOWN = 256  # samples in the picture


@app.command()
def sample(
    target: Target = None,
    model: Model = "",
    data: Data = "",
    shape: Shape = "",
    condition: Annotated[
        list[str] | None,
        typer.Option(help="What the network is told: label=3, guidance=1.5, label=classes:10; may be repeated."),
    ] = None,
    solver: Annotated[str, typer.Option(help='A solver, e.g. "heun" or "ddim(eta=0.5)".')] = "auto",
    nfe: Annotated[int, typer.Option(help="Network evaluations for each sample.")] = 20,
    grid: Annotated[str, typer.Option(help="Time grid; auto is the solver's own.")] = "auto",
    n: Annotated[int, typer.Option("--n", "-n", help="How many samples.")] = 64,
    batch_size: BatchSize = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for samples.png and samples.safetensors.")] = Path("out/sample"),
    device: Device = "cpu",
) -> None:
    """Draw samples: a picture of the first and a safetensors file of all."""
    if n < 1:
        raise ValueError(f"--n {n}: at least 1 sample is needed")
    where = options.torch_device(device)
    conditions = conditions_of(condition or [], n, where)
    subject = options.subject_of(target, model, device, data=data, shape=shape, limit=SHOWN, conditions=conditions)
    from safetensors.torch import save_file

    import sdekit as sk
    from sdekit import report

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
    typer.echo(f"{n} samples of {subject.name} by {solver}, NFE {solution.nfe}, grid {grid}, seed {seed}")
    typer.echo(f"{out / 'samples.png'}\n{out / 'samples.safetensors'}")


def conditions_of(texts: list[str], n: int, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What the network is told, from ``name=value``.

    A whole number is a label: int64 [n], a row for each sample, as is ``classes:K``, which gives sample i the label
    i mod K. A number with a point is passed as it is.

    >>> conditions_of(["label=classes:3", "guidance=1.5"], 4)
    {'label': tensor([0, 1, 2, 0]), 'guidance': 1.5}
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name.isidentifier() or name in found:
            raise ValueError(f"--condition {text!r}: write it as name=value, each name once")
        found[name] = _condition(text, value, n, device)
    return found


def _condition(text: str, value: str, n: int, device: torch.device | str) -> Tensor | float:
    import torch

    if classes := re.fullmatch(r"classes:([1-9]\d{0,8})", value):
        return torch.arange(n, device=device) % int(classes[1])
    if re.fullmatch(r"[+-]?\d{1,18}", value):
        return torch.full((n,), int(value), device=device)
    if re.fullmatch(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=e))(e[+-]?\d+)?", value, re.IGNORECASE):
        return float(value)
    raise ValueError(f"--condition {text!r}: its value is a whole number, a number with a point, or classes:K")
