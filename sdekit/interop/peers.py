"""Other libraries' samplers on any model, run by their own code where it is installed, as rows of a comparison.

Each library sees the model through its own convention, with the ends of the process: k-diffusion (and EDM's Heun, by
its code) as a denoiser of x/α at noise σ/α; diffusers as an ε network of a table with 1,000 entries, which are the
process at times uniform from t_min to t_max; azula as a denoiser with the process's schedule; the files that the
authors of DPM-Solver and UniPC published as an ε network with that schedule. All return the denoised sample after
``nfe`` evaluations, Heun after the odd number below an even one, azula's and the files' with the last of them at t_min.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sdekit.comparison import Function
from sdekit.sampling import Model

Run = Callable[..., Tensor]

FILES = {"dpm_solver_pytorch": "DPM_Solver", "uni_pc": "UniPC"}
"""Files that are no distribution, found where Python finds them (``PYTHONPATH``), and their classes."""


@dataclass(frozen=True)
class Peer:
    """``run(model, start, nfe, **conditions)`` → x, and the distribution or file that it needs."""

    run: Run
    package: str

    def version(self) -> str:
        """The installed version, of a file the start of its digest; empty where it is not installed."""
        found = [*metadata.distributions(name=self.package)]
        if found:
            return found[0].version
        file = find_spec(self.package) if self.package in FILES else None
        return sha256(Path(file.origin).read_bytes()).hexdigest()[:8] if file and file.origin else ""


def k_diffusion_sampling() -> Any:
    """The module ``k_diffusion.sampling``."""
    # its package imports evaluation code with many dependencies; the samplers need none of it
    if "k_diffusion.sampling" not in sys.modules:
        package: Any = ModuleType("k_diffusion")
        utils: Any = ModuleType("k_diffusion.utils")
        found = find_spec("k_diffusion")
        package.__path__ = list(found.submodule_search_locations or ()) if found else []
        package.__spec__ = found  # so that it can be asked for again
        utils.append_dims = lambda x, ndim: x[(...,) + (None,) * (ndim - x.ndim)]
        sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
        package.utils = utils
    return import_module("k_diffusion.sampling")


def _denoiser(model: Model, conditions: dict[str, Any]) -> Callable[..., Tensor]:
    """x/α at noise σ/α → x_0."""
    process = model.process

    def denoise(x: Tensor, sigma: Tensor, **_: object) -> Tensor:
        knot = process.knot(min(max(process.t_of_half_log_snr(-sigma[0].log().item()), process.t_min), process.t_max))
        return model.predict("x0", x * knot.alpha, knot.t, **conditions)

    return denoise


@torch.no_grad()
def k_diffusion(
    name: str, steps: Callable[[int], int], model: Model, start: Tensor, nfe: int, **conditions: Any
) -> Tensor:
    """A sampler of k-diffusion on ``get_sigmas_karras`` (ρ = 7) between the process's ends, then 0."""
    sampling, process = k_diffusion_sampling(), model.process
    first, last = process.knot(process.t_max), process.knot(process.t_min)
    ends = last.sigma / last.alpha, first.sigma / first.alpha
    sigmas = sampling.get_sigmas_karras(steps(nfe), *ends).double()
    return getattr(sampling, name)(_denoiser(model, conditions), start / first.alpha, sigmas, disable=True)


@torch.no_grad()
def diffusers(name: str, model: Model, start: Tensor, nfe: int, **conditions: Any) -> Tensor:
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
        x = scheduler.step(model.predict("eps", own, knot.t, **conditions).float(), t, x).prev_sample
    return x.double()


@torch.no_grad()
def azula(name: str, model: Model, start: Tensor, nfe: int, **conditions: Any) -> Tensor:
    """A sampler of azula on its own times, uniform in t, for all evaluations but the last, which denoises at t_min."""
    denoise, sample = import_module("azula.denoise"), import_module("azula.sample")
    process = model.process

    class Schedule:
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return process.alpha(t), process.sigma(t)

    class Denoiser(denoise.Denoiser):
        schedule = Schedule()

        def forward(self, x_t: Tensor, t: Tensor, **_: object) -> Any:
            return denoise.DiracPosterior(model.predict("x0", x_t, t.item(), **conditions))

    ends = {"start": process.t_max, "stop": process.t_min, "steps": nfe - 1}
    if nfe < 2:
        raise ValueError(f"nfe={nfe}: azula's samplers need one evaluation for a step and one to denoise")
    x = getattr(sample, name)(Denoiser(), **ends, silent=True, dtype=torch.float64)(start.double())
    return model.predict("x0", x, process.t_min, **conditions)


@torch.no_grad()
def published(module: str, model: Model, start: Tensor, nfe: int, **conditions: Any) -> Tensor:
    """The class of its authors' file with its defaults, two orders, steps uniform in t; float32 inside."""
    process, library = model.process, import_module(module)
    if nfe < 3:
        raise ValueError(f"nfe={nfe}: {module} takes two steps at least and one evaluation to denoise, 3 in all")

    late = float(process.t_min <= 0)  # a time of 0 is refused: such a process starts at 1

    def on(function: Callable[[Any], Any]) -> Callable[[Tensor], Any]:
        return lambda t: function((t - late).clamp(process.t_min, process.t_max))

    def eps(x: Tensor, t: Tensor) -> Tensor:
        now = on(Tensor.item)(t.flatten()[0])
        return model.predict("eps", x.view_as(start).to(start.dtype), now, **conditions).float().view_as(x)

    schedule = SimpleNamespace(
        schedule="continuous", T=process.t_max + late, total_N=1000,
        marginal_alpha=on(process.alpha), marginal_std=on(process.sigma), marginal_lambda=on(process.half_log_snr),
        marginal_log_mean_coeff=on(lambda t: process.alpha(t).log()),
    )  # fmt: skip
    images = start.float().flatten(1)[:, :, None, None]  # the one shape that UniPC's file takes
    ends = {"t_start": process.t_max + late, "t_end": process.t_min + late, "denoise_to_zero": True}
    with redirect_stdout(None):  # it prints its steps
        x = getattr(library, FILES[module])(eps, schedule).sample(images, nfe - 1, **ends)
    return x.view_as(start).double()


def _one(nfe: int) -> int:
    return nfe


def _pairs(nfe: int) -> int:
    return (nfe + 1) // 2  # steps of two evaluations, the last of one


PEERS = {
    "k-diffusion 2M Karras": Peer(partial(k_diffusion, "sample_dpmpp_2m", _one), "k-diffusion"),
    "EDM Heun": Peer(partial(k_diffusion, "sample_heun", _pairs), "k-diffusion"),
    "diffusers DPM++ 2M": Peer(partial(diffusers, "DPMSolverMultistepScheduler"), "diffusers"),
    "diffusers UniPC": Peer(partial(diffusers, "UniPCMultistepScheduler"), "diffusers"),
    "diffusers DEIS": Peer(partial(diffusers, "DEISMultistepScheduler"), "diffusers"),
    "azula DDIM": Peer(partial(azula, "DDIMSampler"), "azula"),
    "azula xEAB": Peer(partial(azula, "xEABSampler"), "azula"),
    "DPM-Solver's file": Peer(partial(published, "dpm_solver_pytorch"), "dpm_solver_pytorch"),
    "UniPC's file": Peer(partial(published, "uni_pc"), "uni_pc"),
}


def installed() -> list[Function]:
    """The peers whose libraries are installed, for ``compare(solvers=…)``; deterministic all.

    >>> all(one.name in PEERS for one in installed())
    True
    """
    return [Function(name, peer.run) for name, peer in PEERS.items() if peer.version()]
