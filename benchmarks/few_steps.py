"""Few-step models tuned from the shipped digits network, beside what it does untuned: quality, and what tuning cost.

    python benchmarks/few_steps.py                          # all, seed 0: some 25 minutes of one core
    python benchmarks/few_steps.py consistency --seed 1
    python benchmarks/few_steps.py untuned

The Fréchet distance in the features of the shipped classifier, of 2,048 samples without labels to the training
images; mean over three seeds of the samples, and their range. CPU seconds are those of tuning, one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

import sdekit as sk
from sdekit.data import digits
from sdekit.nn import digits_features, digits_model
from sdekit.training import (
    Batches,
    Consistency,
    Optimisation,
    pairs,
    train_consistency,
    train_progressive,
    train_reflow,
)

SAMPLES, SEEDS = 2048, (0, 1, 2)
MIDDLE = 0.7  # σ/α at which a consistency model's second evaluation begins


class Ruler:
    """Distances to the training images."""

    def __init__(self) -> None:
        self.features = digits_features()
        self.data = digits().train
        with torch.no_grad():
            self.real = self.features(self.data)

    @torch.no_grad()
    def __call__(self, model: sk.ScoreModel, **how: Any) -> str:
        runs = (sk.sample(model, (SAMPLES, 1, 8, 8), seed=seed, **how).x for seed in SEEDS)
        found = [float(sk.metrics.frechet_distance(self.features(x), self.real)) for x in runs]
        return f"{sum(found) / len(found):5.1f} [{min(found):.1f}, {max(found):.1f}]"


def untuned(ruler: Ruler, seed: int) -> None:
    model = digits_model()
    for nfe in (1, 2, 4, 8, 10, 16):
        print(f"untuned      auto, NFE {nfe:2}: {ruler(model, nfe=nfe)}", flush=True)
    for nfe in (4, 16, 64):
        print(f"untuned      ddim, NFE {nfe:2}: {ruler(model, solver='ddim', nfe=nfe)}", flush=True)


def grid(process: sk.Process, *ratios: float) -> list[float]:
    """From t_max over these σ/α to t_min."""
    middle = [float(process.t_of_half_log_snr(-torch.tensor(ratio, dtype=torch.float64).log())) for ratio in ratios]
    return [process.t_max, *middle, process.t_min]


def consistency(ruler: Ruler, seed: int) -> None:
    teacher, start = digits_model(), time.process_time()
    task, plan = Consistency(batch=64, seed=seed), Optimisation(steps=10_000, lr=1e-3, ema=0.999)
    model = train_consistency(teacher, ruler.data, task=task, plan=plan, teacher=teacher)
    cost = time.process_time() - start
    for ratios in ((), (MIDDLE,), (2.0, 0.6)):
        times = grid(model.process, *ratios)
        found = ruler(model, solver="consistency", grid=times, nfe=len(times) - 1)
        print(f"consistency  seed {seed}, NFE {len(times) - 1}: {found}, {cost:.0f} CPU s", flush=True)


def progressive(ruler: Ruler, seed: int) -> None:
    model, cost = digits_model(), 0.0
    for steps in (16, 8, 4, 2):
        start = time.process_time()
        plan = Optimisation(steps=1000, lr=1e-3, ema=0.99)
        model = train_progressive(model, ruler.data, steps=steps, task=Batches(seed=seed), plan=plan)
        cost += time.process_time() - start
        found = ruler(model, solver="ddim", grid="logsnr", steps=steps, final="none")
        print(f"progressive  seed {seed}, NFE {steps:2}: {found}, {cost:.0f} CPU s", flush=True)


def reflow(ruler: Ruler, seed: int) -> None:
    teacher, start = digits_model(), time.process_time()
    x0, eps = pairs(teacher, (20_000, 1, 8, 8), nfe=20, batch_size=1000, seed=1000 + seed)
    plan = Optimisation(steps=4000, lr=1e-3, ema=0.99)
    model = train_reflow(teacher, x0, eps, times="importance", task=Batches(seed=seed), plan=plan)
    cost = time.process_time() - start
    for nfe in (1, 2, 4, 8):
        print(f"reflow       seed {seed}, auto, NFE {nfe}: {ruler(model, nfe=nfe)}, {cost:.0f} CPU s", flush=True)


METHODS: dict[str, Callable[[Ruler, int], None]] = {
    "untuned": untuned, "consistency": consistency, "progressive": progressive, "reflow": reflow,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", choices=[*METHODS, []])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ruler = Ruler()
    for name in options.methods or METHODS:
        METHODS[name](ruler, options.seed)


if __name__ == "__main__":
    main()
