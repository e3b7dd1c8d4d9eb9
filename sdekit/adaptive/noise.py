"""Where the noise of an adaptive method comes from: each sample at a place of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit.noise import normal, paths
from sdekit.process import match


@dataclass(frozen=True)
class Noise:
    """Where z comes from: what to remember of λ, and z of the step between two λ from what is remembered of them.

    ``recall(half_log_snr, samples, attempt)`` and ``z(before, after, step in λ)``; λ are [batch], float64.
    """

    recall: Callable[[Tensor, Tensor, int], Tensor]
    z: Callable[[Tensor, Tensor, Tensor], Tensor]


def _brownian(seed: int, event: Sequence[int], dtype: torch.dtype) -> Noise:
    def z(before: Tensor, after: Tensor, step: Tensor) -> Tensor:
        rest, scale = (-step).exp(), (-(-2 * step).expm1()).rsqrt()
        return (after - match(rest.to(dtype), after) * before) * match(scale.to(dtype), after)

    return Noise(lambda place, samples, attempt: paths(seed, place, samples, event, dtype), z)


def _independent(seed: int, event: Sequence[int], dtype: torch.dtype) -> Noise:
    # the number of the attempt is the same for all samples under way: each tries a step in every round
    return Noise(lambda place, samples, attempt: normal(seed, attempt, samples, event, dtype), lambda _, z, step: z)


def _none(seed: int, event: Sequence[int], dtype: torch.dtype) -> Noise:
    return Noise(lambda place, samples, attempt: place[:, None][:, :0], lambda _, z, step: z)


Source = Callable[[int, Sequence[int], torch.dtype], Noise]

NO_NOISE: Source = _none
NOISES: dict[str, Source] = {"brownian": _brownian, "independent": _independent}
"""Where the noise of a stochastic method comes from; see ``sample_adaptive``."""
