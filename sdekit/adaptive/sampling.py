"""``sample_adaptive``: what it takes, checks and returns."""

# pyright: reportPrivateUsage=false
# the check of the shape and the progress bar are those of ``sample``

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sdekit.adaptive.loop import Run, Tally, solve
from sdekit.adaptive.methods import CONTROLS, METHODS, Field, Method
from sdekit.adaptive.noise import NO_NOISE, NOISES
from sdekit.door import Count, Device, FloatDtype, Seed, Shape, Tolerance, door, record
from sdekit.misfit import warn_of_start
from sdekit.model import in_evaluation_mode
from sdekit.names import lookup, unknown
from sdekit.noise import REACH, normal
from sdekit.process import Process
from sdekit.sampling import Model, as_rows, batched, check_conditions, check_shape, progress_bar, space_of
from sdekit.solvers.final import FINALS
from sdekit.solvers.registry import check_count


@record
@dataclass(frozen=True)
class AdaptiveSolution:
    """What ``sample_adaptive`` returns.

    Attributes:
        x: samples [n, *event].
        nfe: network evaluations that each sample took [n], the final denoising among them.
        accepted: steps that each sample made [n].
        rejected: steps that each sample tried and did not make [n].
        seed: the seed that repeats the run.
        t: the time of x, as a tuple of one; 0 where it was denoised.
        sigma: σ of the noise that x still carries; 0 where it was denoised.
        space: ``"latents"`` where the model is one of latents (``latent``).
    """

    x: Float[Tensor, "n *event"]
    nfe: Int[Tensor, "n"]
    accepted: Int[Tensor, "n"]
    rejected: Int[Tensor, "n"]
    seed: int
    t: tuple[float, ...]
    sigma: float
    space: str = "data"


@door
@in_evaluation_mode
@torch.no_grad()
def sample_adaptive(
    model: Model,
    shape: Shape,
    *,
    method: str = "dpm-solver-23",
    rtol: Tolerance = 0.05,
    atol: Tolerance = 0.0078,
    control: str = "pi",
    noise: str = "brownian",
    seed: Seed | None = None,
    start: Tensor | None = None,
    final: str = "auto",
    max_nfe: int = 10_000,
    progress: bool = False,
    batch_size: Count | None = None,
    dtype: FloatDtype = torch.float32,
    device: Device | None = None,
    **conditions: Any,
) -> AdaptiveSolution:
    r"""Draw samples with a step size that each sample chooses for itself, from t_max to t_min.

    A step is tried with two orders, x' and x''. With δ = max(atol, rtol max(|x'|, |x'_before|)) for each element and
    E = √mean(((x' − x'')/δ)²) over one sample, it is accepted where E ≤ 1, and goes on from x''. What a sample takes
    does not depend on the others: with a network whose rows do not mix, it is the same to the bit in any batch.

    Args:
        method: ``"dpm-solver-12"`` or ``"dpm-solver-23"``, for the probability-flow ODE, in steps of λ; ``"sde"``,
            stochastic improved Euler for the reverse SDE, in steps of t. See ``METHODS``.
        rtol, atol: the tolerance of one step, relative and absolute, for x itself. 0.0078 is one grey level of 256 for
            images in [−1, 1].
        control: ``"pi"`` or, as in both papers, ``"i"``. See ``CONTROLS``.
        noise: for ``"sde"``: ``"brownian"`` reads each step's noise from the path of (seed, sample), so that a rejected
            step's noise is still there when it is tried again, shorter; ``"independent"`` draws anew for every try, as
            the paper's code does, which is biased where steps are rejected.
        final: as in ``sample``; ``"auto"`` is ``"denoise"``, one evaluation among dozens. ``"reuse"`` takes the last ε
            as it is, and is for the ODE's methods.
        seed, start, progress, batch_size, dtype, device, conditions: as in ``sample``; the state is float32 or
            float64. The same seed starts from the same noise as ``sample`` on a grid from t_max.
        max_nfe: the most evaluations that one sample may take.

    The host reads the device once for each round of tries, whatever the batch. No time is outside [t_min, t_max].

    Raises ValueError for unknown names and options out of range; and where a sample does not arrive, since the network
    returns NaN or infinity, or max_nfe is reached: it names the sample, t and the step size.

    >>> from sdekit import VP, targets
    >>> model = targets.Gaussian(torch.zeros(2), torch.diag(torch.tensor([1.0, 0.01]))).model(VP())
    >>> out = sample_adaptive(model, (3, 2), seed=0)
    >>> out.x.shape, bool((out.nfe == 3 * out.accepted + 2 * out.rejected + 1).all())
    (torch.Size([3, 2]), True)
    """
    n, *event = check_shape(shape, start)
    size, dtype = n if batch_size is None else batch_size, dtype if start is None else start.dtype
    check_count("batch_size", size, 1, "it is how many samples run at once")
    check_conditions(model, conditions, sample_adaptive)
    conditions = as_rows(model, conditions, n)
    separate = batched(conditions, n)
    shared = {name: c for name, c in conditions.items() if name not in separate}
    seed = secrets.randbits(63) if seed is None else seed
    where = torch.device(model.device if device is None else device)
    chosen, process = lookup("method", method, METHODS), model.process
    source = lookup("noise", noise, NOISES) if chosen.stochastic else NO_NOISE
    _check_options(process, chosen, noise, rtol, atol, dtype)
    last = _final(final, method, chosen)
    least = chosen.evaluations + (last == "denoise")
    check_count("max_nfe", max_nfe, least, f"{method!r} needs as many for one step")
    begin, end = (float(chosen.variable.of_t(process, t)) for t in (process.t_max, process.t_min))
    run = Run(
        model, chosen, lookup("control", control, CONTROLS), Field(process, chosen.variable, *_inside(process, dtype)),
        source(seed, event, dtype), rtol, atol, max_nfe, last, begin, end, shared,
    )  # fmt: skip
    ended: list[Tensor] = []
    tallies: list[Tally] = []
    with progress_bar(progress, n) as advance:
        for first in range(0, n, size):
            samples, part = torch.arange(first, min(first + size, n), device=where), slice(first, first + size)
            x = normal(seed, 0, samples, event, dtype) * process.prior_std if start is None else start[part].to(where)
            own = {name: condition[part] for name, condition in separate.items()}
            x, steps = solve(run, x, samples, own, advance)
            ended.append(x)
            tallies.extend(steps)
    accepted, rejected = torch.tensor(tallies).unbind(1)
    x = torch.cat(ended)
    t, sigma = (process.t_min, process.sigma(process.t_min)) if last == "none" else (0.0, 0.0)
    if start is None:
        warn_of_start(process, x)
    return AdaptiveSolution(x, run.nfe(accepted, rejected), accepted, rejected, seed, (t,), sigma, space_of(model))


def _final(final: str, name: str, method: Method) -> str:
    if final not in FINALS:
        raise unknown("final", final, FINALS)
    if final == "reuse" and method.stochastic:
        raise ValueError(f"final='reuse': method={name!r} keeps no account of its last noise; use 'denoise' or 'none'")
    return "denoise" if final == "auto" else final


def _inside(process: Process, dtype: torch.dtype) -> tuple[float, float]:
    """The first and the last number of this dtype within [t_min, t_max]: no rounding of t leaves the range."""
    ends = torch.tensor([process.t_min, process.t_max], dtype=torch.float64)
    near, inward = ends.to(dtype), torch.tensor([math.inf, -math.inf], dtype=dtype)
    outside = torch.stack([near[0].double() < ends[0], near[1].double() > ends[1]])
    low, high = torch.where(outside, torch.nextafter(near, inward), near).tolist()
    return low, high


def _check_options(process: Process, method: Method, noise: str, rtol: float, atol: float, dtype: torch.dtype) -> None:
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype={dtype}: the state must be float32 or float64 (the network may run in less)")
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value}: it must be at least 0 and finite")
    reach = 4 * torch.finfo(dtype).eps
    if max(rtol, atol) < reach:
        raise ValueError(f"rtol={rtol}, atol={atol}: with {dtype} one of them must be at least {reach:.2g}")
    first, last = process.half_log_snr(process.t_max), process.half_log_snr(process.t_min)
    if method.stochastic and noise == "brownian" and not -REACH <= first < last <= REACH:
        raise ValueError(
            f"noise='brownian' serves half_log_snr from -{REACH} to {REACH}, the run goes from {first} to {last}"
        )
