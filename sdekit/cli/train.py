"""``sdekit train``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sdekit.cli import options
from sdekit.cli.options import Device, Json, Seed
from sdekit.cli.shell import training


@training.command("digits")
def train_digits(
    out: Annotated[Path, typer.Option(help="Folder for the weights, their record and the checkpoint.")] = Path(
        "out/train"
    ),
    as_json: Json = False,
) -> None:
    """Train the digits network that the package ships; a run that was stopped goes on."""
    from sdekit.nn.digits import train_digits as train

    record = train(out, progress=sys.stderr.isatty())
    lines = [f"{name} {record[name]}" for name in ("train_loss", "held_out_loss", "seconds") if name in record]
    file = out / "digits.safetensors"
    options.tell(as_json, "\n".join([*lines, str(file)]), {**record, "files": [file]})


@training.command("images")
def train_images(
    data: Annotated[str, typer.Option(help="A folder of images, or .npy, .npz or .safetensors.")],
    widths: Annotated[str, typer.Option(help="Channels of each level of the U-Net, comma-separated.")] = "32,64",
    blocks: Annotated[int, typer.Option(help="Residual blocks of each level.")] = 1,
    steps: Annotated[int, typer.Option(max=10**7, help="Steps of Adam.")] = 5000,
    batch: Annotated[int, typer.Option(help="Images a step.")] = 128,
    lr: Annotated[float, typer.Option(help="Largest learning rate.")] = 2e-3,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for the model and the checkpoint.")] = Path("out/train-images"),
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Train a U-Net under VP on images of your own; a run that was stopped goes on. --model takes the folder."""
    for name, value in {"blocks": blocks, "steps": steps, "batch": batch}.items():
        if value < 1:
            raise ValueError(f"--{name} {value}: it must be at least 1")
    if not 0 < lr < float("inf"):
        raise ValueError(f"--lr {lr}: it must be positive")
    levels, where = options.whole_numbers("widths", widths, "32,64"), options.torch_device(device)
    from sdekit import nn
    from sdekit.nn.digits import seeded
    from sdekit.process import VP
    from sdekit.readers import read
    from sdekit.training import Checkpoint, Denoising, Optimisation, train_denoiser

    try:
        x = read(data).x
    except (ValueError, OSError) as error:
        raise ValueError(f"--data {data}: {error}") from None
    if x.ndim != 4:
        raise ValueError(
            f"--data {data}: samples of shape {list(x.shape[1:])}; images [channels, height, width] are needed"
        )
    net = seeded(lambda: nn.UNet(channels=x.shape[1], widths=levels, blocks=blocks), seed).to(where)
    task, plan = Denoising(batch=batch, seed=seed), Optimisation(steps=steps, lr=lr)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = Checkpoint(out / "model.ckpt")
    model = train_denoiser(net, VP(), x, task=task, plan=plan, checkpoint=checkpoint, progress=sys.stderr.isatty())
    nn.save(model, out)
    Path(checkpoint.path).unlink(missing_ok=True)
    said = f"{len(x)} images of shape {list(x.shape[1:])}, {steps} steps\n{out}"
    options.tell(as_json, said, {"images": len(x), "shape": list(x.shape[1:]), "steps": steps, "files": [out]})


@training.callback()
def _training() -> None:
    """Train a network: the one that the package ships, or one for images of your own."""
