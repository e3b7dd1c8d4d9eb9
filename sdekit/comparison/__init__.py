"""The steps-versus-quality sweep: ``compare``, what can stand in it, and what it returns."""

from sdekit.comparison.contenders import ADAPTIVE, OWN, Contender, Function, Job
from sdekit.comparison.sweep import CHECK, DEFAULT_SOLVERS, ENDPOINT, Comparison, Interrupted, compare
from sdekit.results import Cell

__all__ = [
    "ADAPTIVE", "CHECK", "DEFAULT_SOLVERS", "ENDPOINT", "OWN", "Cell", "Comparison", "Contender", "Function",
    "Interrupted", "Job", "compare",
]  # fmt: skip
