"""What the tests draw from: every process, with its own parameters and with random ones, and times inside its range."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st

from sdekit.process import EDM, VE, VP, CosineVP, DiscreteVP, Flow, LaplaceVP, Process, SigmoidVP, SubVP

PROCESSES: dict[str, Process] = {
    "VP": VP(),
    "SubVP": SubVP(),
    "VE": VE(),
    "CosineVP": CosineVP(),
    "SigmoidVP": SigmoidVP(),
    "LaplaceVP": LaplaceVP(),
    "DiscreteVP": DiscreteVP(),
    "DiscreteVP-50": DiscreteVP.linear(50),
    "DiscreteVP-odd": DiscreteVP([0.3, 1e-4, 0.6, 0.02, 0.02, 0.9, 0.001]),
    "Flow": Flow(),
    "EDM": EDM(),
}
PREDICTIONS = ["eps", "x0", "score", "v", "flow", "flow-to-data"]


def _floats(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False)


def _log_floats(low: float, high: float) -> st.SearchStrategy[float]:
    return _floats(math.log(low), math.log(high)).map(math.exp)


def _quietly(build: Callable[[Any], Process]) -> Callable[[Any], Process]:
    """``build`` with the global random state put back: beartype picks a random entry of a table to check."""

    def built(argument: Any) -> Process:
        state = random.getstate()
        try:
            return build(argument)
        finally:
            random.setstate(state)

    return built


def processes() -> st.SearchStrategy[Process]:
    """Any process of the package, with random parameters."""
    starts = _log_floats(1e-5, 1e-2)
    linear = {"beta_min": _log_floats(1e-3, 1.0), "beta_max": _floats(2.0, 40.0), "t_min": starts}
    return st.one_of(
        st.builds(VP, **linear),
        st.builds(SubVP, **linear),
        st.builds(VE, sigma_min=_log_floats(1e-3, 0.1), sigma_max=_log_floats(1.0, 500.0)),
        st.builds(CosineVP, s=_log_floats(1e-3, 0.5), t_min=starts, t_max=_floats(0.9, 0.999)),
        st.builds(SigmoidVP, start=_floats(-6, 0), end=_floats(1, 6), tau=_floats(0.3, 2), t_min=starts),
        st.builds(LaplaceVP, mu=_floats(-1, 1), b=_floats(0.3, 2), t_min=_log_floats(1e-6, 1e-3)),
        st.lists(_log_floats(1e-5, 0.95), min_size=2, max_size=30).map(_quietly(DiscreteVP)),
        st.integers(25, 1000).map(_quietly(DiscreteVP.linear)),
        st.builds(Flow, t_min=starts, t_max=_floats(0.9, 0.9999)),
        st.builds(EDM, t_min=_log_floats(1e-4, 0.1), t_max=_log_floats(1.0, 500.0)),
    )


def fractions(low: float = 0.0, high: float = 1.0) -> st.SearchStrategy[float]:
    """A fraction of the way from t_min to t_max; see ``at``."""
    return _floats(low, high)


def at(process: Process, fraction: float) -> float:
    """The time this fraction of the way from t_min to t_max."""
    return process.t_min + fraction * (process.t_max - process.t_min)


def smooth_span(process: Process, first: float, second: float) -> tuple[float, float]:
    """Two ordered times inside the process's range with no kink of its formulas between them.

    DiscreteVP's drift jumps at every entry of its table: both times lie in one of its cells, away from the ends.
    """
    low, high = process.t_min, process.t_max
    if isinstance(process, DiscreteVP):
        cell = min(int(first * (process.steps - 1)), process.steps - 2) + 1
        low, high = (cell + 0.01) / process.steps, (cell + 0.99) / process.steps
    s, t = sorted((first, second))
    s, t = s, max(t, s + 0.05)
    return low + s / 1.05 * (high - low), low + t / 1.05 * (high - low)


def tensor(values: float | list[float]) -> torch.Tensor:
    """A float64 tensor."""
    return torch.tensor(values, dtype=torch.float64)
