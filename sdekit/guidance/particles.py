r"""The law that guidance is taken to sample, sampled: particles with weights along the reverse SDE.

Write p for the law that is left behind and q for the one that is followed (``ClassifierFree``: q = p(x | c)), p_t and
q_t for their marginals. With the guided score S = (1 − w) ∇ log p_t + w ∇ log q_t, the densities γ_t ∝ p_t^{1−w} q_t^w
have the score S, but are not the marginals of the reverse SDE with S: p_t and q_t each satisfy the Fokker–Planck
equation, and their geometric mean satisfies it but for one term,

    ∂γ/∂t = −∇·(f x γ) + ½ g² Δγ + ½ g² w (1 − w) |∇ log q_t − ∇ log p_t|² γ.

So a particle of the reverse SDE with S needs a weight W (the Feynman–Kac formula). As g² dt = −2σ² dλ and
ε = −σ ∇ log p,

    d log W = w (w − 1) |ε_q − ε_p|² dλ,

which is 0 for w = 0 and w = 1, the two laws that a sampler gets right. (Skreta et al. 2025, Feynman–Kac correctors;
sequential Monte Carlo as in Del Moral, Doucet & Jasra 2006.)
"""

from __future__ import annotations

import math
import secrets
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sdekit.door import Evaluations, FloatDtype, Seed, Shape, door, record
from sdekit.elementwise import clock
from sdekit.grid import Grid, GridSpec
from sdekit.guidance.rules import combine
from sdekit.guidance.wrappers import Autoguided, ClassifierFree, rows
from sdekit.model import in_evaluation_mode
from sdekit.names import unknown
from sdekit.noise import key, normal
from sdekit.process import Knot
from sdekit.sampling import check_conditions, check_shape
from sdekit.solvers.registry import check_count

FEWEST = 16
"""Particles below which a population says nothing of a law."""
LOW = 0.05
"""The share of effective particles below which a run warns."""
_STREAM = 0x5EC0
_FINALS = ("denoise", "none")


class WeightsWarning(UserWarning):
    """Weights so uneven that a few particles stand for all."""


@record
@dataclass(frozen=True)
class Tilted:
    """What ``tilted`` returns.

    Attributes:
        x: particles [n, *event].
        weights: their weights [n], of mean 1: the law's expectation of f is the mean of ``weights * f(x)``.
        ess: the effective sample size over n, (Σ W)²/(n Σ W²), after each step and before any resampling [steps].
        log_evidence: an estimate of log ∫ p^{1−w} q^w dx at the end of the run.
        ancestors: the share of particles at the start that have descendants at the end.
        nfe: network evaluations that each particle took.
        seed: the seed that repeats the run.
    """

    x: Float[Tensor, "n *event"]
    weights: Float[Tensor, "n"]
    ess: Float[Tensor, "steps"]
    log_evidence: float
    ancestors: float
    nfe: int
    seed: int

    def even(self) -> Float[Tensor, "n *event"]:
        """n particles of equal weight, drawn in proportion to the weights: copies of some, none of others."""
        return self.x[_systematic(self.weights.log(), _uniform(key(self.seed, _STREAM), 0, self.weights))]


@door
@in_evaluation_mode
@torch.no_grad()
def tilted(
    guided: ClassifierFree | Autoguided,
    shape: Shape,
    *,
    steps: Evaluations = 200,
    grid: GridSpec = "logsnr",
    noise_level: float = 2.0,
    resample_below: float = 0.9,
    seed: Seed | None = None,
    final: str = "denoise",
    dtype: FloatDtype = torch.float32,
    **conditions: Any,
) -> Tilted:
    """Sample p^{1−w} q^w, whose score guidance takes itself to follow: p(x) p(c | x)^w for ``ClassifierFree``.

    n particles follow the reverse SDE with the guided score and carry weights; where the effective sample size falls
    below ``resample_below``·n they are drawn anew in proportion to them (systematic resampling), all on the device.
    The law is exact as n and ``steps`` grow, for the networks' own p_t and q_t, but for the start from N(0, σ²). A
    population has one law: a condition is one value, the same for every particle.

    Args:
        guided: ``ClassifierFree`` or ``Autoguided``, with a number as scale and no rule.
        shape: [n, *event], n the number of particles.
        steps: of the reverse SDE, each one evaluation of both predictions; one more at the end.
        grid: a name in ``grid.GRIDS`` or ``steps`` + 1 times.
        noise_level: η of the reverse SDE (``process.ReverseSDE``), whose weights are the same for every η. More noise
            lets particles forget where they were, which evens the weights, and needs more steps.
        resample_below: 0 never resamples.
        seed: None draws one.
        final: ``"denoise"`` takes the noise left at t_min off by the prediction there, ``"none"`` leaves it.
        dtype: of the particles.
        conditions: a number, or a tensor of one sample's shape.

    Raises ValueError for other models, fewer than 16 particles, and options out of range. Warns (``WeightsWarning``)
    where the effective sample size falls below 5%.

    >>> from sdekit.process import VP
    >>> from sdekit.targets import Gaussian
    >>> q, p = (Gaussian(torch.tensor([mean]), torch.eye(1)).model(VP()) for mean in (1.0, 0.0))
    >>> out = tilted(Autoguided(q, p, 2.0), (2000, 1), steps=50, seed=0)  # N(0, 1)^−1 N(1, 1)^2 is N(2, 1)
    >>> round((out.weights[:, None] * out.x).mean().item(), 1), out.nfe
    (2.0, 102)
    """
    n, *event = check_shape(shape, None)
    w = _check(guided, n, noise_level, resample_below, final)
    check_count("steps", steps, 1, "a run takes at least one step")
    seed = secrets.randbits(63) if seed is None else seed
    knots, before = Grid.make(guided.process, grid, [1] * steps).knots, guided.nfe
    stream, samples = key(seed, _STREAM), torch.arange(n, device=guided.device)
    look = partial(_look, guided, w, _for_all(guided, conditions, samples))
    now = _start(knots[0], normal(seed, 0, samples, event, dtype) * knots[0].sigma, look)
    evidence, record = now.log_weights.new_zeros(()), list[Tensor]()
    for i, knot in enumerate(knots[1:], start=1):
        now = _step(now, knot, noise_level, normal(seed, i, samples, event, dtype), look)
        record.append(_effective(now.log_weights))
        now, gained = _resampled(now, record[-1] < resample_below, _uniform(stream, i, now.log_weights))
        evidence = evidence + gained
    evidence = evidence + _log_mean(now.log_weights)
    x = now.x0 if final == "denoise" else now.x
    ess, weights = torch.stack(record), now.log_weights.softmax(0) * n
    _warn(ess)
    kept = now.ancestors.unique().numel() / n
    return Tilted(x, weights, ess, evidence.item(), kept, guided.nfe - before, seed)


Look = Callable[[Knot, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Particles:
    """Where the particles are and what was found there: the guided x0, its slope in λ, and d log W/dλ."""

    knot: Knot
    x: Tensor
    x0: Tensor
    slope: Tensor
    rate: Tensor
    log_weights: Tensor
    ancestors: Tensor


def _start(knot: Knot, x: Tensor, look: Look) -> _Particles:
    x0, rate = look(knot, x)
    return _Particles(
        knot, x, x0, torch.zeros_like(x), rate, torch.zeros_like(rate), torch.arange(len(x)).to(rate.device)
    )


def _look(
    guided: ClassifierFree | Autoguided, w: float, conditions: Mapping[str, Tensor], knot: Knot, x: Tensor
) -> tuple[Tensor, Tensor]:
    """The guided x0 and w (w − 1) |ε_q − ε_p|² [n], ε = (x − α x_0)/σ."""
    good, bad = guided.pair("x0", x, knot.t, conditions)
    apart = (good - bad).flatten(1).to(clock(x)).square().sum(1)
    return combine(good, bad, w), apart * (w * (w - 1) * (knot.alpha / knot.sigma) ** 2)


def _step(now: _Particles, t: Knot, noise_level: float, z: Tensor, look: Look) -> _Particles:
    """A step of SDE-DPM-Solver++(2M) (Lu et al. 2022, eq. 19, with noise), and of the trapezoidal rule for log W."""
    s, strength = now.knot, noise_level**2
    h = t.half_log_snr - s.half_log_snr
    x = now.x * (t.sigma / s.sigma * math.exp(-strength * h))
    x = x - (t.alpha * math.expm1(-(1 + strength) * h)) * (now.x0 + h / 2 * now.slope)
    x = x + t.sigma * math.sqrt(-math.expm1(-2 * strength * h)) * z
    x0, rate = look(t, x)
    log_weights = now.log_weights + h / 2 * (now.rate + rate)
    return _Particles(t, x, x0, (x0 - now.x0) / h, rate, log_weights, now.ancestors)


def _resampled(now: _Particles, low: Tensor, uniform: Tensor) -> tuple[_Particles, Tensor]:
    """The particles drawn anew where ``low`` (0-d), and what that adds to the log evidence; decided on the device."""
    ordered = torch.arange(len(now.x), device=now.x.device)
    picks = torch.where(low, _systematic(now.log_weights, uniform), ordered)
    mean = _log_mean(now.log_weights)
    fresh = {name: getattr(now, name)[picks] for name in ("x", "x0", "slope", "rate", "ancestors")}
    log_weights = torch.where(low, torch.zeros_like(now.log_weights), now.log_weights)
    return replace(now, **fresh, log_weights=log_weights), torch.where(low, mean, torch.zeros_like(mean))


def _systematic(log_weights: Tensor, uniform: Tensor) -> Tensor:
    """Indices [n]: particle i as often as (n W_i) says, rounded up or down (Kitagawa 1996)."""
    n = len(log_weights)
    points = (torch.arange(n, device=log_weights.device) + uniform) / n
    return torch.searchsorted(log_weights.softmax(0).cumsum(0), points).clamp(max=n - 1)


def _effective(log_weights: Tensor) -> Tensor:
    """(Σ W)²/(n Σ W²), 0-d."""
    return torch.exp(2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)) / len(log_weights)


def _log_mean(log_weights: Tensor) -> Tensor:
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def _uniform(stream: int, draw: int, like: Tensor) -> Tensor:
    """One number from 0 to 1 [1], on ``like``'s device and in its dtype."""
    return torch.special.ndtr(normal(stream, draw, torch.zeros_like(like[:1], dtype=torch.int64), (), like.dtype))


def _check(guided: object, n: int, noise_level: float, resample_below: float, final: str) -> float:
    """ValueError where ``tilted`` cannot run; otherwise the scale."""
    if not isinstance(guided, ClassifierFree | Autoguided):
        raise ValueError(f"guided: tilted takes ClassifierFree or Autoguided, not {type(guided).__name__}")
    if guided.rule is not None or not isinstance(guided.scale, int | float):
        what = "a scale that varies" if guided.rule is None else f"rule={guided.rule}"
        raise ValueError(f"guided: {what} has no law p^(1−w) q^w: tilted takes a number as scale and no rule")
    if n < FEWEST:
        raise ValueError(f"shape: {n} particles: at least {FEWEST} are needed, and thousands for a law")
    if not 0 < noise_level < math.inf:
        raise ValueError(f"noise_level={noise_level}: it must be positive and finite; without noise copies stay copies")
    if not 0 <= resample_below <= 1:
        raise ValueError(f"resample_below={resample_below}: a share of the particles, from 0 to 1")
    if final not in _FINALS:
        raise unknown("final", final, _FINALS)
    return guided.scale


def _for_all(guided: ClassifierFree | Autoguided, conditions: Mapping[str, Any], samples: Tensor) -> dict[str, Tensor]:
    """Each condition for every particle."""
    check_conditions(guided, conditions, tilted)
    found = dict[str, Tensor]()
    for name, value in conditions.items():
        value = rows(value, samples)
        if not isinstance(value, Tensor) or value.shape[1:2] == samples.shape:
            raise ValueError(
                f"{name}: all {len(samples)} particles sample one law: give one number, or one tensor of one sample's"
                " shape, not a value for each of them"
            )
        found[name] = value
    return found


def _warn(ess: Tensor) -> None:
    least, step = (value.item() for value in ess.min(0))
    if not least >= LOW:
        warnings.warn(
            f"the effective sample size fell to {least:.1%} of the particles at step {step + 1:.0f} of {len(ess)}:"
            " a few of them stand for all; take more steps, a smaller scale, or more particles",
            WeightsWarning,
            stacklevel=5,
        )
