"""Which prediction trains best: eps, x0, v or flow, under VP, Flow, CosineVP and VE, with one small budget.

    python benchmarks/training.py                             # all cells, some 13 minutes of one core; kept in out/
    python benchmarks/training.py --problem moons --steps 4000
    python benchmarks/training.py --problem images --steps 200  # digits through a small U-Net; slow

A cell trains one network by ``train_denoiser`` and counts the energy distance of 2,048 samples (``unipc-3``, 60
evaluations: the network's error is what is left) to as many held-out points, over the root of their mean distance
from their mean. Problems: two moons, 8 modes on a circle, a checkerboard, the moons neither centred nor of one scale,
and the digits as 64 numbers, through an MLP that divides x by √(α² + σ²) (``--raw``: that does not). Seeds share no
weights, times, noise, starts or drawn data (the digits are the same, in another order).

A prediction's ratio is its distance over the best one's of the same problem and process, both geometric means over
seeds. Leave one problem out: the prediction with the least worst ratio on the others, and its worst on that one.

Measured (1,000 steps, 3 seeds; all 20 cells of problem and process):

| prediction | mean rank | mean ratio | worst ratio |
|------------|-----------|------------|-------------|
| eps        | 2.0       | 2.06       | 52          |
| x0         | 2.0       | 1.12       | 1.44        |
| v          | 3.1       | 1.41       | 3.6         |
| flow       | 2.9       | 6.1        | no samples under VE (6e12) |

Whichever problem is left out, x0 is chosen on the others, at 1.00 to 1.44 of the best there. A choice for each process
does not hold up: without the digits it is eps or flow, 1.7 to 52 times the best on them. eps is the best by some 10 to
40 % on both kinds of moons and fails on the digits (2.1 to 5.3, x0 0.10 to 0.12), where the MLP is too narrow to pass
64 numbers of noise through. The U-Net on the digits as images, 200 steps, eps, x0, v, flow: 1.35, 0.145,
0.131, 0.147 under VP, 3.80, 0.162, 0.141, 0.129 under Flow, 0.91, 0.144, 0.63, 6.8 under VE.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from statistics import fmean, stdev

import torch
from sklearn.datasets import make_moons
from torch import Tensor, nn

import sdekit as sk
from sdekit import metrics
from sdekit.data import digits
from sdekit.nn.unet import time_features
from sdekit.process import Process, match
from sdekit.training import Denoising, Optimisation, train_denoiser

PREDICTIONS = ("eps", "x0", "v", "flow")
PROCESSES = {"VP": sk.VP(), "Flow": sk.Flow(), "CosineVP": sk.CosineVP(), "VE": sk.VE()}
COUNT = 2048
Scores = dict[tuple[str, str, str], list[float]]  # (problem, process, prediction) -> a distance for each seed


def moons(n: int, seed: int) -> Tensor:
    return torch.tensor(make_moons(n, noise=0.05, random_state=seed)[0], dtype=torch.float32)


def circle(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    angle = torch.randint(8, (n,), generator=generator) * (math.pi / 4)
    return torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(n, 2, generator=generator)


def checkerboard(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 2, generator=generator)
    cells = torch.randint(4, (n, 2), generator=generator)
    cells[:, 1] = cells[:, 1] // 2 * 2 + cells[:, 0] % 2
    return (cells + x - 2) * 0.75


def tilted(n: int, seed: int) -> Tensor:
    """The moons, 2 by 0.2 times as large and moved to (2, −1): neither centred nor of one scale."""
    return moons(n, seed) * torch.tensor([2.0, 0.2]) + torch.tensor([2.0, -1.0])


def pixels(n: int, seed: int) -> Tensor:
    return images(n, seed).flatten(1)


def images(n: int, seed: int) -> Tensor:
    """The digits' training images for an even seed, the held-out ones for an odd one."""
    return digits().held_out if seed % 2 else digits().train


PROBLEMS: dict[str, Callable[[int, int], Tensor]] = {
    "moons": moons, "circle": circle, "checkerboard": checkerboard, "tilted": tilted,
    "pixels": pixels,
}  # fmt: skip
SLOW = {"images": images}


class MLP(nn.Module):
    """Three hidden layers told λ by its Fourier features; x enters divided by √(α² + σ²) unless ``raw``."""

    def __init__(self, size: int, process: Process, raw: bool, width: int = 96) -> None:
        super().__init__()
        self.process, self.raw = process, raw
        self.layers = nn.Sequential(
            nn.Linear(size + 16, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, size),
        )  # fmt: skip

    def forward(self, x: Tensor, half_log_snr: Tensor) -> Tensor:
        t = self.process.t_of_half_log_snr(half_log_snr)
        scale = 1.0 if self.raw else (self.process.alpha(t) ** 2 + self.process.sigma(t) ** 2).sqrt()
        return self.layers(torch.cat([x / match(scale, x), time_features(half_log_snr, 16, 0.1, 4.0)], 1))


def measure(problem: str, process: Process, predicts: str, seed: int, steps: int, raw: bool) -> float:
    """The energy distance to held-out data over √(their mean distance from their mean)."""
    data, held_out = ((PROBLEMS | SLOW)[problem](COUNT, 2 * seed + part) for part in (0, 1))
    torch.manual_seed(seed)
    event, count = data.shape[1:], COUNT if data.ndim == 2 else 256  # a U-Net's samples are dear
    net = sk.nn.UNet(widths=(16, 32)) if len(event) == 3 else MLP(len(data[0]), process, raw)
    task = Denoising(predicts=predicts, batch=256 if len(event) == 1 else 64, seed=seed)
    model = train_denoiser(net, process, data, task=task, plan=Optimisation(steps, lr=3e-3, ema=0.99))
    with torch.no_grad():
        x = sk.sample(model, (count, *event), solver="unipc-3", nfe=60, grid="logsnr", seed=seed).x
    spread = (held_out - held_out.mean(0)).flatten(1).norm(dim=1).mean().sqrt().item()
    return metrics.energy_distance(x, held_out).item() / spread


def scores(cells: Iterable[tuple[str, str, str, int]], steps: int, raw: bool, cache: Path) -> Scores:
    """Every cell's distance; those in ``cache`` are not computed again."""
    lines = [json.loads(line) for line in cache.read_text().splitlines()] if cache.exists() else []
    done = {tuple(line["cell"]): line["distance"] for line in lines}
    found: Scores = {}
    for problem, process, predicts, seed in cells:
        key = (problem, process, predicts, seed, steps, raw)
        if key not in done:
            done[key] = measure(problem, PROCESSES[process], predicts, seed, steps, raw)
            with cache.open("a") as file:
                file.write(json.dumps({"cell": key, "distance": done[key]}) + "\n")
        found.setdefault((problem, process, predicts), []).append(done[key])
    return found


def log_ratios(found: Scores) -> dict[tuple[str, str, str], float]:
    """log of each prediction's distance over that of the best prediction of its problem and process."""
    means = {key: fmean(map(math.log, values)) for key, values in found.items()}
    best: dict[tuple[str, str], float] = {}
    for (problem, process, _), mean in means.items():
        best[problem, process] = min(best.get((problem, process), math.inf), mean)
    return {key: mean - best[key[:2]] for key, mean in means.items()}


def show_cells(found: Scores) -> None:
    print(f"{'problem':<13} {'process':<9} " + " ".join(f"{name:>17}" for name in PREDICTIONS))
    for problem, process in dict.fromkeys(key[:2] for key in found):
        row = []
        for predicts in PREDICTIONS:
            logs = [math.log(value) for value in found[problem, process, predicts]]
            error = 100 * stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else math.nan
            row.append(f"{math.exp(fmean(logs)):9.4f} ±{error:4.0f} %")
        print(f"{problem:<13} {process:<9} " + " ".join(f"{cell:>17}" for cell in row))


def show_summary(ratios: dict[tuple[str, str, str], float], process: str) -> None:
    """Mean rank, geometric mean and greatest ratio of each prediction, then leaving one problem out."""
    chosen = {key: ratio for key, ratio in ratios.items() if process in ("all", key[1])}
    problems = dict.fromkeys(key[0] for key in chosen)
    cells = dict.fromkeys(key[:2] for key in chosen)
    print(f"\n{process}: prediction, mean rank, mean ratio, worst ratio")
    for name in PREDICTIONS:
        ranks = [sorted(PREDICTIONS, key=lambda other: chosen[(*cell, other)]).index(name) + 1 for cell in cells]
        values = [chosen[(*cell, name)] for cell in cells]
        print(f"  {name:<5} {fmean(ranks):5.2f} {math.exp(fmean(values)):7.2f} {math.exp(max(values)):7.2f}")

    def worst(name: str, within: Iterable[str]) -> float:
        return max(chosen[(*cell, name)] for cell in cells if cell[0] in within)

    for left_out in problems if len(problems) > 1 else ():
        others = [problem for problem in problems if problem != left_out]
        choice = min(PREDICTIONS, key=lambda name: worst(name, others))
        print(f"  without {left_out:<13} {choice:<5} worst ratio there {math.exp(worst(choice, [left_out])):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problem", choices=[*PROBLEMS, *SLOW], action="append")
    parser.add_argument("--process", choices=PROCESSES, action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--raw", action="store_true")
    parser.add_argument("--cache", type=Path, default=Path("out/training.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.cache.parent.mkdir(parents=True, exist_ok=True)
    processes = options.process or list(PROCESSES)
    cells = product(options.problem or PROBLEMS, processes, PREDICTIONS, range(options.seeds))
    found = scores(cells, options.steps, options.raw, options.cache)
    show_cells(found)
    ratios = log_ratios(found)
    for process in [*processes, "all"]:
        show_summary(ratios, process)


if __name__ == "__main__":
    main()
