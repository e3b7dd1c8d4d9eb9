r"""Weighted particles along a table of single steps, drawn anew where their weights grow uneven.

A step of the model, x_t = a x_s + b F + c z, is a Gaussian p(x_t | x_s) with the standard deviation c. A proposal moves
its mean by d: x_t = a x_s + b F + d + c z. The density of the step over that of the proposal is then

    log p(x_t | x_s) − log q(x_t | x_s) = −z·d/c − ½ |d|²/c².

A method gives d and a ``twist``: log ψ_t(x_t), any estimate of log p(y | x_t), which is log p(y | x_0) at the end. The
weights p/q · ψ_t/ψ_s make the law at the end that of the model's chain times p(y | x_0), over p(y), whatever d and ψ
are; how even they stay depends on both. (Del Moral, Doucet & Jasra 2006.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit.elementwise import clock
from sdekit.guidance.resampling import FEWEST, effective, log_mean, systematic, uniform, warn_of_weights
from sdekit.inverse.registry import Posterior, Run, flat
from sdekit.inverse.steps import one_step
from sdekit.noise import SOURCES, key, normal
from sdekit.process import Knot
from sdekit.sampling import batched, combine
from sdekit.solvers import Row

_STREAM = 0x7D5


@dataclass(frozen=True)
class Look:
    """What a method finds at a noisy x.

    Attributes:
        F: the model's own prediction [n, *event], of the plan's kind.
        shift: what a proposal adds to it.
        twist: log ψ(x) [n].
    """

    F: Tensor
    shift: Tensor
    twist: Tensor


Finder = Callable[[Knot, Tensor, Tensor], Look]
End = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _Population:
    """Where the particles are, what was found there, and log W [populations, n]."""

    x: Tensor
    look: Look
    log_weights: Tensor


def filtered(
    run: Run, name: str, find: Finder, end: End, resample_below: float, gradients: Callable[[], int]
) -> Posterior:
    """Run the particles: ``find(knot, x, measured)`` is asked once a step, ``end(x, measured)`` is log p(y | x).

    Raises ValueError for a solver whose steps are no Gaussians, and too few particles. Warns (``WeightsWarning``) where
    the effective sample size of a population falls below 5%.
    """
    n, plan, before = _check(run), run.plan, run.model.nfe
    rows, measured = list(one_step(name, plan, noisy=True)), _measured(run)
    samples = torch.arange(run.shape[0], device=run.model.device)
    draw = SOURCES["independent"](run.seed, plan.intervals, samples, run.shape[1:], run.dtype)
    x = normal(run.seed, 0, samples, run.shape[1:], run.dtype) * plan.start.sigma
    look = find(plan.start, x, measured)
    now = _Population(x, look, look.twist.to(clock(x)).reshape(run.populations, n))
    evidence, record = now.log_weights.new_zeros(run.populations), [effective(now.log_weights)]
    for i, (_, row) in enumerate(rows):
        point = uniform(key(run.seed, _STREAM), i, now.log_weights)
        now, gained = _resampled(now, record[-1] < resample_below, point)
        evidence = evidence + gained
        x, ratio = _step(row, now, draw)
        look = find(row.to, x, measured) if i + 1 < len(rows) else Look(x, x, end(x, measured))
        change = ratio + look.twist.to(ratio.dtype) - now.look.twist.to(ratio.dtype)
        now = _Population(x, look, now.log_weights + change.reshape(run.populations, n))
        record.append(effective(now.log_weights))
    ess = torch.stack(record)
    warn_of_weights(ess.min(1).values, "take more particles or steps, or a measurement with more noise")
    weights = (now.log_weights.softmax(1) * n).flatten().to(run.dtype)
    evidence = evidence + log_mean(now.log_weights)
    return Posterior(now.x, run.model.nfe - before, gradients(), run.seed, weights, ess, evidence)


def _resampled(now: _Population, low: Tensor, point: Tensor) -> tuple[_Population, Tensor]:
    """The populations drawn anew where ``low``, and what that adds to their log evidence; decided on the device."""
    ordered = torch.arange(now.log_weights.shape[1], device=low.device)
    picks = flat(torch.where(low[:, None], systematic(now.log_weights, point), ordered))
    gained = torch.where(low, log_mean(now.log_weights), torch.zeros_like(point[:, 0]))
    log_weights = torch.where(low[:, None], torch.zeros_like(now.log_weights), now.log_weights)
    look = Look(now.look.F[picks], now.look.shift[picks], now.look.twist[picks])
    return _Population(now.x[picks], look, log_weights), gained


def _step(row: Row, now: _Population, draw: Callable[[float, float], Tensor]) -> tuple[Tensor, Tensor]:
    """Where the proposal takes x, and log p/q there [n]; the last step, which denoises, is the model's own."""
    x = combine(row, now.x, deque([now.look.F]), draw)
    ratio = x.new_zeros(len(x), dtype=clock(x))
    if not row.noise:
        return x, ratio
    (noise,) = row.noise
    shift, z = row.history[0] * now.look.shift, draw(noise.start, noise.end)
    relative = (shift / noise.coefficient).flatten(1).to(ratio.dtype)
    return x + shift, -(relative * (z.flatten(1).to(ratio.dtype) + 0.5 * relative)).sum(1)


def _check(run: Run) -> int:
    """The particles of one population. Raises ValueError where there are too few, or the options do not fit them."""
    total, groups = run.shape[0], run.populations
    if total % groups or total // groups < FEWEST:
        raise ValueError(
            f"shape: {total} particles in {groups} populations: each needs the same number, at least {FEWEST}, and"
            " hundreds for a law"
        )
    if run.batch_size is not None and run.batch_size < total:
        raise ValueError(f"batch_size={run.batch_size}: particles are weighed together, all {total} run at once")
    for name, rows in batched(run.conditions, total).items():
        if bool((rows != rows[:1]).any()):
            raise ValueError(f"{name}: all particles sample one law; give one value, the same for each of them")
    return total // groups


def _measured(run: Run) -> Tensor:
    """A measurement for each particle."""
    y, groups = run.measurement.y, run.populations
    if run.measured is None:
        every = y.expand(run.shape[0], *y.shape)
    elif run.measured.shape != (groups, *y.shape):
        raise ValueError(
            f"measured has shape {list(run.measured.shape)}: particles take one for each population,"
            f" {[groups, *y.shape]}"
        )
    else:
        every = run.measured.repeat_interleave(run.shape[0] // groups, 0)
    return every.to(run.model.device, run.dtype)
