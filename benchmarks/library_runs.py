"""Other libraries' samplers on one network, run by their own code, and what this package gives for the same call.

The network is the exact ε of three Gaussian modes in two dimensions. Each library runs as shipped, or ``wide``: every
float32 that its code names is replaced by float64, so that what is left of a difference is the algorithm's.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

import sdekit as sk
from sdekit.grid import Grid, GridSpec, table_times
from sdekit.interop import peers
from sdekit.noise import path
from sdekit.process import EDM, DiscreteVP, Process
from sdekit.targets import GaussianMixture

COUNT, SEED = 16, 5
DDPM_TABLE = DiscreteVP()
LATENT_TABLE = DiscreteVP([0.00085 + (0.012 - 0.00085) * n / 999 for n in range(1000)])
TO_ZERO = EDM(t_min=1e-12, t_max=200.0)
"""For methods that reach σ = 0 by their own weights: 1e-12 is as good, and has a λ."""


def target() -> GaussianMixture:
    """All of it within [−1, 1], where diffusers' DDIM and DDPM clip x_0 by default."""
    return GaussianMixture(torch.tensor([[0.5, 0.1], [-0.5, 0.3], [0.1, -0.5]], dtype=torch.float64), 0.1)


def start(process: Process) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return process.prior_std * torch.randn(COUNT, 2, dtype=torch.float64, generator=generator)


def z(a: float, b: float) -> Tensor:
    """The unit increment of the run's Brownian path between two λ."""
    w = [math.exp(lam) * path(SEED, lam, torch.arange(COUNT), (2,), torch.float64) for lam in (a, b)]
    return (w[1] - w[0]) / math.sqrt(math.exp(2 * b) - math.exp(2 * a))


def between_sigmas(sigma: Tensor, sigma_next: Tensor) -> Tensor:
    return z(-math.log(sigma), -math.log(sigma_next))


def every_second(process: Process, n: int) -> list[float]:
    times = [knot.t for knot in Grid.make(process, "logsnr", n - 1).knots]
    return [*times[:-1:2], times[-1]]


def _to_zero(process: Process, n: int, spec: GridSpec) -> list[float]:
    """The σ/α of a grid of N knots, and 1e-12."""
    return [*(math.exp(-knot.half_log_snr) for knot in Grid.make(process, spec, n - 1).knots), TO_ZERO.t_min]


# grids by the words that the page shows: (process, N) → what ``grid=`` takes
GRIDS: dict[str, Callable[[Process, int], GridSpec]] = {
    'table_times(process, "linspace", N + 1)[:-1]': lambda process, n: table_times(process, "linspace", n + 1)[:-1],
    'table_times(process, "linspace", N)': lambda process, n: table_times(process, "linspace", n),
    'table_times(process, "leading", N)': lambda process, n: table_times(process, "leading", n),
    "logsnr_times[::2]": every_second,
    "[*karras_sigmas, 1e-12]": lambda process, n: _to_zero(EDM(), n, "karras"),
    "[*table_sigmas, 1e-12]": lambda process, n: _to_zero(DDPM_TABLE, n, table_times(DDPM_TABLE, "linspace", n)),
    **{name: lambda process, n, name=name: name for name in ("linspace", "karras", "logsnr", "time")},
}


Run = Callable[["Case", int, bool], Tensor]
Ask = Callable[["Case", sk.ScoreModel, Tensor, Any, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """One call of a library, and its solver, grid and end here. ``run(case, n, wide)`` gives theirs.

    ``options`` are the call's arguments, ``evaluations`` is nfe for the library's N, ``n`` are the N to compare.
    """

    library: str
    name: str
    run: Run
    solver: str
    grid: str
    final: str = "denoise"
    process: Process = DDPM_TABLE
    evaluations: str = "N"
    options: dict[str, Any] = field(default_factory=dict)
    n: tuple[int, ...] = (10, 28)

    @property
    def call(self) -> str:
        """The call as the page shows it."""
        first = [] if self.library == "diffusers" else ["..."]
        called = f"{self.name}({', '.join([*first, *(f'{key}={value!r}' for key, value in self.options.items())])})"
        return called if self.library in ("diffusers", "k-diffusion") else f"{called}.sample(x, steps=N)"

    def nfe(self, n: int) -> int:
        return {"N": n, "2N − 1": 2 * n - 1, "N + 8": n + 8}[self.evaluations]

    def times(self, n: int) -> GridSpec:
        return GRIDS[self.grid](self.process, n)

    def ours(self, n: int) -> Tensor:
        """What this package gives for the library's N."""
        model, x = target().model(self.process), start(self.process)
        arguments = {"nfe": self.nfe(n), "grid": self.times(n), "final": self.final, "seed": SEED}
        return sk.sample(model, x.shape, solver=self.solver, start=x, noise="brownian", **arguments).x

    def difference(self, n: int, wide: bool) -> float:
        """The largest |ours − theirs| over all samples."""
        return (self.ours(n) - self.run(self, n, wide)).abs().max().item()

    def knots(self, n: int) -> list[float]:
        """λ at the knots of ours."""
        plan = sk.solvers.get(self.solver).plan(self.process, nfe=self.nfe(n), grid=self.times(n), final=self.final)
        ends = [plan.start, *(row.to for row in plan.rows if row.commit)]
        return [knot.half_log_snr for knot in ends if math.isfinite(knot.half_log_snr)]


class _Wide:
    """A module with float64 where it says float32."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, {"float32": "float64"}.get(name, name))


@contextmanager
def replaced(module: Any, **names: Any) -> Iterator[None]:
    """Names of a module's globals for the while, those that it has."""
    before = {name: getattr(module, name) for name in names if hasattr(module, name)}
    vars(module).update({name: names[name] for name in before})
    try:
        yield
    finally:
        vars(module).update(before)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _sigma(scheduler: Any) -> float:
    """σ/α at which a scheduler of diffusers asks its network next."""
    middle = not getattr(scheduler, "state_in_first_order", True)
    if middle and hasattr(scheduler, "mid_point_sigma"):
        return float(scheduler.mid_point_sigma)
    table = scheduler.sigmas_interpol if middle and hasattr(scheduler, "sigmas_interpol") else scheduler.sigmas
    return float(table[scheduler.step_index or 0])


def _scheduler(case: Case, n: int, **options: Any) -> Any:
    import diffusers

    scheduler = getattr(diffusers, case.name)(**{**case.options, **options})
    scheduler.set_timesteps(n)
    return scheduler


def by_time(case: Case, model: sk.ScoreModel, x: Tensor, scheduler: Any, t: Tensor) -> Tensor:
    """ε where the library asks for it: at entry t of the table."""
    return model.eps(x, (int(t) + 1) / case.process.steps)


def by_sigma(case: Case, model: sk.ScoreModel, x: Tensor, scheduler: Any, t: Tensor) -> Tensor:
    """ε at the σ of the step: for timesteps that are no entries, and that the library rounds or truncates."""
    return model.eps(x, case.process.knot_at(-math.log(_sigma(scheduler))).t)


def unscaled(case: Case, model: sk.ScoreModel, x: Tensor, scheduler: Any, t: Tensor) -> Tensor:
    """ε at the σ of the step for a process whose state is x/α: the library has scaled it for its network."""
    sigma = _sigma(scheduler)
    return model.eps(x * math.hypot(1.0, sigma), sigma)


def scheduled(ask: Ask = by_time, in_sigma: bool = False) -> Run:
    """A scheduler of diffusers in the loop of its documentation; ``in_sigma``: its state is x/α."""

    def run(case: Case, n: int, wide: bool) -> Tensor:
        dtype = torch.float64 if wide else torch.float32
        model, lams = target().model(case.process), case.knots(n)
        alpha = case.process.knot_at(lams[0]).alpha if in_sigma else 1.0
        with diffusers_as(case, wide, [*(z(a, b) for a, b in zip(lams, lams[1:])), torch.zeros(COUNT, 2)]):
            scheduler, x = _scheduler(case, n), (start(case.process) / alpha).to(dtype)
            if hasattr(scheduler, "noise_sampler"):
                scheduler.noise_sampler = lambda s, t: between_sigmas(s, t).to(dtype)
            for t in scheduler.timesteps:
                seen = scheduler.scale_model_input(x, t)
                eps = ask(case, model, seen.double(), scheduler, t).to(dtype)
                x = scheduler.step(eps, t, x).prev_sample
        return x.double()

    return run


def preconditioned(case: Case, n: int, wide: bool) -> Tensor:
    """A scheduler of diffusers for EDM's networks F: D(x; σ) = c_skip x + c_out F (Karras et al. 2022, table 1)."""
    dtype = torch.float64 if wide else torch.float32
    model = target().model(case.process)
    with diffusers_as(case, wide, []):
        scheduler, x = _scheduler(case, n), start(case.process).to(dtype)
        for t in scheduler.timesteps:
            scheduler.scale_model_input(x, t)
            sigma, data = _sigma(scheduler), scheduler.config.sigma_data
            total = sigma**2 + data**2
            denoised = model.x0(x.double(), case.process.knot_at(-math.log(sigma)).t)
            f = (denoised - data**2 / total * x.double()) / (sigma * data / math.sqrt(total))
            x = scheduler.step(f.to(dtype), t, x).prev_sample
    return x.double()


def ipndm(case: Case, n: int, wide: bool) -> Tensor:
    """IPNDMScheduler, whose network predicts v, on our σ: with its own the first α is 0."""
    dtype = torch.float64 if wide else torch.float32
    model, knots = target().model(case.process), [case.process.knot_at(lam) for lam in case.knots(n)]
    with diffusers_as(case, wide, []):
        scheduler = _scheduler(case, n, trained_betas=[knot.sigma for knot in knots])
        x = start(case.process).to(dtype)
        for knot, t in zip(knots, scheduler.timesteps):
            v = model.predict("v", x.double(), knot.t).to(dtype)
            x = scheduler.step(v, t, x).prev_sample
    return x.double()


@contextmanager
def diffusers_as(case: Case, wide: bool, draws: list[Tensor]) -> Iterator[None]:
    """Give the scheduler's module these draws for its noise, and float64 for float32 where ``wide``."""
    import diffusers

    module = sys.modules[getattr(diffusers, case.name).__module__]
    noise = iter(draws)
    names: dict[str, Any] = {"randn_tensor": lambda *_, dtype, **__: next(noise).to(dtype)}
    if wide:
        names |= {"torch": _Wide(torch), "np": _Wide(numpy)}
    with replaced(module, **names), default_dtype(torch.float64 if wide else torch.float32):
        yield


def k_diffusion(case: Case, n: int, wide: bool) -> Tensor:
    """A sampler of k-diffusion on the sigmas of ours, then 0; it works in the type that it is given."""
    dtype, process = torch.float64 if wide else torch.float32, case.process
    model, x = target().model(process), start(process).to(dtype)
    sampler = getattr(peers.k_diffusion_sampling(), case.name)
    options: dict[str, Any] = {"disable": True, **case.options}
    if "noise_sampler" in inspect.signature(sampler).parameters:
        options["noise_sampler"] = lambda s, t: between_sigmas(s, t).to(dtype)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return model.x0(x.double(), process.knot_at(-math.log(sigma[0])).t).to(dtype)

    sigmas = [math.exp(-lam) for lam in case.knots(n)]
    ends = [0.0 if sigma == sigmas[-1] and case.final == "none" else sigma for sigma in sigmas]
    with torch.no_grad(), default_dtype(dtype):
        if case.name == "sample_dpm_fast":  # makes its own
            return sampler(denoise, x, process.t_min, process.t_max, n, **options).double()
        ends += [0.0] * (case.final == "denoise")
        return sampler(denoise, x, torch.tensor(ends, dtype=dtype), **options).double()


def released(file: Path, solver: str) -> Run:
    """``sample`` of dpm-solver's or UniPC's single file with its defaults, on VP's continuous schedule."""

    def run(case: Case, n: int, wide: bool) -> Tensor:
        dtype, process = torch.float64 if wide else torch.float32, case.process
        spec = spec_from_file_location(file.stem, file)
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        model = target().model(process)
        schedule = module.NoiseScheduleVP("linear", continuous_beta_0=0.1, continuous_beta_1=20.0, dtype=dtype)

        def eps(x: Tensor, t: Tensor) -> Tensor:
            time = min(max(t.flatten()[0].item(), process.t_min), process.t_max)
            return model.eps(x.flatten(1).double(), time).to(dtype).view_as(x)

        wider = {"torch": _Wide(torch)} if wide else {}
        image = start(process).to(dtype)[:, :, None, None]  # UniPC's code takes nothing else
        with torch.no_grad(), replaced(module, **wider), default_dtype(dtype), redirect_stdout(None):
            return getattr(module, solver)(eps, schedule, **case.options).sample(image, n).flatten(1).double()

    return run
