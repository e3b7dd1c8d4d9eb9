"""Forward processes, one file a family; each is a frozen dataclass of five formulas (see ``base.Process``)."""

from sdekit.process.base import Knot, Process, ReverseSDE, State, Time, match, remembered
from sdekit.process.cosine import CosineVP
from sdekit.process.discrete import DiscreteVP
from sdekit.process.edm import EDM
from sdekit.process.flow import Flow
from sdekit.process.laplace import LaplaceVP
from sdekit.process.learned import LearnedVP, MonotoneCurve
from sdekit.process.sigmoid import SigmoidVP
from sdekit.process.ve import VE
from sdekit.process.vp import VP, SubVP

__all__ = [
    "EDM", "VE", "VP", "CosineVP", "DiscreteVP", "Flow", "Knot", "LaplaceVP", "LearnedVP", "MonotoneCurve",
    "Process", "ReverseSDE", "SigmoidVP", "State", "SubVP", "Time", "match", "remembered",
]  # fmt: skip
