"""Tuned solvers against every untuned one, on starts that no fit has seen.

    python benchmarks/tuning.py                                  # every problem of problems.py
    python benchmarks/tuning.py circle/vp --nfe 5,10 --starts 1024 --every
    python benchmarks/tuning.py digits-net/vp --frechet          # and the Fréchet distance of 1,024 samples

The error of a start is the RMS over its dimensions to the flow's end (``problems.py`` says which): for exact targets
the end at σ → 0, for a network x at t_min denoised by one evaluation. Fitted and reported on the same kind of end; the
starts to report are a stream of their own. Untuned are the 105 cells that the search begins from, or with ``--every``
each deterministic solver of the registry on each named grid, all with the last denoising at no evaluation.
Intervals are 95%, a bootstrap over starts of the ratio to the best untuned cell, chosen on the same starts (which
favours the untuned). One line of ``out/tuning/report.jsonl`` a cell: a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from problems import END, ENDPOINT, PROBLEM, Problem, problem
from torch import Tensor

import sdekit as sk
from sdekit.grid import GRIDS
from sdekit.sampling import batched
from sdekit.tuning.fit import starts_for
from sdekit.tuning.search import CANDIDATES
from sdekit.tuning.teacher import distance, solve, starts

FOLDER = Path("out/tuning")
KINDS = ("median", "rmse")
FRECHET_NFE, FRECHET_CELLS = 8, 12
SCREEN, KEPT = 64, 15
"""With --every: the cells of the registry are tried on so many starts, and the best of them by each error kept."""


def ends(one: Problem, start: Tensor, **conditions: Any) -> Tensor:
    """Where the flow ends from these starts at t_max."""
    if one.target is None:
        return solve(one.model, start, conditions, None, lambda *_: None)[0]
    first = one.process.knot(one.process.t_max)
    whole, (solver, grid) = sk.VE(sigma_min=END, sigma_max=first.sigma / first.alpha), ENDPOINT
    run = {"start": start / first.alpha, "solver": solver, "grid": grid, "nfe": 300, "final": "denoise"}
    return sk.sample(one.target().model(whole), start.shape, **run).x


def untuned(one: Problem, nfe: int, start: Tensor, end: Tensor, every: bool, **conditions: Any) -> dict[str, Tensor]:
    """The errors of the cells [n], by solver and grid; with ``every`` of those in front on the first ``SCREEN``."""
    if not every:
        return _cells(one, nfe, start, end, CANDIDATES, conditions)
    named = [*product(sk.solvers.names(), GRIDS), *CANDIDATES]
    few = {name: value[:SCREEN] for name, value in batched(conditions, len(start)).items()}
    screened = _cells(one, nfe, start[:SCREEN], end[:SCREEN], named, {**conditions, **few})
    front = dict.fromkeys(
        name for kind in KINDS for name in sorted(screened, key=lambda name: _error(screened[name], kind).item())[:KEPT]
    )
    kept = [cell for cell in named if " ".join(cell) in front]
    return _cells(one, nfe, start, end, [*kept, *CANDIDATES], conditions)


def _cells(
    one: Problem, nfe: int, start: Tensor, end: Tensor, cells: Sequence[tuple[str, str]], conditions: dict[str, Any]
) -> dict[str, Tensor]:
    found = {}
    for solver, grid in dict.fromkeys([("auto", "auto"), *cells]):
        try:
            rule = sk.solvers.get(solver)
            if solver != "auto" and rule.stochastic:
                continue
            run = {"solver": rule, "grid": grid, "nfe": nfe, "start": start, "final": "reuse"}
            found[f"{solver} {grid}"] = distance(sk.sample(one.model, start.shape, **run, **conditions).x, end)
        except ValueError:
            continue
    return {name: errors.nan_to_num(nan=torch.inf) for name, errors in found.items()}


def ratio(tuned: Tensor, other: Tensor, kind: str, draws: int = 2000) -> list[float]:
    """The ratio of the two errors' median or RMS, and its interval."""
    picks = torch.randint(len(tuned), (draws, len(tuned)), generator=torch.Generator().manual_seed(0))
    picks = torch.cat([torch.arange(len(tuned))[None], picks])
    values = [_error(errors[picks], kind) for errors in (tuned, other)]
    quotient = values[0] / values[1]
    return [quotient[0].item(), *quotient[1:].quantile(torch.tensor([0.025, 0.975], dtype=quotient.dtype)).tolist()]


def _error(errors: Tensor, kind: str) -> Tensor:
    return errors.median(-1).values if kind == "median" else errors.square().mean(-1).sqrt()


def measure(one: Problem, nfe: int, options: argparse.Namespace) -> dict[str, Any]:
    """One cell: the fit, kept as JSON, and its errors on fresh starts."""

    def own_ends(start: Tensor, **conditions: Any) -> Tensor:
        return ends(one, start, **conditions)

    began = time.process_time()
    sizes = options.starts or starts_for(math.prod(one.event))
    fit = {"starts": sizes, "budget": options.budget, "seed": options.seed, **one.conditions(sizes)}
    plan = sk.tune(one.model, (1, *one.event), nfe, endpoints=None if one.target is None else own_ends, **fit)
    seconds = time.process_time() - began
    plan.save(FOLDER / f"{one.name.replace('/', '-')}-{nfe}-{sizes}-{options.seed}.json")
    start, conditions = starts(one.model, one.event, "report", options.report), one.conditions(options.report)
    end = ends(one, start, **conditions)
    with torch.no_grad():
        tuned = distance(sk.sample(one.model, start.shape, solver=plan, start=start, **conditions).x, end)
    others = untuned(one, nfe, start, end, options.every, **conditions)
    origin = others["{solver} {grid}".format(**plan.record["start"])]
    best = {kind: min(others, key=lambda name, kind=kind: _error(others[name], kind).item()) for kind in KINDS}
    return {
        "problem": one.name, "nfe": nfe, "starts": options.starts, "seed": options.seed, "every": options.every,
        "report": options.report, "budget": options.budget,
        "cpu_seconds": round(seconds, 1), "evaluations": plan.record["evaluations"], "stage": plan.record["stage"],
        "tuned": {kind: _error(tuned, kind).item() for kind in KINDS},
        "best": {kind: [best[kind], _error(others[best[kind]], kind).item()] for kind in KINDS},
        "ratio": {kind: ratio(tuned, others[best[kind]], kind) for kind in KINDS},
        "to_start": {kind: ratio(tuned, origin, kind) for kind in KINDS},
        "auto": {kind: ratio(tuned, others["auto auto"], kind) for kind in KINDS},
        **({"frechet": frechet(one, plan)} if options.frechet else {}),
    }  # fmt: skip


def frechet(one: Problem, plan: sk.tuning.Tuned, seeds: Sequence[int] = (11, 12, 13), n: int = 2048) -> dict[str, Any]:
    """Fréchet distance to the held-out digits in the features of ``compare``, a number a seed: of the plan, and of the
    best cell with ``FRECHET_NFE`` evaluations, chosen by another seed among those with the smallest errors."""
    from sdekit.data import digits
    from sdekit.metrics import METRICS
    from sdekit.nn import digits_features

    features, real, distance_of = digits_features(), digits().held_out, METRICS["frechet"].distance

    def value(seed: int, count: int = n, **run: Any) -> float:
        with torch.no_grad():
            x = sk.sample(one.model, (count, *one.event), seed=seed, batch_size=256, **run).x
            return round(distance_of(features(x), features(real)).item(), 2)

    start = starts(one.model, one.event, "report", 256)
    cells = untuned(one, FRECHET_NFE, start, ends(one, start), every=True)
    front = sorted(cells, key=lambda name: _error(cells[name], "median").item())[:FRECHET_CELLS]
    runs = {name: dict(zip(("solver", "grid"), name.split(" ", 1)), nfe=FRECHET_NFE) for name in front}
    chosen = min(runs, key=lambda name: value(7, 1024, **runs[name]))
    others = [value(seed, **runs[chosen]) for seed in seeds]
    return {"tuned": [value(seed, solver=plan) for seed in seeds], "best": [chosen, others]}


def show(record: dict[str, Any]) -> None:
    parts = [f"{record['problem']:22}{record['nfe']:>4}{record['starts'] or '':>6}"]
    for kind in KINDS:
        value, low, high = record["ratio"][kind]
        name, other = record["best"][kind]
        parts.append(
            f"  {kind} {record['tuned'][kind]:.3g} / {other:.3g} = {value:.2f} [{low:.2f}, {high:.2f}] ({name})"
        )
    starts_ratio = ", ".join(f"{record['to_start'][kind][0]:.2f}" for kind in KINDS)
    parts.append(f"  to its start {starts_ratio}; {record['stage']}, {record['cpu_seconds']:.0f} s")
    if "frechet" in record:
        parts.append(f"  frechet {record['frechet']}")
    print("".join(parts), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=list(PROBLEM))
    parser.add_argument("--nfe", default="4,5,6,8,10,15")
    parser.add_argument("--starts", type=int, help="of the fit; by default what tune takes")
    parser.add_argument("--report", type=int, default=256, help="fresh starts")
    parser.add_argument("--budget", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", action="store_true")
    parser.add_argument("--frechet", action="store_true")
    options = parser.parse_args()
    path = FOLDER / "report.jsonl"
    FOLDER.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(r["problem"], r["nfe"], r["starts"], r["seed"], r["every"], r["report"], r["budget"]): r for r in known}
    for name, nfe in product(options.names, [int(n) for n in options.nfe.split(",")]):
        key = (name, nfe, options.starts, options.seed, options.every, options.report, options.budget)
        if key not in done:
            done[key] = measure(problem(name), nfe, options)
            with path.open("a") as file:
                file.write(json.dumps(done[key]) + "\n")
        show(done[key])


if __name__ == "__main__":
    main()
