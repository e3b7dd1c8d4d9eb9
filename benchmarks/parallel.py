"""Parallel in time on the shipped digits network: rounds, evaluations and error of ``sk.parallel.sample``.

    python benchmarks/parallel.py [--samples 64] [--quick]

For each solver and tolerance: the rounds of the network one after another, the evaluations that a sample took in all,
the root mean square and the largest difference to the sequential run, the seconds of both runs on this machine, and
the Fréchet distance to held-out digits beside that of the sequential run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table

import sdekit as sk
from sdekit.metrics.features import frechet_distance
from sdekit.nn import digits_features, digits_model

RUNS = (
    ("ddim", 100), ("ddim", 25), ("dpmpp-2m", 50), ("unipc-3", 50), ("heun", 50), ("dpm-solver-3", 50), ("deis-3", 50),
    ("ddpm", 100), ("dpmpp-2m-sde", 50), ("euler-maruyama", 100), ("seeds-3", 50),
)  # fmt: skip
TOLERANCES = (0.1, 0.03, 0.01, 3e-5)
Result = TypeVar("Result")


def timed(run: Callable[[], Result]) -> tuple[Result, float]:
    began = time.perf_counter()
    return run(), time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="only ddim at 100 evaluations")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, features = digits_model(), digits_features()
    real = features(sk.data.digits().held_out)
    shape = (arguments.samples, 1, 8, 8)
    table = Table(
        title=f"{arguments.samples} digits, 64 at a time, one thread, seed {arguments.seed}", title_justify="left"
    )
    for name in (
        "solver",
        "NFE",
        "tolerance",
        "rounds",
        "evaluations",
        "RMS",
        "largest",
        "s",
        "sequential s",
        "Fréchet",
    ):
        table.add_column(name, justify="left" if name == "solver" else "right")
    for solver, nfe in RUNS[: 1 if arguments.quick else None]:
        run: dict[str, Any] = {"solver": solver, "nfe": nfe, "seed": arguments.seed, "batch_size": 64}
        alone, seconds = timed(lambda run=run: sk.sample(model, shape, **run))
        distance = f"{float(frechet_distance(features(alone.x), real)):.1f}"
        table.add_row(solver, str(nfe), "sequential", str(nfe), str(nfe), "", "", "", f"{seconds:.1f}", distance)
        for tolerance in TOLERANCES:
            found, own = timed(lambda run=run, t=tolerance: sk.parallel.sample(model, shape, tolerance=t, **run))
            unlike = found.x - alone.x
            table.add_row(
                "", "", f"{tolerance:g}", str(found.rounds), f"{found.nfe:.0f}",
                f"{unlike.square().mean().sqrt():.1e}", f"{unlike.abs().max():.1e}", f"{own:.1f}", "",
                f"{float(frechet_distance(features(found.x), real)):.1f}",
            )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
