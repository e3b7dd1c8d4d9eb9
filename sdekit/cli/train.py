"""``sdekit train``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
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
    from sdekit.process import VP
    from sdekit.training import Denoising, HeldOut, Optimisation, Watch


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
Kept = Annotated[
    float, typer.Option(help="Share of the data kept out; training stops where the loss on it stops falling.")
]
_LOOKS, _PATIENCE = 20, 5  # looks at a run, and how many of them without a lower held-out loss end it


@training.command("images")
def train_images(
    data: Annotated[str, typer.Option(help="A folder of images, or .npy, .npz or .safetensors.")],
    widths: Annotated[str, typer.Option(help="Channels of each level of the U-Net, comma-separated.")] = "32,64",
    blocks: Annotated[int, typer.Option(help="Residual blocks of each level.")] = 1,
    steps: Steps = 5000,
    batch: Batch = 128,
    lr: Rate = 2e-3,
    held_out: Kept = 0.0,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for the model and the checkpoint.")] = Path("out/train-images"),
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Train a U-Net under VP on images of your own; a run that was stopped goes on. --model takes the folder.

    samples.png shows what it draws so far, twenty times in a run.
    """
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
    _train(net, x, "x0", steps, batch, lr, held_out, seed, out)
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
    held_out: Kept = 0.0,
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
    model = _train(net, x, "v", steps, batch, lr, held_out, seed, out)
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
    net: Module, x: Tensor, predicts: str, steps: int, batch: int, lr: float, held_out: float, seed: int, out: Path
) -> ScoreModel:
    """The model, trained and saved; the log stays beside it."""
    from sdekit import nn
    from sdekit.process import VP
    from sdekit.training import Checkpoint, Denoising, Optimisation, train_denoiser

    task, plan = Denoising(predicts=predicts, batch=batch, seed=seed), Optimisation(steps=steps, lr=lr)
    x, kept_out = _parted(x, held_out, seed)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, watch = Checkpoint(out / "model.ckpt", log=out / "train.jsonl"), _watch(VP(), kept_out, task, plan, out)
    model = train_denoiser(
        net, VP(), x, task=task, plan=plan, checkpoint=checkpoint, progress=sys.stderr.isatty(), watch=watch
    )
    nn.save(model, out)
    Path(checkpoint.path).unlink(missing_ok=True)
    return model


def _parted(x: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """The data to train on, and those kept out."""
    import torch

    if share == 0:
        return x, x[:0]
    if not 0 < share < 1 or not 0 < (count := round(share * len(x))) < len(x):
        raise ValueError(f"--held-out {share}: of {len(x)} samples it must leave some on both sides, or be 0")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return x[order[count:]], x[order[:count]]


def _watch(process: VP, kept_out: Tensor, task: Denoising, plan: Optimisation, out: Path) -> Watch:
    from sdekit.training import HeldOut, Watch

    loss = HeldOut(process, kept_out, task=task) if len(kept_out) else None
    look = _Look(process, task, tuple(kept_out.shape[1:]), out / "samples.png", loss)
    return Watch(look, every=max(1, plan.steps // _LOOKS), patience=_PATIENCE if loss else None)


@dataclass(frozen=True)
class _Look:
    """At images that the network draws so far, and at its held-out loss, if any."""

    process: VP
    task: Denoising
    event: tuple[int, ...]
    picture: Path
    loss: HeldOut | None

    def __call__(self, net: Module, steps: int) -> float | None:
        from sdekit import plots
        from sdekit.model import ScoreModel

        if len(self.event) == 3 and self.event[0] in (1, 3):
            model = ScoreModel(net, self.process, self.task.predicts, self.task.time)
            drawn = plots.denoising(model, (4, *self.event), nfe=10, columns=6, seed=self.task.seed)
            drawn.savefig(self.picture, dpi=100)
        return self.loss(net, steps) if self.loss else None


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
