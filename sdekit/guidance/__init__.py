"""Guidance: wrappers that steer a model, a step that renoises, and the law that guidance is taken to sample."""

from sdekit.guidance.rules import Projected, Rescaled, Rule
from sdekit.guidance.wrappers import Autoguided, ClassifierFree, ClassifierGuided, Given, Interval

__all__ = [
    "Autoguided",
    "ClassifierFree",
    "ClassifierGuided",
    "Given",
    "Interval",
    "Projected",
    "Rescaled",
    "Rule",
]
