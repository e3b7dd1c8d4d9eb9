"""This package against other libraries on the shipped digits network, as tables for docs/compare.md.

    python benchmarks/peers.py           # some five minutes of one core; a stopped run goes on from out/peers

Every row has the same network, starts and ends (t_max to t_min, then the denoised sample), and is given as many
evaluations as are counted at the network; those that it took otherwise are in brackets. The libraries are those of
``sdekit.interop.peers`` that are installed, each by its own code. Host microseconds are of each library's own loop on a
network that costs next to nothing (``overhead.py``), less that network's calls.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from overhead import STEPS, host_cost

import sdekit as sk
from sdekit import subjects
from sdekit.comparison import Cell, Comparison
from sdekit.interop.peers import PEERS, installed
from sdekit.metrics import METRICS
from sdekit.ranking import matrix, over_seeds, taken
from sdekit.report.numbers import shown

OURS = ("auto", "unipc-2", "dpmpp-2m", "heun", "ddim")
SHOWN = ("median_error", "rmse", "frechet")


def measured(out: Path, samples: int, threads: int) -> Comparison:
    torch.set_num_threads(threads)
    digits = subjects.target("digits", torch.device("cpu"))
    assert digits.reference is not None
    return sk.compare(
        digits.model, digits.reference, solvers=[*OURS, *installed()], nfe=[5, 10, 20, 50], seed=[0, 1, 2],
        samples=samples, real=digits.real, features=digits.features, target="digits", out=out,
    )  # fmt: skip


def quality(result: Comparison, metric: str) -> None:
    """A row for each contender, the best on top; as in the report."""
    found = matrix(result, metric)
    floor = f", floor {result.floor[metric]:.3g}"
    print(f"\n{METRICS[metric].label}{floor}\n\n| | " + " | ".join(f"NFE {n}" for n in found.nfe) + " |")
    print("|---|" + "---|" * len(found.nfe))
    for row, marks in zip(found.rows, found.marks):
        cells = {cell.nfe: cell for cell in row}
        entries = [_entry(cells.get(n), metric, mark) for n, mark in zip(found.nfe, marks)]
        print(f"| {row[0].solver} | " + " | ".join(entries) + " |")


def _entry(cell: Cell | None, metric: str, mark: str) -> str:
    if cell is None or metric not in cell.metrics:
        return "n/a"
    value, half = shown(cell, metric)
    other = f" ({taken(cell):g})" * (round(taken(cell)) != cell.nfe)
    return f"{value} ± {half}".removesuffix(" ± ") + mark.replace("*", r"\*") + other


def seconds(result: Comparison, nfe: int) -> None:
    """Of all samples of a cell, the mean over seeds."""
    cells = [cell for cell in over_seeds(result.cells) if cell.nfe == nfe and cell.seconds]
    print(f"\nSeconds for {cells[0].samples} samples at NFE {nfe}\n\n| | seconds | an evaluation, ms |\n|---|---|---|")
    for cell in sorted(cells, key=lambda cell: cell.seconds):
        print(f"| {cell.solver} | {cell.seconds:.2f} | {cell.seconds / taken(cell) * 1e3:.1f} |")


def host(repeats: int) -> None:
    best = host_cost(repeats)
    bare = best.pop("bare network")
    print("\nHost, trivial network, 16×3×8×8\n\n| | µs a step |\n|---|---|")
    for name, spent in sorted(best.items(), key=lambda item: item[1]):
        print(f"| {name} | {(spent - bare) / STEPS * 1e6:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/peers"))
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    result = measured(options.out, options.samples, options.threads)
    print(", ".join(f"{peer.package} {peer.version() or 'not installed'}" for peer in PEERS.values()))
    for metric in SHOWN:
        quality(result, metric)
    seconds(result, 20)
    host(options.repeats)


if __name__ == "__main__":
    main()
