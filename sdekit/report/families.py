"""What kind of sampler a row is."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from sdekit.adaptive import named
from sdekit.comparison import OWN, Cell
from sdekit.solvers import get

_KINDS = {"dpm_v3": "dpm-solver-v3", "er_sde": "er-sde", "classical": "runge-kutta"}


def families(cells: Iterable[Cell]) -> dict[str, str]:
    """Each solver's family: its file in ``sdekit.solvers``, adaptive, a function, or fitted.

    >>> cells = [Cell("toy", "VP()", name, "auto", 5, 8, 0) for name in ("ddim", "dpmpp-2m", "ddim(eta=0.5)", "mine")]
    >>> list(families(cells).values())
    ['ancestral', 'dpmpp', 'ancestral', 'fitted or own']
    """
    return {cell.solver: "functions" if cell.grid == OWN else _family(cell.solver) for cell in cells}


@cache
def _family(solver: str) -> str:
    try:
        if named(solver):
            return "adaptive steps"
        rows = get(solver).rows
    except ValueError:
        return "fitted or own"
    module = rows.__module__.rpartition(".")[2]
    return _KINDS.get(module, module.replace("_", "-"))
