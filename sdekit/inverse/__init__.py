"""Inverse problems: measurements y = A(x) + noise, their exact posteriors, and the methods that sample them.

``sample_posterior(model, measurement, shape, method=…)`` runs each method; the wrappers in ``inverse.methods`` are
models, for ``sample`` and all else that takes one.
"""

from sdekit.inverse.exact import RotatedMixture, log_evidence, posterior
from sdekit.inverse.measurement import GaussianNoise, Measurement, Noise, PoissonNoise, draw
from sdekit.inverse.operators import Blur, Differentiable, Downsample, Linear, Mask, Operator, Projection
from sdekit.inverse.registry import Method, Posterior, method, names, register, sample_posterior
from sdekit.inverse.scores import coverage, psnr, scores, ssim
from sdekit.inverse.spectrum import Spectrum
from sdekit.inverse.tasks import TASKS, operator

__all__ = [
    "TASKS",
    "Blur",
    "Differentiable",
    "Downsample",
    "GaussianNoise",
    "Linear",
    "Mask",
    "Measurement",
    "Method",
    "Noise",
    "Operator",
    "PoissonNoise",
    "Posterior",
    "Projection",
    "RotatedMixture",
    "Spectrum",
    "coverage",
    "draw",
    "log_evidence",
    "method",
    "names",
    "operator",
    "posterior",
    "psnr",
    "register",
    "sample_posterior",
    "scores",
    "ssim",
]
