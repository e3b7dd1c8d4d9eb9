"""CIFAR-10 by EDM's network (Karras et al. 2022) with sdekit's solvers. It needs a path to the weights, and no more.

    python benchmarks/edm_cifar10.py edm.pt --solvers heun unipc-3 --nfe 9 35 --samples 64 --out samples.npz

The weights are those of the paper's DDPM++ network ("edm-cifar10-32x32-uncond-vp", or "-cond-vp", told by the file), as
a state dict: .safetensors, or what ``torch.save`` wrote. The paper publishes a pickle, which is not read; where you
trust it, one line beside the paper's code makes a state dict of it:

    torch.save(pickle.load(open("edm-cifar10-32x32-uncond-vp.pkl", "rb"))["ema"].state_dict(), "edm.pt")

For each solver and NFE the script prints the time and the distance of its samples from those of a long run from the
same noise, and writes all as uint8 images to --out. The network is written from the paper, with the names of the
published tensors.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import sdekit as sk
from sdekit.interop import edm

EMBEDDING, HALF = 512, math.sqrt(0.5)


class Resampling(nn.Conv2d):
    """A convolution after doubling or halving the image; the published files hold the (constant) filter."""

    def __init__(self, channels: int, to: int, kernel: int, change: str = "") -> None:
        super().__init__(channels, to, kernel, padding=kernel // 2)
        self.change = change
        self.register_buffer("resample_filter", torch.full((1, 1, 2, 2), 0.25) if change else None)

    def forward(self, x: Tensor) -> Tensor:
        if self.change == "up":
            x = functional.interpolate(x, scale_factor=2)
        elif self.change == "down":
            x = functional.avg_pool2d(x, 2)
        return super().forward(x)


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 4), channels, eps=1e-6)


class Block(nn.Module):
    """DDPM++'s residual block, with attention where it is asked for."""

    def __init__(self, channels: int, to: int, change: str = "", attention: bool = False) -> None:
        super().__init__()
        self.norm0, self.conv0 = norm(channels), Resampling(channels, to, 3, change)
        self.affine = nn.Linear(EMBEDDING, to)
        self.norm1, self.conv1 = norm(to), Resampling(to, to, 3)
        self.skip = Resampling(channels, to, 1, change) if change or channels != to else nn.Identity()
        self.attention = attention
        if attention:
            self.norm2, self.qkv, self.proj = norm(to), Resampling(to, 3 * to, 1), Resampling(to, to, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv0(functional.silu(self.norm0(x))) + self.affine(embedding)[:, :, None, None]
        x = (self.conv1(functional.silu(self.norm1(h))) + self.skip(x)) * HALF
        if not self.attention:
            return x
        n, channels, *image = x.shape
        q, k, v = self.qkv(self.norm2(x)).reshape(n, channels, 3, -1).permute(2, 0, 3, 1)
        mixed = functional.scaled_dot_product_attention(q, k, v).mT.reshape(n, channels, *image)
        return (x + self.proj(mixed)) * HALF


class DDPMPlusPlus(nn.Module):
    """The paper's CIFAR-10 network: 256 channels at 32, 16 and 8 pixels, four blocks each, attention at 16."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.map_label = nn.Linear(classes, 128) if classes else None
        self.map_augment = nn.Linear(9, 128, bias=False)  # augmentations of training: absent in sampling
        self.map_layer0, self.map_layer1 = nn.Linear(128, EMBEDDING), nn.Linear(EMBEDDING, EMBEDDING)
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        self.enc["32x32_conv"], width = Resampling(3, 128, 3), 128
        skips = [128]
        for size in (32, 16, 8):
            if size < 32:
                self.enc[f"{size}x{size}_down"] = Block(width, width, "down")
                skips.append(width)
            for i in range(4):
                self.enc[f"{size}x{size}_block{i}"] = Block(width, 256, attention=size == 16)
                width = 256
                skips.append(width)
        self.dec["8x8_in0"], self.dec["8x8_in1"] = Block(256, 256, attention=True), Block(256, 256)
        for size in (8, 16, 32):
            if size > 8:
                self.dec[f"{size}x{size}_up"] = Block(256, 256, "up")
            for i in range(5):
                self.dec[f"{size}x{size}_block{i}"] = Block(256 + skips.pop(), 256, attention=size == 16 and i == 4)
        self.dec["32x32_aux_norm"], self.dec["32x32_aux_conv"] = norm(256), Resampling(256, 3, 3)

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
        frequencies = 1e-4 ** (torch.arange(64, device=x.device, dtype=x.dtype) / 63)
        angles = noise[:, None] * frequencies
        embedding = torch.cat([angles.sin(), angles.cos()], dim=1)
        if self.map_label is not None and labels is not None:
            embedding = embedding + self.map_label(labels * math.sqrt(labels.shape[1]))
        embedding = functional.silu(self.map_layer1(functional.silu(self.map_layer0(embedding))))
        skips = [x := self.enc["32x32_conv"](x)]
        for block in [*self.enc.values()][1:]:
            skips.append(x := block(x, embedding))
        for name, block in self.dec.items():
            if "aux" not in name:
                x = block(torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, embedding)
        return self.dec["32x32_aux_conv"](functional.silu(self.dec["32x32_aux_norm"](x)))


class Denoiser(nn.Module):
    """EDM's preconditioning (the paper's eq. 7, σ_data = 0.5) around the network."""

    def __init__(self, classes: int = 0) -> None:
        super().__init__()
        self.model, self.label_dim = DDPMPlusPlus(classes), classes

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        s = sigma[:, None, None, None]
        total = s**2 + 0.25
        return 0.25 / total * x + 0.5 * s / total.sqrt() * self.model(x / total.sqrt(), sigma.log() / 4, class_labels)


def load(path: Path) -> Denoiser:
    """The network with the file's weights; whether it takes classes the file says by what fits."""
    try:
        return edm.load(Denoiser(), path)
    except ValueError as unconditional:
        if "map_label" not in str(unconditional):
            raise
        return edm.load(Denoiser(10), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--solvers", nargs="+", default=["heun", "dpmpp-2m", "unipc-3", "ipndm-4"])
    parser.add_argument("--nfe", nargs="+", type=int, default=[5, 9, 17, 35])
    parser.add_argument("--grid", default="karras")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reference", type=int, default=199, help="NFE of the long run")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    net = load(options.weights).to(options.device)
    model = edm.wrap(net)
    classes = {"class_labels": torch.arange(options.samples, device=options.device) % 10} if net.label_dim else {}
    shape = (options.samples, 3, 32, 32)

    def run(solver: str, nfe: int) -> Tensor:
        return sk.sample(
            model, shape, solver=solver, nfe=nfe, grid=options.grid, final="denoise", seed=options.seed,
            batch_size=options.batch_size, **classes,
        ).x  # fmt: skip

    truth, images = run("heun", options.reference), {}
    print(f"{'solver':24}{'NFE':>5}{'seconds':>10}{'RMSE to the long run':>24}")
    for solver in options.solvers:
        for nfe in options.nfe:
            begin = time.perf_counter()
            x = run(solver, nfe)
            error = (x - truth).square().mean().sqrt().item()
            print(f"{solver:24}{nfe:5}{time.perf_counter() - begin:10.2f}{error:24.4f}")
            images[f"{solver}-{nfe}"] = (x * 127.5 + 128).clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    if options.out:
        np.savez(options.out, **images)


if __name__ == "__main__":
    main()
