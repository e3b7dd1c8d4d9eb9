"""How the shipped networks of the digits were made: ``sdekit train digits`` and ``sdekit train digits-few``.

One thread trains them: rounding, and with it the result, then does not depend on the number of cores, and
layers as small as these gain little from a second one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sdekit.data import Images, digits
from sdekit.model import ScoreModel
from sdekit.nn.classifier import Classifier
from sdekit.nn.store import digits_model, save_network
from sdekit.nn.unet import UNet
from sdekit.process import VP
from sdekit.process.description import describe_process
from sdekit.training import (
    Checkpoint,
    Consistency,
    Denoising,
    Optimisation,
    batch_rows,
    denoising_risk,
    fit,
    train_consistency,
    train_denoiser,
)

Net = TypeVar("Net", bound=nn.Module)

TASK = Denoising(predicts="v", label_dropout=0.5, null_label=10)
PLAN = Optimisation(steps=4000, lr=2e-3)
FEW_TASK = Consistency(batch=64)
FEW_PLAN = Optimisation(steps=10_000, lr=1e-3, ema=0.999)
FEATURES_PLAN = Optimisation(steps=800, lr=3e-3, ema=0.99)


def train_digits(out: str | os.PathLike[str], plan: Optimisation = PLAN, progress: bool = True) -> dict[str, Any]:
    """Train the digits network and the feature network and write them to the directory ``out``.

    Writes ``digits.safetensors``, its record ``digits.json`` (returned too), ``digits-features.safetensors`` and,
    while it runs, ``digits.ckpt``, from which a run that was stopped goes on.
    """
    out = Path(out)
    data, process = digits(), VP()
    with _one_thread():
        net = seeded(lambda: UNet(classes=data.classes), TASK.seed)
        start = time.monotonic()
        model = train_denoiser(
            net, process, data.train, data.train_labels, TASK, plan, Checkpoint(out / "digits.ckpt"), progress
        )
        seconds = time.monotonic() - start
        losses = {"train_loss": _risk(model, data.train), "held_out_loss": _risk(model, data.held_out)}
        record = {
            "process": describe_process(process),
            **asdict(TASK),
            **asdict(plan),
            **losses,
            **_circumstances(seconds),
        }
        assert isinstance(model.net, nn.Module)
        save_network(out / "digits.safetensors", model.net, record)
        record["features"] = train_digits_features(out / "digits-features.safetensors", data)
    record["parameters"] = sum(parameter.numel() for parameter in net.parameters())
    (out / "digits.json").write_text(json.dumps(record, indent=2) + "\n")
    (out / "digits.ckpt").unlink(missing_ok=True)
    return record


def train_digits_few(
    out: str | os.PathLike[str], plan: Optimisation = FEW_PLAN, progress: bool = True
) -> dict[str, Any]:
    """Tune the shipped digits network into a consistency model and write it to the directory ``out``.

    Distilled from itself, without labels. Writes ``digits-few.safetensors``, its record ``digits-few.json`` (returned
    too) and, while it runs, ``digits-few.ckpt``, from which a run that was stopped goes on.
    """
    out, teacher, start = Path(out), digits_model(), time.monotonic()
    checkpoint = Checkpoint(out / "digits-few.ckpt")
    with _one_thread():
        model = train_consistency(teacher, digits().train, None, FEW_TASK, plan, teacher, checkpoint, progress)
    told = {"process": describe_process(model.process), "predicts": model.predicts, "time": TASK.time}
    record = {**told, **asdict(FEW_TASK), **asdict(plan), **_circumstances(time.monotonic() - start)}
    assert isinstance(model.net, nn.Module)
    save_network(out / "digits-few.safetensors", model.net, record)
    (out / "digits-few.json").write_text(json.dumps(record, indent=2) + "\n")
    (out / "digits-few.ckpt").unlink(missing_ok=True)
    return record


def train_digits_features(
    path: str | os.PathLike[str], data: Images, plan: Optimisation = FEATURES_PLAN
) -> dict[str, Any]:
    """Train the classifier whose last hidden layer is the feature space, and write it to ``path``.

    Returns its record: the plan, the accuracy on the held-out images, seconds.
    """
    start = time.monotonic()

    def loss_at(net: nn.Module, step: int) -> Tensor:
        rows = batch_rows(len(data.train), 128, 0, step)
        return F.cross_entropy(net(data.train[rows]), data.train_labels[rows])

    with _one_thread():
        net = fit(seeded(Classifier, 0), loss_at, plan, {"batch": 128, "seed": 0})
        accuracy = _accuracy(net, data.held_out, data.held_out_labels)
    record = {**asdict(plan), "batch": 128, "seed": 0, "held_out_accuracy": accuracy}
    save_network(path, net, {**record, **_circumstances(time.monotonic() - start)})
    return record


@torch.no_grad()
def _risk(model: ScoreModel, images: Tensor, repeats: int = 20) -> float:
    """Mean loss without labels over ``repeats`` draws of time and noise for each image; per the task's time sampler."""
    risks = [denoising_risk(model, images, TASK.times, TASK.seed + 1, repeat) for repeat in range(repeats)]
    return round(torch.stack(risks).mean().item(), 5)


@torch.no_grad()
def _accuracy(net: nn.Module, images: Float[Tensor, "n 1 8 8"], labels: Int[Tensor, "n"]) -> float:
    return round((net(images).argmax(1) == labels).double().mean().item(), 4)


def _circumstances(seconds: float) -> Mapping[str, Any]:
    try:
        sdekit = version("sdekit")
    except PackageNotFoundError:  # run from a checkout
        sdekit = "unknown"
    return {"seconds": round(seconds, 1), "threads": 1, "torch": torch.__version__, "sdekit": sdekit}


def seeded(build: Callable[[], Net], seed: int) -> Net:
    """``build()`` with the CPU's generator at ``seed`` for the initial weights, and left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()


@contextmanager
def _one_thread() -> Generator[None, None, None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
