"""One fit for 4 to 20 evaluations against the best untuned solver of each, on fresh starts.

    python benchmarks/tuning_family.py circle/vp digits-net/vp    # names as in problems.py
    python benchmarks/tuning_family.py circle/vp --nfe 4,7,11 --budget 4000000

Numbers that no fit saw are marked. The best untuned of 105 cells is chosen for each number anew, on the same starts, by
median and by root mean square apart.
"""

from __future__ import annotations

import argparse
import time

import torch
from problems import problem
from torch import Tensor
from tuning import CANDIDATES, KINDS, _cells, _error, ends, ratio

import sdekit as sk
from sdekit.tuning.teacher import distance, starts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="+")
    parser.add_argument("--nfe", default="4,5,6,7,8,9,10,12,15,17,20")
    parser.add_argument("--report", type=int, default=255)
    parser.add_argument("--starts", type=int)
    parser.add_argument("--budget", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.names:
        one = problem(name)

        def own_ends(start: Tensor, one=one, **conditions: object) -> Tensor:
            return ends(one, start, **conditions)

        began = time.process_time()
        fit = {"starts": options.starts, "budget": options.budget, "endpoints": own_ends if one.target else None}
        family = sk.tune_family(one.model, (1, *one.event), range(4, 21), **fit)
        print(
            f"{name}: {family.record['stage']} from {family.curve.solver} on {family.curve.grid}, starts"
            f" {family.record['starts']}, {family.record['evaluations']} evaluations,"
            f" CPU {time.process_time() - began:.0f} s"
        )
        start = starts(one.model, one.event, "report", options.report)
        end = ends(one, start)
        for nfe in map(int, options.nfe.split(",")):
            cells = _cells(one, nfe, start, end, CANDIDATES, {})
            with torch.no_grad():
                tuned = distance(sk.sample(one.model, start.shape, solver=family, nfe=nfe, start=start).x, end)
            parts = [f"{nfe:>4}{' ' if nfe in family.record['fitted'] else '*'}"]
            for kind in KINDS:
                best = min(cells, key=lambda cell: _error(cells[cell], kind).item())
                value, low, high = ratio(tuned, cells[best], kind)
                parts.append(f"{kind} {_error(tuned, kind).item():.3g}  {value:.2f} [{low:.2f}, {high:.2f}] of {best}")
            print("   ".join(parts), flush=True)


if __name__ == "__main__":
    main()
