"""Every candidate (solver, grid) on every problem of ``problems.py``, and how far ``auto`` is from the best of them.

    python benchmarks/auto.py                              # every problem, some twenty minutes of one core
    python benchmarks/auto.py --starts 256 --problems digits/vp --nfe 5,10
    python benchmarks/auto.py --solvers "ddim;unipc-3(variant='bh1')" --grids "time;vp-time(power=3)" --final none
    python benchmarks/auto.py --peers                      # the peers' defaults too, where they are installed

One line of ``out/problems/cells.jsonl`` a cell, with the error of every start, keyed by the problem and by the table
that ran: a run computes only what is missing, ``auto`` costs nothing where it is one of the candidates, and a solver
that changes is measured again. Several runs on different problems may write to the file at once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path

import auto_choice
import torch
from problems import FOLDER, PROBLEM, Problem, problem, rms
from torch import Tensor

import sdekit as sk
from sdekit.interop import peers

NFE = (4, 5, 6, 8, 10, 12, 15, 20, 30, 50)
_BLEND, _BH1 = "vp-time(power=4, blend=0.4)", "unipc-3(variant='bh1')"
CANDIDATES = (
    ("ipndm-2", "vp-time(power=3)"), ("ipndm-3", "shift(shift=1.0)"), ("ipndm-3", "vp-time"),
    ("ipndm-3", "vp-time(power=2.5)"), ("ipndm-3", "vp-time(power=3)"), ("ipndm-3", _BLEND),
    ("ipndm-4", "vp-time(power=3)"), ("ipndm-4", _BLEND), ("ipndm", "vp-time(power=1.5)"), ("ipndm", "vp-time"),
    ("ipndm", "vp-time(power=2.5)"), ("ipndm", "vp-time(power=3)"), ("deis-4", "vp-time(power=1.5)"),
    ("deis-4", "vp-time"), ("deis-4", "vp-time(power=3)"), ("dpmpp-2m", "vp-time(power=3)"),
    ("unipc-2", "shift(shift=1.0)"), ("unipc-2", "vp-time(power=1.5)"), ("unipc-2", "vp-time"),
    ("unipc-2", "vp-time(power=3)"), ("unipc-2", "logsnr"), ("unipc-3", "shift(shift=1.0)"), (_BH1, "time"),
    (_BH1, "vp-time(power=3)"), (_BH1, _BLEND),
)  # fmt: skip
"""Of 15 solvers × 9 grids, 32 starts and 12 problems, those without which the best of the rest would be worse: with
these the mean over problems and budgets is within 0.5% of the best of all 135; and the choices before this one."""
LATE = (
    ("ipndm-3", "vp-time(power=3)"), ("ipndm-4", "vp-time(power=3)"), ("ipndm-4", _BLEND),
    ("ipndm", "vp-time(power=3)"), ("deis-4", "vp-time(power=1.5)"), ("deis-4", "vp-time"),
    ("deis-4", "vp-time(power=3)"), ("unipc-2", "vp-time(power=3)"), ("unipc-3", "shift(shift=1.0)"),
    (_BH1, "time"), (_BH1, "vp-time(power=3)"), (_BH1, _BLEND),
)  # fmt: skip
"""Of those, the ones that are measured at 30 and 50 evaluations, half of the cost."""


@dataclass(frozen=True)
class Cell:
    """One (problem, solver, grid, NFE): the RMS error of each start; none where the solver has no such plan."""

    problem: str
    solver: str
    grid: str
    nfe: int
    final: str
    key: str
    errors: tuple[float, ...]

    @property
    def values(self) -> Tensor:
        return torch.tensor(self.errors or [math.inf], dtype=torch.float64).nan_to_num(nan=math.inf, posinf=math.inf)

    @property
    def median(self) -> float:
        return self.values.quantile(0.5, interpolation="higher").item()

    @property
    def upper(self) -> float:
        """The 90% quantile."""
        return self.values.quantile(0.9, interpolation="higher").item()

    @property
    def rmse(self) -> float:
        return self.values.square().mean().sqrt().item()

    def interval(self, draws: int = 2000, level: float = 0.95) -> tuple[float, float]:
        """A bootstrap interval of ``rmse`` over starts (percentiles; the same draws for every cell)."""
        picks = torch.randint(len(self.values), (draws, len(self.values)), generator=torch.Generator().manual_seed(0))
        means = self.values.square()[picks].mean(1).sqrt()
        low, high = means.quantile(torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=means.dtype)).tolist()
        return low, high


def measure(one: Problem, solver: str, grid: str, nfe: int, starts: int = 64, final: str = "auto") -> Tensor:
    """The RMS error of each of the first ``starts`` starts against the problem's truth [starts].

    ``solver`` is a name with options, or a name of ``peers.PEERS``. Raises ValueError where there is no such plan.
    """
    exact, _ = one.endpoint
    start, conditions = one.starts()[:starts], one.conditions(starts)
    if solver in peers.PEERS:
        x = peers.PEERS[solver].run(one.model, start, nfe, **conditions)
    else:
        x = sk.sample(
            one.model, start.shape, solver=solver, grid=grid, nfe=nfe, start=start, final=final, **conditions
        ).x
    return rms(x - exact[:starts])


def key_of(one: Problem, solver: str, grid: str, nfe: int, starts: int, final: str) -> str:
    """What decides a cell. Raises ValueError where there is no such plan."""
    if solver in peers.PEERS:
        table = f"{solver} {peers.PEERS[solver].version()} {nfe}"
    else:
        table = repr(sk.solvers.get(solver).plan(one.process, nfe=nfe, grid=grid, final=final))
    return hashlib.sha256(repr((one.name, one.key, starts, table)).encode()).hexdigest()[:16]


class Cells:
    """The cells in a file, by key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        records = (json.loads(line) for line in lines)
        self.errors = {record["key"]: tuple(record["errors"]) for record in records}

    def cell(self, one: Problem, solver: str, grid: str, nfe: int, starts: int, final: str) -> Cell:
        """The cell, measured now where the file lacks it."""
        try:
            key = key_of(one, solver, grid, nfe, starts, final)
        except ValueError:
            return Cell(one.name, solver, grid, nfe, final, "", ())
        if key not in self.errors:
            errors = measure(one, solver, grid, nfe, starts, final)
            self.errors[key] = tuple(float(f"{error:.5g}") for error in errors.tolist())
            found = Cell(one.name, solver, grid, nfe, final, key, self.errors[key])
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(asdict(found)) + "\n")
        return Cell(one.name, solver, grid, nfe, final, key, self.errors[key])


def candidates(nfe: int, solvers: str, grids: str, with_peers: bool) -> Iterator[tuple[str, str]]:
    """``CANDIDATES``, or every solver × grid where they are given; ``auto`` is one of them by its table."""
    yield from product(solvers.split(";"), grids.split(";")) if solvers and grids else CANDIDATES if nfe < 30 else LATE
    if with_peers:
        yield from ((name, "own") for name, peer in peers.PEERS.items() if peer.version())
    yield "auto", "auto"


@cache
def _label(name: str) -> str:
    return name.replace("vp-time(power=4, blend=0.4)", "blend")


def show(cells: Sequence[Cell]) -> None:
    """One row a budget: ``auto``, the best fixed choice by median and by RMSE, and the best peer."""
    print(f"\n{cells[0].problem}, {len(cells[0].errors)} starts, final={cells[0].final!r}")
    columns = "".join(f"{name:>10}" for name in ("median", "90%", "RMSE"))
    print(f"{'NFE':>4}{columns}{'interval':>21}{'ratio':>7}{'ratio':>7}  best median; best RMSE")
    for nfe in sorted({cell.nfe for cell in cells}):
        row = [cell for cell in cells if cell.nfe == nfe]
        (auto,) = (cell for cell in row if cell.solver == "auto")
        fixed = [cell for cell in row if cell.solver != "auto" and cell.solver not in peers.PEERS]
        middle, mean = (min(fixed, key=key) for key in (lambda cell: cell.median, lambda cell: cell.rmse))
        low, high = auto.interval()
        names = "; ".join(
            f"{value:.3g} {_label(cell.solver)} {_label(cell.grid)}"
            for cell, value in ((middle, middle.median), (mean, mean.rmse))
        )
        theirs = [cell for cell in row if cell.solver in peers.PEERS]
        names += "".join(f"; {cell.solver} {cell.median:.3g} {cell.rmse:.3g}" for cell in theirs)
        ratios = f"{auto.median / middle.median:7.2f}{auto.rmse / mean.rmse:7.2f}"
        own = f"{nfe:>4}{auto.median:10.3g}{auto.upper:10.3g}{auto.rmse:10.3g}  {low:8.3g} … {high:8.3g}"
        print(f"{own}{ratios}  {names}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problems", default=";".join(PROBLEM), help="separated by ;")
    parser.add_argument("--solvers", default="", help="separated by ;, with --grids in place of CANDIDATES")
    parser.add_argument("--grids", default="", help="separated by ;")
    parser.add_argument("--nfe", default=",".join(map(str, NFE)))
    parser.add_argument("--starts", type=int, default=256, help="at most; large problems have 128")
    parser.add_argument("--final", default="auto")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--cells", type=Path, default=FOLDER / "cells.jsonl")
    options = parser.parse_args()
    known, budgets = Cells(options.cells), [int(n) for n in options.nfe.split(",")]
    every: list[Cell] = []
    for name in options.problems.split(";"):
        one = problem(name)
        cells = [
            known.cell(one, solver, grid, nfe, min(one.count, options.starts), options.final)
            for nfe in budgets
            for solver, grid in candidates(nfe, options.solvers, options.grids, options.peers)
        ]
        show(cells)
        every += cells
    if options.problems.count(";"):
        print("", *auto_choice.tables(every, list(peers.PEERS)), sep="\n\n")


if __name__ == "__main__":
    main()
