"""How values of a comparison are written."""

from __future__ import annotations

import math
from collections.abc import Iterable

from sdekit.jackknife import half_width
from sdekit.metrics import METRICS
from sdekit.ranking import Reach
from sdekit.results import Cell


def measured(cells: Iterable[Cell]) -> list[str]:
    """The metrics that some cell has, in the order of ``METRICS``."""
    known = {name for cell in cells for name in cell.metrics}
    return [name for name in METRICS if name in known]


def shown(cell: Cell, metric: str) -> tuple[str, str]:
    """The value to three digits, and half of its 95% interval to as many decimals; empty where it is not known.

    >>> cell = Cell("toy", "VP()", "ddim", "logsnr", 5, 8, 0, metrics={"rmse": 0.12345},
    ...             jackknife={"rmse": [0.123, 0.124] * 5})
    >>> shown(cell, "rmse"), shown(cell, "rmse")[0] == number(0.12345)
    (('0.123', '0.0034'), True)
    """
    half = half_width(cell.jackknife.get(metric, ()))
    return number(cell.metrics[metric]), number(half, 2) if math.isfinite(half) else ""


def number(value: float, digits: int = 3) -> str:
    """So many digits, without an exponent where that reads well.

    >>> number(21966.3), number(0.0001), number(1.2e-7), number(2.0), number(0.0)
    ('21966', '0.000100', '1.20e-07', '2.00', '0')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    size = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if -5 < size < 7:
        return f"{value:.{max(0, digits - 1 - size)}f}"
    return f"{value:.{digits - 1}e}"


def evaluations(one: Reach, value: float) -> str:
    """A number of evaluations of a ``Reach``, with words for those beyond what was measured."""
    if math.isnan(value):
        return "?"
    if value == 0:
        return f"≤ {one.fewest:g}"
    return f"{value:.3g}" if value < math.inf else f"> {one.most:g}"
