"""Error-controlled sampling, with a step size for each sample: ``sample_adaptive``."""

from sdekit.adaptive.methods import CONTROLS, METHODS, Control, Method
from sdekit.adaptive.noise import NOISES
from sdekit.adaptive.sampling import AdaptiveSolution, sample_adaptive

__all__ = ["CONTROLS", "METHODS", "NOISES", "AdaptiveSolution", "Control", "Method", "sample_adaptive"]
