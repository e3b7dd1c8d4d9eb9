"""Solvers fitted to a model: ``tune`` for one number of evaluations, ``tune_family`` for a range."""

from sdekit.tuning.family import Family, tune_family
from sdekit.tuning.fit import Interrupted, tune
from sdekit.tuning.plan import Tuned
from sdekit.tuning.store import load_solver
from sdekit.tuning.table import Table
from sdekit.tuning.teacher import STREAMS, starts

__all__ = ["STREAMS", "Family", "Interrupted", "Table", "Tuned", "load_solver", "starts", "tune", "tune_family"]
