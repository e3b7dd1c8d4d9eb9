"""sdekit: score-based SDE and ODE solvers for diffusion models, as tables of numbers."""

from sdekit.model import ScoreModel
from sdekit.process import VE, VP, CosineVP, DiscreteVP, Flow, SubVP

__all__ = ["VE", "VP", "CosineVP", "DiscreteVP", "Flow", "ScoreModel", "SubVP"]
