"""Which times a step of training sees, and the weights that go with them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from sdekit import noise
from sdekit.door import Count, Device, Place, Seed, door
from sdekit.names import Between, check_options, lookup, options_of, parse
from sdekit.process import Process

_OFFSET = 2  # a stream of the seed, beside those of ``denoiser``


@door
def uniform_times(process: Process, u: Tensor) -> tuple[Tensor, Tensor]:
    """Times and weights at quantiles u: E[w L(t)] is the mean of L over t in [t_min, t_max].

    >>> from sdekit.process import VE
    >>> uniform_times(VE(), torch.tensor([0.25]))
    (tensor([0.2500]), tensor([1.]))
    """
    return process.t_min + (process.t_max - process.t_min) * u, torch.ones_like(u)


@door
def importance_times(process: Process, u: Tensor) -> tuple[Tensor, Tensor]:
    """Times uniform in half-log-SNR: E[w L(t)] = ½ ∫ g²/σ² L(t) dt over [t_min, t_max].

    With L the ε-loss that is the likelihood weighting, and drawing t in proportion to g²/σ² = −2 dλ/dt the importance
    sampling of Song et al. 2021 (Maximum likelihood training, section 5.1); the weight is the constant range of λ.

    >>> from sdekit.process import VE
    >>> import math
    >>> t, w = importance_times(VE(0.1, 10.0), torch.tensor([0.5]))
    >>> round(t.item(), 6), round(w.item(), 6) == round(math.log(100), 6)
    (0.5, True)
    """
    high, low = process.half_log_snr(process.t_min), process.half_log_snr(process.t_max)
    t = process.t_of_half_log_snr(high + (low - high) * u)
    return t.clamp(process.t_min, process.t_max), torch.full_like(u, high - low)


@door
def log_normal_times(
    process: Process,
    u: Tensor,
    *,
    mean: Annotated[float, Between(-20, 20)] = -1.2,
    std: Annotated[float, Between(1e-3, 20)] = 1.2,
) -> tuple[Tensor, Tensor]:
    """Times at which log(σ/α) ~ N(mean, std²), those beyond [t_min, t_max] put on its ends; the weight is 1.

    Karras et al. 2022 (EDM, table 1), whose σ is σ/α here, and whose defaults these are.

    >>> from sdekit.process import EDM
    >>> t, w = log_normal_times(EDM(), torch.tensor([0.5]), mean=0.0)
    >>> t, w
    (tensor([1.]), tensor([1.]))
    """
    # half a cell of float32 inside (0, 1): infinity has no time
    z = torch.special.ndtri(u.clamp(2.0**-25, 1 - 2.0**-24))
    t = process.t_of_half_log_snr((-mean - std * z).clamp(*_levels(process)))
    return t.clamp(process.t_min, process.t_max), torch.ones_like(u)


def _levels(process: Process) -> tuple[float, float]:
    return process.half_log_snr(process.t_max), process.half_log_snr(process.t_min)


TimeSampler = Callable[[Process, Tensor], tuple[Tensor, Tensor]]

TIME_SAMPLERS: dict[str, TimeSampler] = {
    "uniform": uniform_times,
    "importance": importance_times,
    "log-normal": log_normal_times,
}


@door
def time_sampler(spec: str) -> TimeSampler:
    """The sampler of that name, with options as in ``"log-normal(mean=-1.1, std=2.0)"``.

    Raises ValueError for an unknown name, option or value.

    >>> time_sampler("importance") is importance_times
    True
    """
    name, options = parse(spec)
    function = lookup("time sampler", name, TIME_SAMPLERS)
    check_options(name, options_of(function), options)
    return partial(function, **options) if options else function


@door
def stratified(count: Count, seed: Seed, step: Place, device: Device = "cpu") -> Float[Tensor, "count"]:
    """(i + U)/count with one U in [0, 1) for each (seed, step): each value alone is uniform, the mean varies little.

    Kingma et al. 2021, appendix I.1.

    >>> u = stratified(4, seed=0, step=0)
    >>> torch.equal((u * 4).floor(), torch.arange(4.0))
    True
    """
    offset = (noise.key(seed, _OFFSET, step) >> 32) * 2.0**-32
    return (torch.arange(count, dtype=torch.float32, device=device) + offset) / count
