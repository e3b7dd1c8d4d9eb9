r"""sbi's score estimators: ∇ log p_t(θ | x_o) of a posterior, under VP, sub-VP or VE.

θ is the state, [batch, *event]; the observation x_o is the condition ``observation``, or one that ``wrap`` binds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdekit.interop.adapter import Adapter
from sdekit.model import ScoreModel
from sdekit.names import unknown
from sdekit.noise import normal
from sdekit.process import VE, VP, Process, SubVP

_BETAS, _SIGMAS = ("beta_min", "beta_max", "t_min", "t_max"), ("sigma_min", "sigma_max", "t_min", "t_max")
_PROCESSES: dict[str, tuple[type[Process], tuple[str, ...]]] = {
    "VPScoreEstimator": (VP, _BETAS),
    "SubVPScoreEstimator": (SubVP, _BETAS),
    "VEScoreEstimator": (VE, _SIGMAS),
}


def process_of(estimator: Any) -> Process:
    """The process of a score estimator, with its own range of times. Raises ValueError for another kind."""
    found = [base.__name__ for base in type(estimator).__mro__ if base.__name__ in _PROCESSES]
    if not found:
        raise unknown("estimator", type(estimator).__name__, _PROCESSES)
    kind, arguments = _PROCESSES[found[0]]
    return kind(**{name: float(getattr(estimator, name)) for name in arguments})


def wrap(estimator: Any, observation: Tensor | np.ndarray | None = None) -> ScoreModel:
    """A ``VPScoreEstimator``, ``SubVPScoreEstimator`` or ``VEScoreEstimator`` as a ``ScoreModel`` of θ.

    That is ``inference.train()`` of ``NPSE``; a posterior of sbi holds it as ``posterior.vector_field_estimator``.
    sbi starts its runs from another Gaussian than ``sample``: see ``start``.

    Args:
        estimator: in evaluation mode or not; runs put it there.
        observation: x_o [1, *condition], the one observation of every sample. None: it is given in each call as
            ``observation=``, [n, *condition] or [1, *condition].

    Raises ValueError for an estimator of another kind, for one that standardises θ outside its network
    (``compose_standardization=True``) or is in half precision, and where the observation is missing, given twice, or of
    another shape.
    """
    process = process_of(estimator)
    if getattr(estimator, "compose_enabled", False):
        raise ValueError(
            "estimator: it was trained with compose_standardization=True, so that its states are not θ but"
            " to_z(θ): train with compose_standardization=False"
        )
    if estimator.mean_base.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"estimator: it is in {estimator.mean_base.dtype}, in which its own formula for σ(t) is 0 near the data:"
            " give estimator.float()"
        )
    shape = tuple(estimator.condition_shape)
    observation = None if observation is None else _checked(observation, shape, 1)

    def score(estimator: Any, theta: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        x = observation
        if x is None or conditions:
            x = _observed(observation, shape, theta, **conditions)
        fits = x.dtype == theta.dtype and x.device == theta.device
        return estimator.score(theta, x if fits else x.to(theta), t)

    return ScoreModel(Adapter(estimator, score), process, "score")


def _observed(
    bound: Tensor | None, shape: tuple[int, ...], theta: Tensor, *, observation: Tensor | np.ndarray | None = None
) -> Tensor:
    if (bound is None) == (observation is None):
        raise ValueError(
            f"observation: {'missing' if bound is None else 'given twice'}: give x_o [1, {_sizes(shape)}] to wrap, or"
            " observation= to each call"
        )
    return _checked(bound if observation is None else observation, shape, len(theta))


def _checked(observation: Any, shape: tuple[int, ...], n: int) -> Tensor:
    observation = torch.as_tensor(observation)
    if tuple(observation.shape[1:]) != shape or observation.ndim != len(shape) + 1 or len(observation) not in (1, n):
        allowed = f"[1, {_sizes(shape)}]" + (f" or [{n}, {_sizes(shape)}]" if n > 1 else "")
        raise ValueError(f"observation: shape {list(observation.shape)}, it must be {allowed}")
    return observation


def _sizes(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def start(estimator: Any, n: int, seed: int = 0) -> Tensor:
    """n starts [n, *event] for ``sample(..., start=)`` from sbi's base distribution N(mean_base, std_base²).

    sbi takes the mean and variance that the training parameters have at t_max; ``sample`` by itself starts from
    N(0, σ(t_max)²), which at VP's β_max = 10 leaves out 0.08 of the mean.
    """
    mean, std = estimator.mean_base, estimator.std_base
    z = normal(seed, 0, torch.arange(n, device=mean.device), tuple(mean.shape[1:]), mean.dtype)
    return mean + std * z
