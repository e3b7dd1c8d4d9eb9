"""Every solver, each a table. Each module beside this one is imported, and registers its solvers."""

import importlib
import pkgutil

from sdekit.names import Between, OneOf
from sdekit.solvers.registry import Solver, full_steps, get, names, register, starting
from sdekit.solvers.tableau import DATA, Draw, Plan, Row, exponential, phi, quadrature

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "DATA", "Between", "Draw", "OneOf", "Plan", "Row", "Solver", "exponential", "full_steps", "get", "names", "phi",
    "quadrature", "register", "starting",
]  # fmt: skip
