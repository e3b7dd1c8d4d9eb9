"""The peers' default samplers on any ``ScoreModel``, run by their own code where it is installed.

Each library sees the model through its own convention, with the ends of the process: k-diffusion (and EDM's Heun, by
its code) as a denoiser of x/α at noise σ/α; diffusers as an ε network of a table with 1,000 entries, which are the
process at times uniform from t_min to t_max. All return the denoised sample after ``nfe`` evaluations, Heun after the
odd number below an even one.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sdekit.model import ScoreModel

Run = Callable[..., Tensor]


@dataclass(frozen=True)
class Peer:
    """``run(model, start, nfe, **conditions)`` → x, and the distribution that it needs."""

    run: Run
    package: str

    def version(self) -> str:
        """The installed version; empty where it is not installed."""
        found = [*metadata.distributions(name=self.package)]
        return found[0].version if found else ""


def _k_diffusion() -> Any:
    # its package imports evaluation code with many dependencies; the samplers need none of it
    if "k_diffusion.sampling" not in sys.modules:
        package, utils = ModuleType("k_diffusion"), ModuleType("k_diffusion.utils")
        package.__path__ = list(find_spec("k_diffusion").submodule_search_locations)
        utils.append_dims = lambda x, ndim: x[(...,) + (None,) * (ndim - x.ndim)]
        sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
        package.utils = utils
    from k_diffusion import sampling

    return sampling


def _denoiser(model: ScoreModel, conditions: dict[str, Any]) -> Callable[..., Tensor]:
    """x/α at noise σ/α → x_0."""
    process = model.process

    def denoise(x: Tensor, sigma: Tensor, **_: object) -> Tensor:
        knot = process.knot(min(max(process.t_of_half_log_snr(-sigma[0].log().item()), process.t_min), process.t_max))
        return model.x0(x * knot.alpha, knot.t, **conditions)

    return denoise


@torch.no_grad()
def k_diffusion(
    name: str, steps: Callable[[int], int], model: ScoreModel, start: Tensor, nfe: int, **conditions: Any
) -> Tensor:
    """A sampler of k-diffusion on ``get_sigmas_karras`` (ρ = 7) between the process's ends, then 0."""
    sampling, process = _k_diffusion(), model.process
    first, last = process.knot(process.t_max), process.knot(process.t_min)
    ends = last.sigma / last.alpha, first.sigma / first.alpha
    sigmas = sampling.get_sigmas_karras(steps(nfe), *ends).double()
    return getattr(sampling, name)(_denoiser(model, conditions), start / first.alpha, sigmas, disable=True)


@torch.no_grad()
def diffusers(name: str, model: ScoreModel, start: Tensor, nfe: int, **conditions: Any) -> Tensor:
    """A scheduler of diffusers as its constructor's defaults have it, on the process as a table; float32 inside."""
    import diffusers as library

    process, count = model.process, 1000
    times = [process.t_min + (process.t_max - process.t_min) * i / (count - 1) for i in range(count)]
    kept = [1 / (1 + math.exp(-2 * process.half_log_snr(t))) for t in times]  # ᾱ of a VP process at the same λ
    betas = [1 - b / a for a, b in zip([1.0, *kept], kept)]
    scheduler = getattr(library, name)(trained_betas=betas)
    scheduler.set_timesteps(nfe)
    first = process.knot(process.t_max)
    x = (start / first.sigma * math.sqrt(1 - kept[-1])).float()
    for t in scheduler.timesteps:
        knot = process.knot(times[int(t)])
        own = x.double() * math.hypot(knot.alpha, knot.sigma)
        x = scheduler.step(model.eps(own, knot.t, **conditions).float(), t, x).prev_sample
    return x.double()


def _one(nfe: int) -> int:
    return nfe


def _pairs(nfe: int) -> int:
    return (nfe + 1) // 2  # steps of two evaluations, the last of one


PEERS = {
    "k-diffusion 2M Karras": Peer(partial(k_diffusion, "sample_dpmpp_2m", _one), "k-diffusion"),
    "EDM Heun": Peer(partial(k_diffusion, "sample_heun", _pairs), "k-diffusion"),
    "diffusers DPM++ 2M": Peer(partial(diffusers, "DPMSolverMultistepScheduler"), "diffusers"),
    "diffusers UniPC": Peer(partial(diffusers, "UniPCMultistepScheduler"), "diffusers"),
}
