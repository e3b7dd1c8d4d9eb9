"""Which solver and grid is best at each NFE, and how near ``auto`` comes: RMSE to the exact ODE endpoint.

    python benchmarks/quality.py                     # every deterministic solver × grid, and auto
    python benchmarks/quality.py --solvers unipc-2,deis-3 --problem digits
    python benchmarks/quality.py --solvers dpm-solver-v3,unipc-2   # fitted to each problem first, 1,024 samples

Problems: 8 modes on a circle in 2-D, and the digits as a mixture (``Empirical(digits, 0.1)``), under VP, 64 float64
starts of torch seed 0. The endpoint is the flow's x at t_min (``final="none"``: every evaluation is a step's), from a
solve of order 3 in 1,500 evaluations that one of 3,000 confirms. PEERS are the best of some 60 configurations of
k-diffusion, diffusers and the reference code of DPM-Solver and UniPC on the digits problem, measured before.

A root mean square is led by the worst sample: one that crosses the watershed between two modes outweighs all others.
Which method that happens to is chance, so that the best of many is partly lucky.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import sdekit as sk
from sdekit.data import digits
from sdekit.grid import GRIDS
from sdekit.model import ScoreModel
from sdekit.names import parse
from sdekit.targets import Empirical, GaussianMixture, Target

NFE = (5, 6, 8, 10, 12, 15, 20, 30, 50)
PEERS = (0.181, 0.149, 0.110, 0.0741, 0.0652, 0.0428, 0.0089, 0.0029, 0.00042)


def circle() -> GaussianMixture:
    angles = torch.arange(8, dtype=torch.float64) * (torch.pi / 4)
    return GaussianMixture(torch.stack([angles.cos(), angles.sin()], dim=1), 0.1)


def digits_mixture() -> Empirical:
    images = digits()
    return Empirical(torch.cat([images.train, images.held_out]).double(), 0.1)


PROBLEMS = {"circle": circle, "digits": digits_mixture}


def endpoint(model: ScoreModel, start: Tensor, cache: Path) -> Tensor:
    """The accurate endpoint, kept in ``cache``; raises where two solves of it disagree."""
    if cache.exists():
        return load_file(cache)["x"]
    fine, finer = (
        sk.sample(model, start.shape, solver="dpm-solver-3", nfe=n, start=start, final="none").x for n in (1500, 3000)
    )
    gap = (fine - finer).square().mean().sqrt().item()
    if gap > 1e-6:  # 1/400 of the least error that it is to measure
        raise RuntimeError(f"the endpoint is only known to {gap:g}")
    save_file({"x": finer}, cache)
    return finer


def solver_for(spec: str, problem: str, target: Target, model: ScoreModel, cache: Path) -> str | sk.solvers.Solver:
    """``spec``, or DPM-Solver-v3 with these options and the problem's statistics, which are kept beside ``cache``."""
    name, options = parse(spec)
    if name != "dpm-solver-v3":
        return spec
    kept = cache.with_name(f"statistics-{problem}.safetensors")
    if not kept.exists():
        sk.solvers.fit_statistics(model, target.sample(1024, seed=5), batch_size=256).save(kept)
    return sk.solvers.Statistics.load(kept).solver(**options)


def measure(problem: str, solvers: list[str], grids: list[str], cache: Path) -> Iterator[dict[str, object]]:
    """One record a cell; those in ``cache`` are not computed again."""
    target = PROBLEMS[problem]()
    model = target.model(sk.VP())
    start = torch.randn(64, *target.event, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    known = [json.loads(line) for line in cache.read_text().splitlines()] if cache.exists() else []
    done = {(r["problem"], r["solver"], r["grid"], r["nfe"]): r for r in known}
    exact = endpoint(model, start, cache.with_name(f"endpoint-{problem}.safetensors"))
    rules = {solver: solver_for(solver, problem, target, model, cache) for solver in ["auto", *solvers]}
    for solver, grid, nfe in [*product(["auto"], ["auto"], NFE), *product(solvers, grids, NFE)]:
        key, rule = (problem, solver, grid, nfe), rules[solver]
        if key not in done:
            try:
                x = sk.sample(model, start.shape, solver=rule, nfe=nfe, grid=grid, start=start, final="none").x
                rmse = (x - exact).square().mean().sqrt().item()
            except ValueError:
                rmse = math.inf
            done[key] = dict(zip(("problem", "solver", "grid", "nfe"), key)) | {"rmse": rmse}
            with cache.open("a") as file:
                file.write(json.dumps(done[key]) + "\n")
        yield done[key]


def show(problem: str, records: list[dict[str, object]]) -> None:
    print(f"\n{problem}\n{'NFE':>4}  {'auto':>9}  ratio  {'best':>9}  {'peers':>9}  configuration; the runners-up")
    for nfe, peer in zip(NFE, PEERS):
        (auto,) = (r["rmse"] for r in records if r["nfe"] == nfe and r["solver"] == "auto")
        fixed = (r for r in records if r["nfe"] == nfe and r["solver"] != "auto")
        row = sorted(fixed, key=lambda r: r["rmse"])[:4]
        names = "; ".join(f"{r['solver']} {r['grid']} {r['rmse']:.3g}" for r in row)
        reference = f"{peer:9.3g}" if problem == "digits" else " " * 9
        best = row[0]["rmse"]
        print(f"{nfe:>4}  {auto:9.3g}  {auto / best:5.2f}  {best:9.3g}  {reference}  {names}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problem", choices=PROBLEMS, action="append")
    parser.add_argument("--solvers", default="")
    parser.add_argument("--grids", default=",".join(GRIDS))
    parser.add_argument("--cache", type=Path, default=Path("out/quality.jsonl"))
    options = parser.parse_args()
    options.cache.parent.mkdir(parents=True, exist_ok=True)
    registered = [name for name in sk.solvers.names() if name != "auto" and not sk.solvers.get(name).stochastic]
    solvers = options.solvers.split(",") if options.solvers else registered
    for problem in options.problem or PROBLEMS:
        show(problem, list(measure(problem, solvers, options.grids.split(","), options.cache)))


if __name__ == "__main__":
    main()
