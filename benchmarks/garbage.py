"""Where a few-step run of a multistep method is far worse than DDIM on the same grid: every solver × grid × NFE 4–20.

    python benchmarks/garbage.py       # both problems; an hour of a busy core; --cache keeps what is done

The figure is the RMSE to the exact end of the probability-flow ODE over DDIM's, with the starts, problems and end of
``quality.py`` (``final="none"``: every evaluation is a step's). Deterministic multistep methods as they are by default,
and their published variants. Cells above 2 are listed; ``median`` is the ratio of the medians over starts.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import quality
import torch
from torch import Tensor

import sdekit as sk
from sdekit.grid import GRIDS

NFE = range(4, 21)
LIMIT = 2.0
SAME = {"exponential": "logsnr"}
"""Grids that are another by a second name."""
VARIANTS = (
    "unipc-1(variant='bh1')", "unipc-2(variant='bh1')", "unipc-3(variant='bh1')", "unipc-4(variant='bh1')",
    "unipc-3(start='single-step')", "unipc-4(start='single-step')", "dpmpp-3m-corrected(start='single-step')",
    "deis-3(start='single-step')", "deis-4(start='single-step')", "lms(start='single-step')",
    "adams-eps(order=2, start='lower-order')", "adams-eps(order=3, start='lower-order')", "adams-eps(order=4)",
    "adams-x0(order=2, start='lower-order')", "adams-x0(order=3, start='lower-order')", "adams-x0(order=4)",
    "sa-solver(tau=0)", "sa-solver(tau=0, predictor=2, corrector=1, slope='published')",
)  # fmt: skip


def solvers() -> list[str]:
    """Deterministic solvers that use predictions of earlier steps, by default and in their variants."""
    rules = (sk.solvers.get(name) for name in sk.solvers.names())
    several = [rule.name for rule in rules if not rule.stochastic and _remembers(rule)]
    return [*several, *VARIANTS]


def _remembers(rule: sk.solvers.Solver) -> bool:
    """Whether a step late in a run uses more predictions than it makes."""
    plan = rule.plan(sk.VP(), steps=12, final="none")
    evaluated, deepest = 0, 0
    for row in plan.rows:
        evaluated += row.evaluate
        deepest = max(deepest, len(row.history) - evaluated)
        evaluated = 0 if row.commit else evaluated
    return deepest > 0


def distance(model: sk.ScoreModel, start: Tensor, exact: Tensor, spec: str, grid: str, nfe: int) -> tuple[float, float]:
    """RMSE over all coordinates and the median over starts of each one's; infinite where the budget is too small."""
    try:
        x = sk.sample(model, start.shape, solver=spec, nfe=nfe, grid=grid, start=start, final="none").x
    except ValueError:
        return math.inf, math.inf
    square = (x - exact).flatten(1).square().mean(1)
    return square.mean().sqrt().item(), square.sqrt().median().item()


def measure(problem: str, cache: Path) -> Iterator[dict[str, object]]:
    """One record a cell, DDIM's first; those in ``cache`` are not computed again."""
    target = quality.PROBLEMS[problem]()
    model = target.model(sk.VP())
    start = torch.randn(64, *target.event, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = quality.endpoint(model, start, cache.with_name(f"endpoint-{problem}.safetensors"))
    known = [json.loads(line) for line in cache.read_text().splitlines()] if cache.exists() else []
    done = {(r["problem"], r["solver"], r["grid"], r["nfe"]): r for r in known}
    for spec in ["ddim", *solvers()]:
        for grid in (grid for grid in GRIDS if grid not in SAME):
            for nfe in NFE:
                key = (problem, spec, grid, nfe)
                if key not in done:
                    rmse, median = distance(model, start, exact, spec, grid, nfe)
                    done[key] = dict(zip(("problem", "solver", "grid", "nfe"), key)) | {"rmse": rmse, "median": median}
                    with cache.open("a") as file:
                        file.write(json.dumps(done[key]) + "\n")
                yield done[key]


def show(problem: str, records: list[dict[str, object]]) -> None:
    ddim = {(r["grid"], r["nfe"]): r for r in records if r["solver"] == "ddim"}
    rest = [r for r in records if r["solver"] != "ddim" and math.isfinite(r["rmse"])]
    over = [r for r in rest if r["rmse"] > LIMIT * ddim[r["grid"], r["nfe"]]["rmse"]]
    print(f"\n{problem}: {len(over)} of {len(rest)} cells above {LIMIT:g} times DDIM")
    for r in sorted(over, key=lambda r: (r["solver"], r["grid"], r["nfe"])):
        base = ddim[r["grid"], r["nfe"]]
        ratio, median = r["rmse"] / base["rmse"], r["median"] / base["median"]
        print(f"{r['solver']:50} {r['grid']:15} NFE {r['nfe']:2}  {ratio:7.2f}  median {median:7.2f}  {r['rmse']:.3g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problem", choices=quality.PROBLEMS, action="append")
    parser.add_argument("--cache", type=Path, default=Path("out/garbage.jsonl"))
    options = parser.parse_args()
    options.cache.parent.mkdir(parents=True, exist_ok=True)
    for problem in options.problem or quality.PROBLEMS:
        show(problem, list(measure(problem, options.cache)))


if __name__ == "__main__":
    main()
