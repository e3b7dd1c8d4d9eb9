"""What large runs use: half precision, a compiled network, batches. Each against the plain float32 run.

    python benchmarks/large_runs.py            # the table of docs/large-runs.md, and the memory of a batched run
    python benchmarks/large_runs.py --compile  # torch.compile too, which takes a minute on a CPU

One thread; all on a CPU.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

import sdekit as sk
from sdekit.nn import digits_model

SHAPE = (256, 1, 8, 8)


def rmse(x: Tensor, y: Tensor) -> float:
    return (x.double() - y.double()).square().mean().sqrt().item()


def in_weights(dtype: torch.dtype) -> sk.ScoreModel:
    """The digits network with its weights in that dtype; the state stays float32."""
    plain = digits_model()
    return sk.ScoreModel(plain.net.to(dtype), plain.process, plain.predicts, plain.time)  # type: ignore[union-attr]


def in_autocast(dtype: torch.dtype) -> sk.ScoreModel:
    plain = digits_model()

    def net(x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=dtype):
            return plain.net(x, t)

    return sk.ScoreModel(net, plain.process, plain.predicts, plain.time)


def precision() -> None:
    exact = sk.sample(digits_model(), SHAPE, solver="dpm-solver-3", nfe=150, grid="logsnr", seed=0).x
    variants = {
        "bf16 autocast": (in_autocast(torch.bfloat16), torch.float32),
        "bf16 weights": (in_weights(torch.bfloat16), torch.float32),
        "fp16 autocast": (in_autocast(torch.float16), torch.float32),
        "fp16 weights": (in_weights(torch.float16), torch.float32),
        "bf16 weights and state": (in_weights(torch.bfloat16), torch.bfloat16),
    }
    print("| solver, NFE | its own error |", " | ".join(variants), "|")
    for solver, nfe in (("unipc-2", 10), ("unipc-2", 50), ("ddim", 10), ("ddim", 50)):
        how = {"solver": solver, "nfe": nfe, "grid": "time", "seed": 0}
        plain = sk.sample(digits_model(), SHAPE, **how).x
        lost = [rmse(sk.sample(model, SHAPE, dtype=dtype, **how).x, plain) for model, dtype in variants.values()]
        print(f"| {solver}, {nfe} | {rmse(plain, exact):.4f} |", " | ".join(f"{value:.4f}" for value in lost), "|")


def peak() -> int:
    """The most memory that this process has held, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def memory() -> None:
    model = sk.ScoreModel(lambda x, t: 0.1 * x, sk.VP())
    for n in (100, 50000):
        before = peak()
        x = sk.sample(model, (n, 3, 32, 32), solver="ddim", nfe=2, grid="time", seed=0, batch_size=100).x
        print(f"n {n}: the result has {x.nbytes / 2**20:.0f} MiB, the peak rose by {(peak() - before) / 2**20:.0f} MiB")


def compiled() -> None:
    plain = digits_model()
    fast = sk.ScoreModel(torch.compile(plain.net), plain.process, plain.predicts, plain.time)
    x = sk.sample(plain, (16, *SHAPE[1:]), nfe=10, seed=0).x
    for run in ("first", "second"):
        began = time.perf_counter()
        y = sk.sample(fast, (16, *SHAPE[1:]), nfe=10, seed=0).x
        print(f"compiled, {run} run: {time.perf_counter() - began:.3f} s, largest difference {(x - y).abs().max():.1e}")
    began = time.perf_counter()
    sk.sample(plain, (16, *SHAPE[1:]), nfe=10, seed=0)
    print(f"plain: {time.perf_counter() - began:.3f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true")
    torch.set_num_threads(1)
    wanted = parser.parse_args()
    precision()
    memory()
    if wanted.compile:
        compiled()
