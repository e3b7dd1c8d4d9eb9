r"""``elbo``: variational lower bounds of log p(x), estimated at random times, with error bars.

All three bound the model that starts from N(0, σ(t_max)²), runs the reverse SDE to t_min and decodes:
log p(x) ≥ −KL(q(x_T|x) ‖ prior) − L_diffusion + E log p(x | x_{t_min}).

| kind | L_diffusion | decoder | source |
|---|---|---|---|
| ``vdm`` | ∫ E‖ε − ε̂‖² dλ | p(level) ∝ N(x_{t_min}; α x_level, σ²) | Kingma et al. 2021 |
| ``score-flow`` | the same | N(x; x̂_0, (σ/α)²), of continuous data | Song et al. 2021 (ScoreFlow), theorem 3 |
| ``ddpm`` | Σ_n ½ (e^{2(λ_{n−1}−λ_n)} − 1) E‖ε − ε̂‖² | N(x̂_0, σ²), over the level's bin | Ho et al. 2020, eq. 5, 13 |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sdekit import noise
from sdekit.data import Quantization, as_tensor
from sdekit.door import Count, Evaluations, Place, Rows, Seed, door
from sdekit.grid import Grid
from sdekit.model import in_evaluation_mode
from sdekit.names import lookup
from sdekit.process import DiscreteVP, Process, State, match
from sdekit.sampling import Model, as_rows
from sdekit.solvers.registry import check_count

_STREAM = 0x656C626F


@dataclass(frozen=True)
class Elbo:
    """What ``elbo`` returns, per sample and in nats, each [batch].

    Attributes:
        nats: −prior − diffusion + reconstruction: a lower bound of log p(x) in expectation.
        stderr: standard error of nats over its random times and noises (an upper estimate: strata are ignored).
        prior, diffusion, reconstruction: the parts.
        size: D.
    """

    nats: Float[Tensor, "batch"]
    stderr: Float[Tensor, "batch"]
    prior: Float[Tensor, "batch"]
    diffusion: Float[Tensor, "batch"]
    reconstruction: Float[Tensor, "batch"]
    size: int

    @property
    def bits_per_dim(self) -> Float[Tensor, "batch"]:
        """−nats/(D log 2): an upper bound in expectation."""
        return -self.nats / (self.size * math.log(2))


@dataclass(frozen=True)
class _Run:
    """What the parts of a bound share."""

    model: Model
    x: Tensor
    samples: Tensor
    seed: int
    conditions: Mapping[str, Any]

    def eps(self, draw: int) -> Tensor:
        return noise.normal(noise.key(_STREAM, self.seed), draw, self.samples, self.x.shape[1:], self.x.dtype)

    def uniform(self, draw: int) -> Tensor:
        """Uniform numbers in (0, 1), one for each sample."""
        stream = noise.key(_STREAM, self.seed, 1)
        return torch.special.ndtr(noise.normal(stream, draw, self.samples, (), torch.float64))

    def state(self, t: float | Tensor, eps: Tensor) -> Tensor:
        process = self.model.process
        alpha, sigma = (torch.as_tensor(c).to(self.x) for c in (process.alpha(t), process.sigma(t)))
        return match(alpha, self.x) * self.x + match(sigma, self.x) * eps

    def error(self, t: float | Tensor, draw: int) -> Tensor:
        """‖ε − ε̂(x_t, t)‖² for a fresh ε [batch]."""
        eps = self.eps(draw)
        time = t.to(self.x.dtype) if isinstance(t, Tensor) else t
        found = self.model.predict("eps", self.state(t, eps), time, **self.conditions)
        return (eps - found).square().flatten(1).sum(1)


@door
@in_evaluation_mode
def elbo(
    model: Model,
    x: Annotated[State | np.ndarray, Rows()],
    kind: str = "score-flow",
    *,
    times: Count = 16,
    quantization: Quantization | None = None,
    steps: Evaluations | None = None,
    grid: str = "time",
    seed: Seed = 0,
    first: Place = 0,
    **conditions: Any,
) -> Elbo:
    r"""A variational lower bound of log p(x), or of log P(levels) with ``quantization``.

    Times are drawn uniformly in λ, one in each of ``times`` equal strata: under that density the continuous loss has
    the weight 1, the importance sampling of ScoreFlow (section 4.3).

    Args:
        x: data [batch, *event], a tensor or a numpy array (taken as torch's default dtype).
        kind: a name in ``KINDS``.
        times: times drawn for the diffusion loss of each sample; a quarter of that, at least two, for the decoder.
        quantization: what levels x holds; needed by ``"vdm"``, refused by ``"score-flow"``.
        steps, grid: of ``"ddpm"`` for a process without a table of its own; ``times`` ≥ steps sums every term.
        seed, first: sample i's draws depend on (seed, first + i) alone.
        conditions: passed to the network.

    Raises ValueError for an unknown kind, times < 2, data off its levels, and where an argument of the kind is missing.

    >>> from sdekit import VP, targets
    >>> target = targets.Gaussian(torch.zeros(2), torch.eye(2))
    >>> bound = elbo(target.model(VP()), target.sample(500), times=8)
    >>> bool(abs(bound.nats.mean() + 2.84) < 0.3)  # −entropy of the data: the bound is tight for the exact score
    True
    """
    check_count("times", times, 2, "an error bar needs two")
    losses, decoder = lookup("kind", kind, KINDS)
    x = as_tensor(x, model.device)
    if not bool(x.isfinite().all()):
        raise ValueError("x holds NaN or infinity: every entry must be finite")
    process = model.process
    samples = torch.arange(first, first + len(x), device=x.device)
    run = _Run(model, x, samples, seed, as_rows(model, conditions, len(x)))
    with torch.no_grad():
        prior = 0.5 * math.exp(2 * process.half_log_snr(process.t_max)) * x.flatten(1).square().sum(1)
        diffusion, diffusion_error = losses(run, times, steps, grid)
        decoded = torch.stack([decoder(run, quantization, times + i) for i in range(max(2, times // 4))])
    error = (diffusion_error**2 + decoded.var(0) / len(decoded)).sqrt()
    nats = decoded.mean(0) - prior - diffusion
    return Elbo(nats, error, prior, diffusion, decoded.mean(0), x[0].numel())


def _continuous(run: _Run, times: int, steps: int | None, grid: str) -> tuple[Tensor, Tensor]:
    """∫ E‖ε − ε̂‖² dλ by one λ in each stratum."""
    process = run.model.process
    low, high = process.half_log_snr(process.t_max), process.half_log_snr(process.t_min)
    losses: list[Tensor] = []
    for k in range(times):
        half_log_snr = low + (high - low) * (k + run.uniform(k)) / times
        t = process.t_of_half_log_snr(half_log_snr).clamp(process.t_min, process.t_max)
        losses.append((high - low) * run.error(t, k))
    return _mean(losses)


def _discrete(run: _Run, times: int, steps: int | None, grid: str) -> tuple[Tensor, Tensor]:
    """Σ_n of the steps' losses: all of them, or one in each of ``times`` strata."""
    lambdas, knots = _table(run.model.process, steps, grid)
    terms = len(knots) - 1
    if times >= terms:
        parts = [_term(lambdas, n) * run.error(knots[n], n) for n in range(1, terms + 1)]
        total = torch.stack(parts).sum(0)
        return total, torch.zeros_like(total)
    weights = torch.tensor([0.0] + [_term(lambdas, n) for n in range(1, terms + 1)], dtype=torch.float64)
    table, where = weights.to(run.x.device), torch.tensor(knots, dtype=torch.float64).to(run.x.device)
    losses: list[Tensor] = []
    for k in range(times):
        n = 1 + (terms * (k + run.uniform(k)) / times).long().clamp(max=terms - 1)
        losses.append(terms * table[n].to(run.x.dtype) * run.error(where[n], k))
    return _mean(losses)


def _term(lambdas: Sequence[float], n: int) -> float:
    return 0.5 * math.expm1(2 * (lambdas[n - 1] - lambdas[n]))


def _table(process: Process, steps: int | None, grid: str) -> tuple[list[float], list[float]]:
    """λ and t from t_min to t_max: the entries of a DDPM's table, or a grid's knots."""
    if isinstance(process, DiscreteVP):
        knots = [(n + 1) / process.steps for n in range(process.steps)]
    else:
        check_count("steps", steps, 1, f"kind 'ddpm' needs the number of steps for {type(process).__name__}")
        knots = [knot.t for knot in Grid.make(process, grid, steps or 1).knots[::-1]]
    return [process.half_log_snr(t) for t in knots], knots


def _mean(losses: list[Tensor]) -> tuple[Tensor, Tensor]:
    stacked = torch.stack(losses)
    return stacked.mean(0), stacked.std(0) / math.sqrt(len(losses))


def _gaussian_decoder(run: _Run, quantization: Quantization | None, draw: int) -> Tensor:
    """log N(x; x̂_0, (σ/α)²) = −½ ‖ε − ε̂‖² − D log(√(2π) σ/α)."""
    if quantization is not None:
        raise ValueError("kind='score-flow' bounds the density of continuous data: of levels, ask for 'vdm' or 'ddpm'")
    process, size = run.model.process, run.x[0].numel()
    log_std = -process.half_log_snr(process.t_min)
    return -0.5 * run.error(process.t_min, draw) - size * (log_std + 0.5 * math.log(2 * math.pi))


def _level_decoder(run: _Run, quantization: Quantization | None, draw: int) -> Tensor:
    """log of N(x_{t_min}; α x_level, σ²) normalised over the levels."""
    if quantization is None:
        raise ValueError("kind='vdm' decodes levels: give quantization=")
    process = run.model.process
    level = quantization.levels(run.x)
    values = quantization.values(torch.arange(quantization.bins, device=run.x.device)).to(run.x.dtype)
    z = run.state(process.t_min, run.eps(draw))
    logits = -0.5 * ((z[..., None] - process.alpha(process.t_min) * values) / process.sigma(process.t_min)).square()
    return logits.log_softmax(-1).gather(-1, level[..., None]).flatten(1).sum(1)


def _bin_decoder(run: _Run, quantization: Quantization | None, draw: int) -> Tensor:
    """∫ over the level's bin of N(x̂_0, σ²), the first and last bin open to infinity; of densities N(x; x̂_0, σ²)."""
    process, x = run.model.process, run.x
    std = process.sigma(process.t_min)
    z = run.state(process.t_min, run.eps(draw))
    mean = run.model.predict("x0", z, process.t_min, **run.conditions)
    if quantization is None:
        squares = ((x - mean) / std).square()
        return -(0.5 * squares + math.log(std * math.sqrt(2 * math.pi))).flatten(1).sum(1)
    level, low = quantization.levels(x), quantization.edges(x)
    below = torch.where(level == 0, -math.inf, (low - mean) / std)
    above = torch.where(level == quantization.bins - 1, math.inf, (low + quantization.width - mean) / std)
    return _log_normal_mass(below, above).flatten(1).sum(1)


def _log_normal_mass(low: Tensor, high: Tensor) -> Tensor:
    """log(Φ(high) − Φ(low)), in the tail where both are small."""
    flip = low + high > 0  # mirror to the left tail, where log Φ keeps its digits
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    upper, lower = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return upper + torch.log1p(-(lower - upper).exp())


Losses = Callable[["_Run", int, "int | None", str], tuple[Tensor, Tensor]]
Decoder = Callable[["_Run", "Quantization | None", int], Tensor]

KINDS: dict[str, tuple[Losses, Decoder]] = {
    "vdm": (_continuous, _level_decoder),
    "score-flow": (_continuous, _gaussian_decoder),
    "ddpm": (_discrete, _bin_decoder),
}
"""Kinds of bound: the diffusion loss and the decoder."""
