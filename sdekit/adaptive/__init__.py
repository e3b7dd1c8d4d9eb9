"""Error-controlled sampling, with a step size for each sample: ``sample_adaptive``."""

from sdekit.adaptive.methods import CONTROLS, METHODS, Control, Method
from sdekit.adaptive.named import Adaptive, named
from sdekit.adaptive.noise import NOISES
from sdekit.adaptive.sampling import AdaptiveSolution, sample_adaptive

__all__ = [
    "CONTROLS", "METHODS", "NOISES", "Adaptive", "AdaptiveSolution", "Control", "Method", "named", "sample_adaptive",
]  # fmt: skip
