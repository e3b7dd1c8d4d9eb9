"""sdekit: score-based SDE and ODE solvers for diffusion models, as tables of numbers.

Everything public is a name here. Each is imported when it is first used, so that ``sdekit --help`` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdekit import (
        data,
        divergence,
        elementwise,
        guidance,
        interop,
        interpolants,
        inverse,
        metrics,
        nn,
        ode,
        parallel,
        plots,
        report,
        solvers,
        targets,
        training,
        tuning,
    )
    from sdekit.adaptive import Adaptive, AdaptiveSolution, sample_adaptive
    from sdekit.comparison import Comparison, compare
    from sdekit.correction import Langevin
    from sdekit.data import Quantization
    from sdekit.fitting import fit_ays, fit_gits
    from sdekit.graph import capture
    from sdekit.grid import Grid, table_times
    from sdekit.latents import Latent, latent
    from sdekit.likelihood import LogLikelihood, elbo, log_prob
    from sdekit.model import ScoreModel
    from sdekit.model_statistics import fit_dpm_v3, fit_statistics
    from sdekit.ode import decode, encode, flow
    from sdekit.process import EDM, VE, VP, CosineVP, DiscreteVP, Flow, LaplaceVP, LearnedVP, Process, SigmoidVP, SubVP
    from sdekit.sampling import Solution, march, sample
    from sdekit.thresholding import Thresholded
    from sdekit.tuning import load_solver, tune, tune_family

_NAMES = {
    "adaptive": ("Adaptive", "AdaptiveSolution", "sample_adaptive"),
    "comparison": ("Comparison", "compare"),
    "correction": ("Langevin",),
    "data": ("Quantization",),
    "fitting": ("fit_ays", "fit_gits"),
    "graph": ("capture",),
    "grid": ("Grid", "table_times"),
    "latents": ("Latent", "latent"),
    "likelihood": ("LogLikelihood", "elbo", "log_prob"),
    "model": ("ScoreModel",),
    "model_statistics": ("fit_dpm_v3", "fit_statistics"),
    "ode": ("decode", "encode", "flow"),
    "process": (
        "EDM",
        "VE",
        "VP",
        "CosineVP",
        "DiscreteVP",
        "Flow",
        "LaplaceVP",
        "LearnedVP",
        "Process",
        "SigmoidVP",
        "SubVP",
    ),
    "sampling": ("Solution", "march", "sample"),
    "thresholding": ("Thresholded",),
    "tuning": ("load_solver", "tune", "tune_family"),
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names}
_MODULES = (
    "adaptive", "checkpoint", "claims", "cli", "comparison", "correction", "data", "distributed", "divergence",
    "door", "elementwise", "features", "files", "fitting", "graph", "grid", "guidance", "identity", "interop",
    "interpolants", "inverse", "jackknife", "latents", "likelihood", "loading", "metrics", "misfit", "model",
    "model_statistics", "names", "nn", "noise", "ode", "parallel", "plots", "prediction", "process", "ranking",
    "readers", "report", "results", "sampling", "solvers", "subjects", "targets", "testing", "thresholding",
    "training", "transport", "tuning",
)  # fmt: skip

__all__ = [
    "EDM", "VE", "VP", "Adaptive", "AdaptiveSolution", "Comparison", "CosineVP", "DiscreteVP", "Flow", "Grid",
    "Langevin", "LaplaceVP", "Latent", "LearnedVP", "LogLikelihood", "Process", "Quantization", "ScoreModel",
    "SigmoidVP", "Solution", "SubVP", "Thresholded", "capture", "compare", "data", "decode", "divergence", "elbo",
    "elementwise", "encode", "fit_ays", "fit_dpm_v3", "fit_gits", "fit_statistics", "flow", "guidance", "interop",
    "interpolants", "inverse", "latent", "load_solver", "log_prob", "march", "metrics", "nn", "ode", "parallel",
    "plots", "report", "sample", "sample_adaptive", "solvers", "table_times", "targets", "training", "tune",
    "tune_family", "tuning",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"sdekit.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'sdekit' has no attribute {name!r}")
    return getattr(import_module(f"sdekit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
