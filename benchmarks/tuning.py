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
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from problems import END, ENDPOINT, PROBLEM, Problem, problem
from torch import Tensor

import sdekit as sk
from sdekit.grid import GRIDS
from sdekit.tuning.search import CANDIDATES
from sdekit.tuning.teacher import distance, solve, starts

FOLDER = Path("out/tuning")


def ends(one: Problem, start: Tensor, **conditions: Any) -> Tensor:
    """Where the flow ends from these starts at t_max."""
    if one.target is None:
        return solve(one.model, start, conditions, None, lambda *_: None)[0]
    first = one.process.knot(one.process.t_max)
    whole, (solver, grid) = sk.VE(sigma_min=END, sigma_max=first.sigma / first.alpha), ENDPOINT
    run = {"start": start / first.alpha, "solver": solver, "grid": grid, "nfe": 300, "final": "denoise"}
    return sk.sample(one.target().model(whole), start.shape, **run).x


def untuned(one: Problem, nfe: int, start: Tensor, end: Tensor, every: bool, **conditions: Any) -> dict[str, Tensor]:
    """The errors of each cell [n], by solver and grid."""
    cells = product(sk.solvers.names(), GRIDS) if every else CANDIDATES
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
    fit = {"starts": options.starts, "budget": options.budget, "seed": options.seed, **one.conditions(options.starts)}
    plan = sk.tune(one.model, (1, *one.event), nfe, endpoints=None if one.target is None else own_ends, **fit)
    seconds = time.process_time() - began
    plan.save(FOLDER / f"{one.name.replace('/', '-')}-{nfe}-{options.starts}-{options.seed}.json")
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
        **({"frechet": frechet(one, plan, others, nfe)} if options.frechet else {}),
    }  # fmt: skip


KINDS = ("median", "rmse")


def frechet(one: Problem, plan: sk.tuning.Tuned, others: dict[str, Tensor], nfe: int, n: int = 1024) -> dict[str, Any]:
    """Fréchet distance to the held-out digits in the features of ``compare``, of the plan and of the best cells."""
    from sdekit.data import digits
    from sdekit.metrics import METRICS
    from sdekit.nn import digits_features

    features, real, distance_of = digits_features(), digits().held_out, METRICS["frechet"].distance
    shown = sorted(others, key=lambda name: others[name].median().item())[:20]

    def value(**run: Any) -> float:
        with torch.no_grad():
            x = sk.sample(one.model, (n, *one.event), seed=11, batch_size=256, **run).x
            return round(distance_of(features(x), features(real)).item(), 2)

    cells = {
        name: value(solver=name.split()[0], grid=name.split(" ", 1)[1], nfe=nfe)
        for name in shown
        if "(" not in name.split(" ")[0]
    }
    return {"tuned": value(solver=plan), "best": min(cells.items(), key=lambda cell: cell[1])}


def show(record: dict[str, Any]) -> None:
    parts = [f"{record['problem']:22}{record['nfe']:>4}{record['starts']:>6}"]
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
    parser.add_argument("--starts", type=int, default=200, help="of the fit")
    parser.add_argument("--report", type=int, default=256, help="fresh starts")
    parser.add_argument("--budget", type=int, default=1_500_000)
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
