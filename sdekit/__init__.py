"""sdekit: score-based SDE and ODE solvers for diffusion models, as tables of numbers."""

from sdekit import solvers, targets
from sdekit.grid import Grid
from sdekit.model import ScoreModel
from sdekit.process import VE, VP, CosineVP, DiscreteVP, Flow, Process, SubVP
from sdekit.sampling import Solution, march, sample

__all__ = [
    "VE", "VP", "CosineVP", "DiscreteVP", "Flow", "Grid", "Process", "ScoreModel", "Solution", "SubVP",
    "march", "sample", "solvers", "targets",
]  # fmt: skip
