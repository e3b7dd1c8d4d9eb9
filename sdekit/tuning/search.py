"""The first stage: every candidate of the registry on its named grids, as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from sdekit.process import Process
from sdekit.solvers import get
from sdekit.tuning.table import Table

SOLVERS = (
    "ddim", "dpmpp-2m", "dpmpp-3m-corrected", "dpm-solver-2m", "deis-2", "deis-3", "deis-4", "unipc-2", "unipc-3",
    "unipc-3(variant='bh1')", "ipndm-2", "ipndm-3", "ipndm-4", "ipndm", "er-sde-2(scale='ode')",
)  # fmt: skip
GRIDS = (
    "time", "vp-time(power=1.5)", "vp-time", "vp-time(power=2.5)", "vp-time(power=3)", "vp-time(power=4, blend=0.4)",
    "logsnr",
)  # fmt: skip
CANDIDATES = tuple(product(SOLVERS, GRIDS))


@dataclass(frozen=True)
class Candidate:
    """A solver of the registry on a grid, with so many evaluations."""

    solver: str
    grid: str
    table: Table


def candidates(process: Process, nfe: int, choices: Sequence[tuple[str, str]] = CANDIDATES) -> list[Candidate]:
    """Those of ``choices`` that are tables with ``nfe`` evaluations. Raises ValueError where none is.

    >>> from sdekit.process import VP
    >>> [one.solver for one in candidates(VP(), 5, [("ddim", "logsnr"), ("ddpm", "logsnr"), ("heun", "time")])]
    ['ddim']
    """
    found, reason = list[Candidate](), "none given"
    for solver, grid in choices:
        try:
            table = Table.of(get(solver).plan(process, nfe=nfe, grid=grid, final="reuse"), process)
            found.append(Candidate(solver, grid, table))
        except ValueError as error:
            reason = str(error)
    if not found:
        raise ValueError(f"candidates: not one is a deterministic table with nfe={nfe} ({reason})")
    return found


def ranked(found: Sequence[Candidate], score: Callable[[Table], float]) -> list[Candidate]:
    """The best first; what diverges comes last."""
    scores = [score(one.table) for one in found]
    return [found[i] for i in np.argsort(np.nan_to_num(scores, nan=np.inf), kind="stable")]
