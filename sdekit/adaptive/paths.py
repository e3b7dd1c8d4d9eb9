r"""The Brownian path of ``noise.path``, read at a place of each sample's own.

``noise.path`` reads all samples at one λ, whose place in the tree is found on the host. Here λ is a [batch] tensor and
the place is found on the device, by the same arithmetic: both give the same path.
"""

# pyright: reportPrivateUsage=false
# the numbers in the tree's nodes are those of noise.path

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sdekit.adaptive.methods import lanewise
from sdekit.noise import _BLOCK, _END, _GOLDEN, _LEVELS, _TREE, _at_least_float32, _mix, _normals, _signed, key, normal
from sdekit.process import match


def _places(half_log_snr: Tensor) -> Tensor:
    """[23, batch]: the leaf in which each λ lies, and the factors of its 22 nodes' normals; see ``noise.path``."""
    left, right = half_log_snr.new_zeros(2, _LEVELS + 1, len(half_log_snr)).unbind()
    start, cell, width = torch.full_like(half_log_snr, -_END), torch.ones_like(half_log_snr), 2 * _END
    for level in range(_LEVELS):
        width /= 2
        middle = (left + right) / (2 * math.cosh(width))
        middle[level] = math.sqrt(math.tanh(width))
        beyond = half_log_snr >= start + width
        cell = 2 * cell + beyond
        left, right = torch.where(beyond, middle, left), torch.where(beyond, right, middle)
        start = torch.where(beyond, start + width, start)
    near, far = torch.sinh(half_log_snr - start), torch.sinh(start + width - half_log_snr)
    value = (far * left + near * right) / math.sinh(width)
    value[-1] = (2 * near * far / math.sinh(width)).sqrt()
    return torch.cat([cell[None], value])


def paths(
    seed: int,
    half_log_snr: Float[Tensor, "batch"],
    samples: Int[Tensor, "batch"],
    event: Sequence[int],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "batch *event"]:
    """U(λ_i) = e^{−λ_i} W(e^{2λ_i}) of sample i's path, for λ [batch] in float64 within [−40, 40].

    >>> from sdekit.noise import path
    >>> samples, places = torch.arange(3), torch.tensor([0.3, -5.0, 2.0], dtype=torch.float64)
    >>> each = [path(7, place.item(), samples[i : i + 1], (2,), torch.float64) for i, place in enumerate(places)]
    >>> torch.allclose(paths(7, places, samples, (2,), torch.float64), torch.cat(each), rtol=0, atol=1e-12)
    True
    """
    cell, *factors = lanewise(_places, half_log_snr).unbind()
    count, exact = math.prod(event), _at_least_float32(dtype)
    total = torch.zeros(len(samples), count, dtype=exact, device=samples.device)
    size = max(1, _BLOCK // max(1, total.numel()))
    for first in range(0, len(factors), size):
        part = factors[first : first + size]
        nodes = torch.stack([cell.long() >> (_LEVELS - first - i) for i in range(len(part))])
        rows = _mix(samples * _signed(_GOLDEN) + _mix(nodes * _signed(_GOLDEN) + _signed(key(seed, _TREE))))
        for z, factor in zip(_normals(rows, count, exact), part):
            total = total + factor.to(exact)[:, None] * z
    return total.reshape(-1, *event).to(dtype)


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
