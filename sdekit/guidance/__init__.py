"""Guidance: wrappers that steer a model, a step that renoises, and the law that guidance is taken to sample."""

from sdekit.guidance.particles import Tilted, tilted
from sdekit.guidance.plus_plus import Renoised, sample_plus_plus
from sdekit.guidance.resampling import WeightsWarning
from sdekit.guidance.rules import Projected, Rescaled, Rule
from sdekit.guidance.wrappers import Autoguided, ClassifierFree, ClassifierGuided, Given, Interval

__all__ = [
    "Autoguided",
    "ClassifierFree",
    "ClassifierGuided",
    "Given",
    "Interval",
    "Projected",
    "Renoised",
    "Rescaled",
    "Rule",
    "Tilted",
    "WeightsWarning",
    "sample_plus_plus",
    "tilted",
]
