"""Samplers by what they draw, not by the ODE's end: distances to the data, for ``auto-sde``.

    python benchmarks/auto_sde.py

Trained networks (``problems.py``) against the images that they were trained on, and exact mixtures against samples of
their own, where all that is left is the solver's bias. Distances: sliced Wasserstein; for networks of the digits the
Fréchet distance of the shipped features, too. ``data`` is the distance of as many real samples, the floor. One line of
``out/problems/distances.jsonl`` a cell: a run computes only what is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from pathlib import Path

import problem_data as data
import torch
from problem_networks import RECIPES
from problems import FOLDER, problem
from torch import Tensor

import sdekit as sk
from sdekit.metrics import frechet_distance, sliced_wasserstein
from sdekit.nn import digits_features

NFE = (5, 10, 15, 20, 30, 50)
NETWORKS = (
    "digits-net/vp", "digits-net-labels/vp", "digits-net/ve", "patches-net/flow", "faces-net/cosine", "roll-net/table",
)  # fmt: skip
EXACT = ("circle/vp", "unequal/cosine", "ellipsoids/table", "roll/vp", "curve/flow", "cancer/flow", "digits/vp")
ODE = (("auto", "auto"),)
SOLVERS = (
    "ddpm", "gddim", "dpmpp-2m-sde", "dpmpp-2m-sde(eta=0.5)", "dpmpp-3m-sde", "er-sde-2", "er-sde-3", "sa-solver",
    "sa-solver(tau=0.5)",
)  # fmt: skip
GRIDS = ("logsnr", "vp-time", "vp-time(power=3)", "vp-time(power=4, blend=0.4)")
Choice = tuple[str, str]


@cache
def real(name: str, n: int) -> Tensor:
    """What the problem's samples are compared with."""
    one, kind = problem(name), name.split("/")[0].removesuffix("-labels").removesuffix("-net")
    if one.target is not None:
        return one.target().sample(4 * n, seed=1)
    return data.all_digits() if kind == "digits" else RECIPES[kind].images().double()


@cache
def measured(name: str) -> bool:
    """Whether the features measure the problem's samples."""
    return name.startswith("digits-net")


def distances(name: str, x: Tensor, y: Tensor) -> dict[str, float]:
    found = {"sliced": sliced_wasserstein(x, y).item()}
    if measured(name):
        features = digits_features()
        found["frechet"] = frechet_distance(*(features(part.float()) for part in (x, y))).item()
    return found


@torch.no_grad()
def floor(name: str, n: int) -> dict[str, float]:
    """The distances of real samples: fresh ones of a target, one half of a data set against the other."""
    one, y = problem(name), real(name, n)
    if one.target is not None:
        return distances(name, one.target().sample(n, seed=2), y)
    order = data.normals(3, len(y)).argsort()
    half = min(n, len(y) // 2)
    return distances(name, y[order[:half]], y[order[half:]])


@torch.no_grad()
def measure(name: str, solver: str, grid: str, nfe: int, n: int) -> dict[str, float]:
    one = problem(name)
    start, conditions = one.starts(n), one.conditions(n)
    x = sk.sample(one.model, start.shape, solver=solver, grid=grid, nfe=nfe, start=start, seed=0, **conditions).x
    return distances(name, x.nan_to_num(1e3, 1e3, -1e3).clamp(-1e3, 1e3), real(name, n))


class Distances:
    """The cells in a file, by the problem and the table that ran."""

    def __init__(self, path: Path, n: int) -> None:
        self.path, self.n = path, n
        lines = path.read_text().splitlines() if path.exists() else []
        self.known = {record["key"]: record["distances"] for record in map(json.loads, lines)}

    def cell(self, name: str, solver: str, grid: str, nfe: int) -> dict[str, float]:
        one = problem(name)
        table = repr(sk.solvers.get(solver).plan(one.process, nfe=nfe, grid=grid))
        key = hashlib.sha256(repr((name, one.key, self.n, table)).encode()).hexdigest()[:16]
        if key not in self.known:
            self.known[key] = measure(name, solver, grid, nfe, self.n)
            about = {"problem": name, "solver": solver, "grid": grid, "nfe": nfe, "samples": self.n}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps({"key": key, **about, "distances": self.known[key]}) + "\n")
        return self.known[key]


def left_out(ratios: dict[str, dict[Choice, float]]) -> Iterator[tuple[str, Choice]]:
    """For each network, the stochastic choice of the least mean log ratio over networks of other data."""
    for name in ratios:
        others = [row for other, row in ratios.items() if family(other) != family(name)]
        yield name, min(ratios[name], key=lambda choice: sum(row[choice] for row in others))


def family(name: str) -> str:
    """What data it is: problems of one family are left out together."""
    return name.split("/")[0].split("-")[0]


def show(distances: Distances, problems: Sequence[str], choices: Sequence[Choice], nfe: int, metric: str) -> None:
    rows = {
        name: {one: distances.cell(name, *one, nfe)[metric] for one in choices}
        for name in problems
        if metric == "sliced" or measured(name)
    }
    names = [name for name in rows if name in NETWORKS]
    logs = {
        name: {one: math.log(value / min(rows[name].values())) for one, value in rows[name].items()} for name in names
    }
    chosen = dict(left_out(logs)) if metric == "sliced" else {}
    print(f"\nNFE {nfe}, {metric}: data, auto, auto-sde left out, best stochastic")
    for name, row in rows.items():
        auto = distances.cell(name, "auto", "auto", nfe)[metric]
        best = min(row, key=lambda one: row[one])
        own = f"{row[chosen[name]]:10.3g}" if name in chosen else " " * 10
        print(
            f"{name:22}{floor(name, distances.n)[metric]:10.3g}{auto:10.3g}{own}{row[best]:10.3g}  {' '.join(best)}; "
            f"{' '.join(chosen.get(name, ()))}"
        )
    means = {one: sum(row[one] for row in logs.values()) / len(logs) for one in choices}
    for one in sorted(means, key=lambda one: means[one])[:6]:
        print(f"    {math.exp(means[one]):6.2f}  {' '.join(one)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problems", default=";".join([*NETWORKS, *EXACT]), help="separated by ;")
    parser.add_argument("--solvers", default=";".join(SOLVERS), help="separated by ;")
    parser.add_argument("--grids", default=";".join(GRIDS), help="separated by ;")
    parser.add_argument("--nfe", default=",".join(map(str, NFE)))
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--cells", type=Path, default=FOLDER / "distances.jsonl")
    options = parser.parse_args()
    known, budgets = Distances(options.cells, options.samples), [int(n) for n in options.nfe.split(",")]
    choices = list(product(options.solvers.split(";"), options.grids.split(";")))
    for name in options.problems.split(";"):
        for nfe, choice in product(budgets, [*ODE, *choices]):
            known.cell(name, *choice, nfe)
        print(name, flush=True)
    for nfe, metric in product(budgets, ("sliced", "frechet")):
        show(known, options.problems.split(";"), choices, nfe, metric)


if __name__ == "__main__":
    main()
