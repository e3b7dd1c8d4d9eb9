r"""Spacings of a trained DDPM's table: the timesteps that other libraries list, entry for entry.

With T entries, entry n is the time (n + 1)/T of ``DiscreteVP``. diffusers lists N timesteps for N inference steps:

    trailing   round(T − i T/N) − 1                i = 0 … N − 1
    linspace   round((N − 1 − i)(T − 1)/(N − 1))
    leading    (N − 1 − i)⌊T/N⌋ + steps_offset

(DDIM, DDPM and the Euler schedulers; Lin et al. 2024, "Common diffusion noise schedules and sample steps are flawed",
table 2. Euler does not round linspace.) Its DPM-Solver, DEIS and UniPC schedulers list for linspace and leading what
the others list for N + 1, without the last. Stability's generative-models (SGM) lists ⌊T − 1 − i(T − 1)/N⌋: ``sgm``.

N timesteps are N evaluations, from the last of which x_0 is taken: N − 1 steps and one denoising here. So
``table_times`` gives the list as the knots of a run with ``nfe=N``.

A *named* grid has the process's own ends, so that runs compare: its N steps go from t_max to t_min.

    trailing, sgm   the list for N, then t_min (diffusers' ``final_sigmas_type="sigma_min"``): equal
    linspace        the list for N + 1: equal
    leading         the list for N + 1 (offset 0 or 1) with t_max for its first and t_min for its last

A process without a table takes the same formulas for T → ∞, with t in place of n and nothing rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from sdekit.door import Count, door
from sdekit.names import OneOf, lookup
from sdekit.process import DiscreteVP, Process


# entry i of the list for N steps; floating-point operations in numpy's order, so that ties round as they do there
def _trailing(table: int, steps: int, i: int) -> int:
    return round(table + i * ((table - table / steps) - table)) - 1


def _linspace(table: int, steps: int, i: int) -> int:
    return round((steps - i) * ((table - 1) / steps))


def _leading(table: int, steps: int, i: int) -> int:
    return (steps - i) * (table // (steps + 1))


def _sgm(table: int, steps: int, i: int) -> int:
    return int(i * (-(table - 1) / steps) + (table - 1))


# how many of a list's timesteps its steps end on: 0 where one more step leads from the last to the data
SPACINGS: dict[str, tuple[Callable[[int, int, int], int], int]] = {
    "trailing": (_trailing, 0),
    "linspace": (_linspace, 1),
    "leading": (_leading, 1),
    "sgm": (_sgm, 0),
}


def _knot(process: Process, name: str, steps: int, fraction: float, limit: float, offset: int = 0) -> float:
    """Knot i of the named grid: an entry of the table, or ``limit`` where the process has none."""
    if not isinstance(process, DiscreteVP):
        return limit
    entry, _ = SPACINGS[name]
    return (entry(process.steps, steps, round(fraction * steps)) + offset + 1) / process.steps


def trailing(process: Process, fraction: float, steps: int) -> float:
    """Entries round(T − i T/N) − 1 of the table, then t_min; without a table t = t_max (1 − i/N)."""
    return _knot(process, "trailing", steps, fraction, process.t_max * (1 - fraction))


def linspace(process: Process, fraction: float, steps: int) -> float:
    """Entries round((N − i)(T − 1)/N) of the table; without a table uniform in t."""
    uniform = process.t_max + fraction * (process.t_min - process.t_max)
    return _knot(process, "linspace", steps, fraction, uniform)


def leading(process: Process, fraction: float, steps: int, *, steps_offset: Annotated[int, OneOf(0, 1)] = 0) -> float:
    """Entries (N − i)⌊T/(N + 1)⌋ + steps_offset of the table between the ends; without a table t_max (N − i)/(N + 1).

    Raises ValueError for an offset where the process has no table.
    """
    if steps_offset and not isinstance(process, DiscreteVP):
        raise ValueError(
            f"leading: steps_offset={steps_offset} counts a table's entries and needs a DiscreteVP process,"
            f" got {type(process).__name__}; allowed is 0"
        )
    limit = process.t_max * (1 - fraction) * steps / (steps + 1)
    return _knot(process, "leading", steps, fraction, limit, steps_offset)


def sgm(process: Process, fraction: float, steps: int) -> float:
    """Entries ⌊T − 1 − i(T − 1)/N⌋ of the table; without a table uniform in t. See ``table_times``."""
    uniform = process.t_max + fraction * (process.t_min - process.t_max)
    return _knot(process, "sgm", steps, fraction, uniform)


@door
def table_times(process: DiscreteVP, spacing: str, count: Count, *, steps_offset: int = 0) -> list[float]:
    """The times of the ``count`` timesteps that diffusers lists for ``count`` inference steps, to be given as a grid.

    Run it with ``nfe=count`` and the default ``final="denoise"``: one evaluation at each timestep. For diffusers'
    DPM-Solver, DEIS and UniPC schedulers with linspace or leading, take ``count + 1`` and leave out the last.
    Where diffusers lists one timestep more than it was asked for (trailing at T = 1000 with 61 steps and others:
    floating point makes it an entry −1), the list ends before it. diffusers' DDIM steps to t − ⌊T/N⌋ and not to the
    next timestep of the list, so that its runs are these runs for leading, and for trailing where N divides T.
    Where its configuration has ``set_alpha_to_one=False``, its last step ends at t_min: append ``process.t_min``
    (unless it is there already) and run with ``final="none"``.

    Args:
        process: the table.
        spacing: ``"trailing"``, ``"linspace"``, ``"leading"`` or ``"sgm"`` (Stability's generative-models).
        count: from 1 (linspace and leading: 2) to the table's length.
        steps_offset: added to each entry of leading, as Stable Diffusion's configuration does with 1.

    Raises ValueError for an unknown spacing, a count or an offset that the table has no room for, and an offset for
    another spacing than leading.

    >>> process = DiscreteVP()
    >>> [round(1000 * t) - 1 for t in table_times(process, "leading", 4, steps_offset=1)]
    [751, 501, 251, 1]
    """
    entry, closed = lookup("spacing", spacing, SPACINGS)
    table, least = process.steps, 1 + closed
    if not isinstance(count, int) or isinstance(count, bool) or not least <= count <= table:
        raise ValueError(f"count={count!r}: {spacing} takes whole numbers from {least} to {table}, the table's length")
    most = table - 1 - entry(table, count - closed, 0) if spacing == "leading" else 0
    if not isinstance(steps_offset, int) or not 0 <= steps_offset <= most:
        raise ValueError(
            f"steps_offset={steps_offset!r}: {spacing} with count={count} takes whole numbers from 0 to {most}"
        )
    return [(entry(table, count - closed, i) + steps_offset + 1) / table for i in range(count)]
