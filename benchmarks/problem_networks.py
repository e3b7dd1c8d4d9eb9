"""Small networks of the bench of problems, trained here once and kept in ``out/problems/networks``.

    python benchmarks/problem_networks.py    # trains those that are not there: some 6 minutes of one core in all

One thread and fixed seeds, so that a machine makes the same network again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import problem_data as data
import torch
from torch import Tensor, nn

from sdekit import VE, VP, CosineVP, DiscreteVP, Flow, Process, ScoreModel
from sdekit.files import read_tensors, write_tensors
from sdekit.nn import UNet
from sdekit.nn.unet import time_features
from sdekit.training import Denoising, Optimisation, train_denoiser

FOLDER = Path("out/problems/networks")


class MLP(nn.Module):
    """A perceptron for vectors that is told the index of a DDPM's table, 0 … 999."""

    def __init__(self, size: int, width: int = 128, features: int = 32) -> None:
        super().__init__()
        self.features = features
        widths = [size + features, width, width, width]
        layers = [layer for a, b in zip(widths, widths[1:]) for layer in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(width, size))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        times = time_features(t, self.features, slowest=1e-3, fastest=0.3)
        return self.layers(torch.cat([x, times.to(x.dtype)], dim=1))


class ScaledUNet(UNet):
    """A U-Net that sees x/√(1 + σ²), as networks of a VE process do; it is told λ = −log σ."""

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        scale = (1 + (-2 * t).exp()).rsqrt()
        return super().forward(x * scale[:, None, None, None], t, label)


@dataclass(frozen=True)
class Recipe:
    """What decides a network: its data, process and training."""

    images: Callable[[], Tensor]
    net: Callable[[], nn.Module]
    process: Process
    task: Denoising
    plan: Optimisation


def _unet(kind: type[UNet] = UNet) -> nn.Module:
    return kind(widths=(16, 32), embedding=32, groups=4)


def _grey_patches() -> Tensor:
    return data.patches(data.photographs(grey=True), 4000, 16, seed=31).float()


RECIPES = {
    "patches": Recipe(
        _grey_patches, _unet, Flow(), Denoising("flow", batch=64), Optimisation(steps=1000, lr=2e-3, ema=0.995)
    ),
    "digits": Recipe(
        lambda: data.all_digits().float(), lambda: _unet(ScaledUNet), VE(), Denoising("eps", batch=64),
        Optimisation(steps=1500, lr=2e-3, ema=0.995),
    ),
    "digits-vp": Recipe(  # for tuning.py: another network of the data and the process of the shipped one
        lambda: data.all_digits().float(), _unet, VP(), Denoising("v", batch=64),
        Optimisation(steps=2500, lr=2e-3, ema=0.995),
    ),
    "faces": Recipe(
        lambda: data.small_faces().float(), _unet, CosineVP(), Denoising("v", batch=64),
        Optimisation(steps=1000, lr=2e-3, ema=0.995),
    ),
    "roll": Recipe(
        lambda: data.rolled(3, 0.02).sample(20_000).float(), lambda: MLP(3), DiscreteVP(),
        Denoising("eps", time="index", times="uniform", batch=512), Optimisation(steps=8000, lr=2e-3, ema=0.999),
    ),
}  # fmt: skip


@cache
def network(name: str) -> ScoreModel:
    """The trained network of that name; trained now where it is not in ``FOLDER``."""
    recipe, path = RECIPES[name], FOLDER / f"{name}.safetensors"
    images = recipe.images()
    stated = repr((recipe.process, recipe.task, recipe.plan))
    identity = hashlib.sha256(stated.encode() + images.numpy().tobytes()).hexdigest()[:16]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = recipe.net()
    if path.exists() and (stored := read_tensors(path))[1]["identity"] == identity:
        net.load_state_dict(stored[0])
        net = net.eval().requires_grad_(False)
        return ScoreModel(net, recipe.process, recipe.task.predicts, recipe.task.time)
    torch.set_num_threads(1)
    model = train_denoiser(net, recipe.process, images, task=recipe.task, plan=recipe.plan)
    write_tensors(path, model.net.state_dict(), {"identity": identity})
    return network.__wrapped__(name)


def main() -> None:
    for name in RECIPES:
        start = time.process_time()
        model = network(name)
        count = sum(parameter.numel() for parameter in model.net.parameters())
        print(f"{name}: {count} parameters, {time.process_time() - start:.0f} s of a core", flush=True)


if __name__ == "__main__":
    main()
