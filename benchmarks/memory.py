"""How much memory a comparison takes, few samples or many, few cells or many: peaks, each in a process of its own.

    python benchmarks/memory.py            # some five minutes of one core
    python benchmarks/memory.py digits     # one kind: plane, digits or cells

The peak is of the process's resident set (``ru_maxrss``), PyTorch and the data with it. ``plane`` leaves out the energy
distance, whose time grows with the square of the number of samples; ``digits`` has every default metric that needs no
exact endpoint, which is 150 evaluations of each. Linux and macOS.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

CASES = {"plane": (1_000, 100_000), "digits": (512, 20_000), "cells": (50, 1_000)}


def run(case: str, size: int) -> int:
    """How many cells it computed."""
    import torch

    import sdekit as sk
    from sdekit import subjects

    torch.set_num_threads(1)
    subject = subjects.target("digits" if case == "digits" else "mixture-2d", torch.device("cpu"))
    assert subject.reference is not None
    given: dict[str, Any] = {"solvers": ["auto", "ddpm"], "nfe": [10], "samples": size}
    if case == "plane":
        given["metrics"] = ["rmse", "median_error", "sliced_wasserstein", "frechet"]
    if case == "digits":
        given |= {"solvers": ["ddpm"], "nfe": [5], "metrics": ["sliced_wasserstein", "energy", "frechet"]}
    if case == "cells":
        given |= {"samples": 256, "seed": range(size // 2), "metrics": ["rmse", "frechet"]}
    with tempfile.TemporaryDirectory() as out:
        result = sk.compare(
            subject.model, subject.reference, real=subject.real, features=subject.features, out=out, **given
        )
    return len(result.cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--here", type=int)
    options = parser.parse_args()
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if options.here:
        began = time.perf_counter()
        cells = run(options.cases[0], options.here)
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        print(json.dumps({"cells": cells, "seconds": time.perf_counter() - began, "mib": peak / 2**20}))
        return
    for case in options.cases or CASES:
        for size in CASES[case]:
            command = [sys.executable, __file__, case, "--here", str(size)]
            told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            what = "cells" if case == "cells" else "samples"
            print(f"{case}, {size:,} {what}: {told['mib']:.0f} MiB, {told['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
