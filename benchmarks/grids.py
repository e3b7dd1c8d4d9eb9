"""Grids measured: RMSE to the exact end of the probability-flow ODE on eight Gaussians in a ring, at few evaluations.

    python benchmarks/grids.py            # the tables of docs/grids.md

About two minutes on one core. The subject is that of ``sdekit compare --target mixture-2d`` (VP, exact score), in
float64; 512 starts of seed 0. Fitted grids see other starts and other data. One evaluation of each budget denoises at
t_min.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

import sdekit as sk
from sdekit.fitting import fit_ays, fit_gits
from sdekit.grid import GridSpec
from sdekit.metrics import METRICS
from sdekit.targets import GaussianMixture

USUAL = ("logsnr", "time", "time-quadratic", "karras", "cosine", "beta", "shift", "ays")
SOLVERS = ("ddim", "dpmpp-2m", "unipc-2", "deis-3")
STOCHASTIC = ("ddim(eta=1.0)", "dpmpp-2m-sde")
NFE = (5, 6, 7, 8, 9, 10)

angles = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
TARGET = GaussianMixture(torch.stack([angles.cos(), angles.sin()], dim=1), 0.1)
PROCESS = sk.VP()
MODEL = TARGET.model(PROCESS)


def starts(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return PROCESS.prior_std * torch.randn(n, 2, dtype=torch.float64, generator=generator)


def grids(solver: str, steps: int) -> dict[str, GridSpec]:
    """Every grid of the tables, by its column's name."""
    x0, other = TARGET.sample(512, seed=5), starts(256, 1)
    fitted = {
        "fit_ays": fit_ays(MODEL, x0, steps),
        "fit_ays, sweeps=None": fit_ays(MODEL, x0, steps, sweeps=None),
        "fit_gits, γ = 1.15": fit_gits(MODEL, other, steps, gammas=(1.15,)),
    }
    if not sk.solvers.get(solver).stochastic:
        fitted["fit_gits"] = fit_gits(MODEL, other, steps, solver=solver)
    return {name: name for name in USUAL} | fitted


def paired() -> Callable[[str, int, GridSpec], float]:
    """RMSE to the exact end, the exact end by 1,200 evaluations."""
    start = starts(512, 0)
    exact = sk.sample(MODEL, start.shape, solver="dpm-solver-3", nfe=1200, start=start).x

    def error(solver: str, nfe: int, grid: GridSpec) -> float:
        x = sk.sample(MODEL, start.shape, solver=solver, nfe=nfe, grid=grid, start=start).x
        return METRICS["rmse"].distance(x, exact).item()

    return error


def unpaired() -> Callable[[str, int, GridSpec], float]:
    """Energy distance of 4,096 samples to as many of the target."""
    data = TARGET.sample(4096, seed=3)

    def distance(solver: str, nfe: int, grid: GridSpec) -> float:
        x = sk.sample(MODEL, (4096, 2), solver=solver, nfe=nfe, grid=grid, seed=0, dtype=torch.float64).x
        return METRICS["energy"].distance(x, data).item()

    return distance


def table(solver: str, measure: Callable[[str, int, GridSpec], float]) -> str:
    """Rows are grids, columns budgets; the least of each column is bold."""
    columns = [{name: measure(solver, nfe, grid) for name, grid in grids(solver, nfe - 1).items()} for nfe in NFE]
    lines = [f"| {solver} | " + " | ".join(f"NFE {nfe}" for nfe in NFE) + " |", "|---|" + "---|" * len(NFE)]
    for name in columns[0]:
        cells = [f"{column[name]:.4f}" for column in columns]
        bold = [f"**{cell}**" if column[name] == min(column.values()) else cell for cell, column in zip(cells, columns)]
        lines.append(f"| {name} | " + " | ".join(bold) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    began, error, distance = time.perf_counter(), paired(), unpaired()
    for solver in SOLVERS:
        print(table(solver, error), end="\n\n", flush=True)
    for solver in STOCHASTIC:
        print(table(solver, distance), end="\n\n", flush=True)
    print(f"{time.perf_counter() - began:.0f} s")
