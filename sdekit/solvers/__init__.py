"""Every solver, each a table. Each module beside this one is imported, and registers its solvers."""

import importlib
import pkgutil
import sys
from typing import Any

from sdekit.names import Between, OneOf
from sdekit.solvers.dpm_v3 import Statistics
from sdekit.solvers.registry import Solver, full_steps, get, names, register, starting
from sdekit.solvers.tableau import DATA, Draw, Plan, Row, exponential, phi, quadrature

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "DATA", "Between", "Draw", "OneOf", "Plan", "Row", "Solver", "Statistics", "exponential", "full_steps", "get",
    "names", "phi", "quadrature", "register", "starting",
]  # fmt: skip
_FITS = {"fit_dpm_v3": "fit_dpm_v3", "fit_statistics": "fit_statistics", "load": "load_solver"}
"""What makes or reads solvers of a model, by its name in the package's root."""


def __getattr__(name: str) -> Any:
    if name in _FITS:  # they sample, differentiate or identify the model, far above this package: the root knows where
        return getattr(sys.modules["sdekit"], _FITS[name])
    raise AttributeError(f"module 'sdekit.solvers' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *_FITS]
