"""What metrics cost on features: seconds, processor seconds and peak memory, each in a process of its own.

    python benchmarks/metrics.py                             # 50,000 × 768, some half hour on one core
    python benchmarks/metrics.py --samples 5000 frechet kernel

The features are random, of the Gaussian law, float32, two sets of them. Peak memory is the process's resident set,
with the sets (307 MB at 50,000 × 768) and PyTorch itself: the row ``nothing`` is what those take. Linux and macOS.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from sdekit import metrics

MEASURED: dict[str, Callable[[Tensor, Tensor], object]] = {
    "nothing": lambda x, y: 0.0,
    "frechet": metrics.frechet_distance,
    "vendi": lambda x, y: metrics.vendi_score(x),
    "sliced_wasserstein": metrics.sliced_wasserstein,
    "kernel": metrics.kernel_distance,
    "mmd": metrics.mmd,
    "prdc": metrics.prdc,
    "authenticity": metrics.authenticity,
    "classifier": metrics.classifier_accuracy,
}


def alone(name: str, samples: int, dimensions: int) -> str:
    """One metric in this process: a line of the table."""
    sets = [torch.randn(samples, dimensions, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    start, busy = time.perf_counter(), time.process_time()
    value = MEASURED[name](*sets)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    numbers = [float(one) for one in (value if isinstance(value, tuple) else (value,))]
    return f"{name:20}{seconds:10.1f}{busy:10.1f}{peak:10.2f}   {' '.join(f'{number:.6g}' for number in numbers)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(MEASURED)}; all by default")
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--dimensions", type=int, default=768)
    parser.add_argument("--here", action="store_true", help="one name, in this process")
    options = parser.parse_args()
    if unknown := set(options.names) - set(MEASURED):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if options.here:
        print(alone(*options.names, options.samples, options.dimensions))
        return
    print(f"{options.samples} x {options.dimensions}, {torch.get_num_threads()} thread(s)")
    print(f"{'metric':20}{'seconds':>10}{'CPU s':>10}{'peak GiB':>10}   value", flush=True)
    size = [f"--samples={options.samples}", f"--dimensions={options.dimensions}"]
    for name in options.names or MEASURED:
        subprocess.run([sys.executable, __file__, "--here", name, *size], check=True)


if __name__ == "__main__":
    main()
