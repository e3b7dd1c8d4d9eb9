"""The probability-flow ODE: ``encode``, ``decode``, ``flow``."""

from sdekit.ode.field import VARIABLES, Evaluate, rows_of
from sdekit.ode.flow import Path, States, decode, encode, flow, integrate, state_of
from sdekit.ode.plans import plan_between
from sdekit.ode.steppers import STEPPERS

__all__ = [
    "STEPPERS", "VARIABLES", "Evaluate", "Path", "States", "decode", "encode", "flow", "integrate", "plan_between",
    "rows_of", "state_of",
]  # fmt: skip
