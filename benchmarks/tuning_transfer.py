"""Tuned with labels and guidance in place, and carried to what they were not tuned on: the digits networks.

    python benchmarks/tuning_transfer.py                  # all cells
    python benchmarks/tuning_transfer.py labels guided --nfe 6 --budget 200000

    labels    the shipped network, labels 0 … 9 in turn
    guided    classifier-free guidance of scale 2 around it, labels in turn; an evaluation is two calls of the network
    classes   tuned with labels 0 … 4, run with labels 5 … 9, beside a plan tuned on those
    network   tuned on a smaller network of the same digits and process (``problem_networks.py``) and run on the
              shipped one, beside a plan tuned on that

Errors as in ``tuning.py``, on starts of the stream ``report``; the best untuned is chosen on the same starts.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from problem_networks import network
from torch import Tensor
from tuning import CANDIDATES, KINDS, ratio

import sdekit as sk
from sdekit.nn import digits_model
from sdekit.sampling import Model
from sdekit.tuning.teacher import distance, solve, starts

EVENT = (1, 8, 8)


def cells() -> dict[str, tuple[Model, range | None, Model, range | None]]:
    """What is tuned with which labels, and what it is run on with which."""
    shipped = digits_model()
    guided = sk.guidance.ClassifierFree(shipped, 2.0, null={"label": 10})
    every, low, high = range(10), range(5), range(5, 10)
    return {
        "labels": (shipped, every, shipped, every),
        "guided": (guided, every, guided, every),
        "classes": (shipped, low, shipped, high),
        "classes-own": (shipped, high, shipped, high),
        "network": (network("digits-vp"), None, shipped, None),
        "network-own": (shipped, None, shipped, None),
    }


def labels(which: range | None, n: int) -> dict[str, Tensor]:
    return {} if which is None else {"label": which.start + torch.arange(n) % len(which)}


def report(model: Model, which: range | None, plan: sk.tuning.Tuned, nfe: int, n: int) -> str:
    start, told = starts(model, EVENT, "report", n), labels(which, n)
    end = solve(model, start, told, None, lambda *_: None)[0]

    def errors(**run: Any) -> Tensor:
        with torch.no_grad():
            return distance(sk.sample(model, start.shape, start=start, **run, **told).x, end)

    others = [errors(solver=s, grid=g, nfe=nfe, final="reuse") for s, g in CANDIDATES]
    tuned, parts = errors(solver=plan), list[str]()
    for kind in KINDS:
        measure = {"median": lambda e: e.median(), "rmse": lambda e: e.square().mean()}[kind]
        value, low, high = ratio(tuned, min(others, key=measure), kind)
        parts.append(f"{kind} {value:.2f} [{low:.2f}, {high:.2f}]")
    return "  ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--nfe", type=int, default=6)
    parser.add_argument("--budget", type=int, default=200_000)
    parser.add_argument("--report", type=int, default=255)
    options = parser.parse_args()
    found = cells()
    for name in options.names or found:
        model, which, other, its = found[name]
        plan = sk.tune(model, (1, *EVENT), options.nfe, budget=options.budget, **labels(which, 200))
        print(f"{name:14}{report(other, its, plan, options.nfe, options.report)}", flush=True)


if __name__ == "__main__":
    main()
