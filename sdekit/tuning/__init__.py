"""Solvers fitted to a model and a number of evaluations: ``tune`` returns one, ``load`` reads one."""

from sdekit.tuning.fit import Interrupted, tune
from sdekit.tuning.plan import Tuned
from sdekit.tuning.store import load_solver
from sdekit.tuning.table import Table
from sdekit.tuning.teacher import STREAMS, starts

__all__ = ["STREAMS", "Interrupted", "Table", "Tuned", "load_solver", "starts", "tune"]
