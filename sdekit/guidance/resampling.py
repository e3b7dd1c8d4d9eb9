"""Weighted particles: how many they are worth, and drawing them anew. Each row of weights [..., n] is a population."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from sdekit.noise import normal

FEWEST = 16
"""Particles below which a population says nothing of a law."""
LOW = 0.05
"""The share of effective particles below which a run warns."""


class WeightsWarning(UserWarning):
    """Weights so uneven that a few particles stand for all."""


def systematic(log_weights: Tensor, point: Tensor) -> Tensor:
    """Indices [..., n]: particle i as often as (n W_i) says, rounded up or down (Kitagawa 1996).

    ``point`` is a number from 0 to 1, [..., 1].

    >>> systematic(torch.tensor([0.5, 0.25, 0.25, 1e-9]).log(), torch.tensor([0.5]))
    tensor([0, 0, 1, 2])
    """
    n = log_weights.shape[-1]
    points = (torch.arange(n, device=log_weights.device) + point) / n
    return torch.searchsorted(log_weights.softmax(-1).cumsum(-1), points).clamp(max=n - 1)


def effective(log_weights: Tensor) -> Tensor:
    """(Σ W)²/(n Σ W²), [...].

    >>> effective(torch.tensor([1.0, 1.0, 1e-9, 1e-9]).log())
    tensor(0.5000)
    """
    return torch.exp(2 * log_weights.logsumexp(-1) - (2 * log_weights).logsumexp(-1)) / log_weights.shape[-1]


def log_mean(log_weights: Tensor) -> Tensor:
    """log of the weights' mean, [...].

    >>> log_mean(torch.tensor([1.0, 3.0]).log()).exp()
    tensor(2.)
    """
    return log_weights.logsumexp(-1) - math.log(log_weights.shape[-1])


def uniform(stream: int, draw: int, like: Tensor) -> Tensor:
    """A number from 0 to 1 for each population of ``like`` [..., n]: [..., 1], on its device and in its dtype.

    >>> bool(0 < uniform(0, 1, torch.zeros(4)) < 1)
    True
    """
    populations = torch.arange(math.prod(like.shape[:-1]), device=like.device)
    return torch.special.ndtr(normal(stream, draw, populations, (), like.dtype)).reshape(*like.shape[:-1], 1)


def warn_of_weights(ess: Tensor, advice: str = "take more steps, a smaller scale, or more particles") -> None:
    """Warn where the effective sample size of a run, as a share of the particles [steps], fell below ``LOW``."""
    least, step = (value.item() for value in ess.min(0))
    if not least >= LOW:
        warnings.warn(
            f"the effective sample size fell to {least:.1%} of the particles at step {step + 1:.0f} of {len(ess)}:"
            f" a few of them stand for all; {advice}",
            WeightsWarning,
            stacklevel=5,
        )
