"""``sdekit train``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdekit.cli import options
from sdekit.cli.options import Device, Json, Seed
from sdekit.cli.shell import training

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from sdekit.model import ScoreModel


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


@training.command("digits-few")
def train_digits_few(
    out: Annotated[Path, typer.Option(help="Folder for the weights, their record and the checkpoint.")] = Path(
        "out/train"
    ),
    as_json: Json = False,
) -> None:
    """Tune the shipped digits network into the consistency model that ships; a run that was stopped goes on."""
    from sdekit.nn.digits import train_digits_few as train

    record = train(out, progress=sys.stderr.isatty())
    file = out / "digits-few.safetensors"
    options.tell(as_json, f"seconds {record['seconds']}\n{file}", {**record, "files": [file]})


Steps = Annotated[int, typer.Option(max=10**7, help="Steps of Adam.")]
Batch = Annotated[int, typer.Option(help="Samples a step.")]
Rate = Annotated[float, typer.Option(help="Largest learning rate.")]


@training.command("images")
def train_images(
    data: Annotated[str, typer.Option(help="A folder of images, or .npy, .npz or .safetensors.")],
    widths: Annotated[str, typer.Option(help="Channels of each level of the U-Net, comma-separated.")] = "32,64",
    blocks: Annotated[int, typer.Option(help="Residual blocks of each level.")] = 1,
    steps: Steps = 5000,
    batch: Batch = 128,
    lr: Rate = 2e-3,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for the model and the checkpoint.")] = Path("out/train-images"),
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Train a U-Net under VP on images of your own; a run that was stopped goes on. --model takes the folder."""
    _check(blocks=blocks, steps=steps, batch=batch, lr=lr)
    levels, where = options.whole_numbers("widths", widths, "32,64"), options.torch_device(device)
    from sdekit import nn
    from sdekit.nn.digits import seeded

    x = _read(data)
    if x.ndim != 4:
        raise ValueError(
            f"--data {data}: samples of shape {list(x.shape[1:])}; images [channels, height, width] are needed"
        )
    net = seeded(lambda: nn.UNet(channels=x.shape[1], widths=levels, blocks=blocks), seed).to(where)
    _train(net, x, "x0", steps, batch, lr, seed, out)
    said = f"{len(x)} images of shape {list(x.shape[1:])}, {steps} steps\n{out}"
    options.tell(as_json, said, {"images": len(x), "shape": list(x.shape[1:]), "steps": steps, "files": [out]})


@training.command("vectors")
def train_vectors(
    data: Annotated[str, typer.Option(help="Vectors [n, d] in .npy, .npz or .safetensors.")],
    width: Annotated[int, typer.Option(help="Of the layers.")] = 128,
    blocks: Annotated[int, typer.Option(help="Residual blocks.")] = 3,
    steps: Steps = 3000,
    batch: Batch = 256,
    lr: Rate = 2e-3,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for the model and the checkpoint.")] = Path("out/train-vectors"),
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Train an MLP under VP on vectors of your own, as images; in one or two dimensions it is drawn."""
    _check(width=width, blocks=blocks, steps=steps, batch=batch, lr=lr)
    where = options.torch_device(device)
    from sdekit import nn
    from sdekit.nn.digits import seeded

    x = _read(data)
    if x.ndim != 2:
        raise ValueError(f"--data {data}: samples of shape {list(x.shape[1:])}; vectors [d] are needed")
    net = seeded(lambda: nn.MLP(x.shape[1], width, blocks), seed).to(where)
    model = _train(net, x, "v", steps, batch, lr, seed, out)
    files = [out, *_picture(model, x, out)]
    said = "\n".join([f"{len(x)} vectors of {x.shape[1]} numbers, {steps} steps", *map(str, files)])
    options.tell(as_json, said, {"vectors": len(x), "size": x.shape[1], "steps": steps, "files": files})


def _check(lr: float, **counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"--{name} {value}: it must be at least 1")
    if not 0 < lr < float("inf"):
        raise ValueError(f"--lr {lr}: it must be positive")


def _read(data: str) -> Tensor:
    from sdekit.readers import read

    try:
        return read(data).x
    except (ValueError, OSError) as error:
        raise ValueError(f"--data {data}: {error}") from None


def _train(
    net: Module, x: Tensor, predicts: str, steps: int, batch: int, lr: float, seed: int, out: Path
) -> ScoreModel:
    """The model, trained and saved; the log stays beside it."""
    from sdekit import nn
    from sdekit.process import VP
    from sdekit.training import Checkpoint, Denoising, Optimisation, train_denoiser

    task, plan = Denoising(predicts=predicts, batch=batch, seed=seed), Optimisation(steps=steps, lr=lr)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = Checkpoint(out / "model.ckpt", log=out / "train.jsonl")
    model = train_denoiser(net, VP(), x, task=task, plan=plan, checkpoint=checkpoint, progress=sys.stderr.isatty())
    nn.save(model, out)
    Path(checkpoint.path).unlink(missing_ok=True)
    return model


def _picture(model: ScoreModel, x: Tensor, out: Path) -> list[Path]:
    """The network over at most 2,000 of the data, blurred by a tenth: in two dimensions its score, in one its paths."""
    from sdekit import plots, targets

    law = targets.Empirical(x[:2000], 0.1 * x.std().item() + 1e-3)
    if x.shape[1] == 2:
        picture, path = plots.score_field(law, model.process, model=model), out / "score.png"
    elif x.shape[1] == 1:
        picture, path = plots.reverse_diffusion(law, model.process, model=model, nfe=50), out / "paths.png"
    else:
        return []
    picture.savefig(path, dpi=150)
    return [path]


@training.callback()
def _training() -> None:
    """Train a network: the one that the package ships, or one for images or vectors of your own."""
