"""The probability-flow ODE: ``encode``, ``decode``, ``flow``."""

from sdekit.ode.field import VARIABLES, Evaluate, rows_of
from sdekit.ode.flow import Path, decode, encode, flow, integrate
from sdekit.ode.plans import plan_between
from sdekit.ode.steppers import STEPPERS

__all__ = [
    "STEPPERS", "VARIABLES", "Evaluate", "Path", "decode", "encode", "flow", "integrate", "plan_between", "rows_of",
]  # fmt: skip
