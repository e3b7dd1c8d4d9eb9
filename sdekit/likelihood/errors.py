r"""Errors of means over few random draws, such that ±2 of them is a 95% interval.

A mean of n independent estimates has the standard error s/√n, but ±2 s/√n holds the truth in less than 95% of cases:
s is itself estimated, and where the estimates are skewed it is small just when the mean is off. The half-width that
holds it in 95% is, to order 1/n (Hall 1992, The Bootstrap and Edgeworth Expansion, section 2.6: the studentised
mean's q_2; its normal term is replaced by Student's t, exact for normal estimates),

    t_{0.975, n−1} s/√n · [1 + γ² (z⁴ + 2z² − 3)/(18 n)],   z = 1.96, γ the estimates' skewness,

and half of it is what ``StdErr`` gives. The kurtosis's term, −κ (z² − 3)/(12 n), is left out: its factor is a
fifteenth of the skewness's. What is left out is of order 1/n²: with fewer than 8 estimates of a skewed distribution
the intervals still hold the truth too seldom.

From few probes of few dimensions no formula makes an interval: in D = 2 n Rademacher probes all agree in 2^{1−n} of
cases and show no spread. ``fewest`` says from how many on the interval was measured to hold; below it the
error is unknown, and so is a total with an unknown part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.special import stdtrit
from torch import Tensor

PerSample = Float[Tensor, "batch"]

_Z = 1.959964


@dataclass(frozen=True)
class Spread:
    """What the spread of n estimates says about the error of their mean [batch]; NaN where n = 1.

    Attributes:
        plain: s/√n, whose square is unbiased: what to average over samples.
        widening: the half-width above over 2 s/√n, less 1; it falls as 1/n.
    """

    plain: PerSample
    widening: PerSample

    @property
    def calibrated(self) -> PerSample:
        """Half the half-width of a 95% interval; NaN where none is known to hold."""
        return self.plain * (1 + self.widening)

    @staticmethod
    def join(parts: Sequence[Spread], share: Float[Tensor, "parts batch"]) -> Spread:
        """Of the sum of independent means with these weights; the widenings as Welch and Satterthwaite have 1/n."""
        squares = (share * torch.stack([part.plain for part in parts])).square()
        weights = squares / squares.sum(0).clamp(min=torch.finfo(squares.dtype).tiny)
        widening = (weights.square() * torch.stack([part.widening for part in parts])).sum(0)
        return Spread(squares.sum(0).sqrt(), widening)


@dataclass(frozen=True)
class StdErr:
    """What each source adds to the error of ``nats``, in nats; NaN where it is not known, 0 where there is none.

    ±2 of the random parts, ``probes`` and ``dequantisation``, is a 95% interval.

    Attributes:
        estimates: spread of the trace estimates of the probes.
        solver: an estimate of the ODE solver's error: each step's embedded error, weighted with what it changes in
            the log density, absolute values added up: its size, too small at tolerances looser than 1e-5. NaN for
            methods that have no such estimate: torchdiffeq's, and the solvers of the registry.
        draws: spread of the dequantisation's draws.
        prior: how far N(0, σ²) misses the data's own density at t_max (``misfit.prior_error``), its size; 0 where
            ``prior=`` was given, which is taken at its word.
    """

    estimates: Spread
    solver: PerSample
    draws: Spread
    prior: PerSample

    @property
    def probes(self) -> PerSample:
        """Error of the trace estimates [batch]; NaN of fewer than ``fewest``."""
        return self.estimates.calibrated

    @property
    def dequantisation(self) -> PerSample:
        """Error over the dequantisation's draws [batch], NaN with one draw."""
        return self.draws.calibrated

    @property
    def parts(self) -> dict[str, PerSample]:
        """The four parts by name."""
        return {name: getattr(self, name) for name in UNKNOWN}

    @property
    def total(self) -> PerSample:
        """Root of the sum of squares [batch]; NaN where one part is."""
        return torch.stack([*self.parts.values()]).square().sum(0).sqrt()

    def __repr__(self) -> str:
        named = {**self.parts, "total": self.total}
        shown = [f"{name} {_size(part) or 'unknown' + _because(name)}" for name, part in named.items()]
        return f"StdErr({', '.join(shown)}; nats, root mean square of {len(self.solver)})"


UNKNOWN = {
    "probes": "too few probes, or estimates that share them",
    "solver": "the method has no estimate of its own",
    "dequantisation": "one draw does not tell",
    "prior": "the data's moments are not finite",
}
"""The parts of an error, and why one may be unknown."""


def _because(name: str) -> str:
    return f" ({UNKNOWN[name]})" if name in UNKNOWN else ""


def _size(part: PerSample) -> str:
    """Root mean square over the batch in three digits; empty where it is unknown."""
    value = part.detach().double().square().mean().sqrt().item()
    return "" if math.isnan(value) else f"{value:.3g}"


def fewest(method: str, distribution: str, size: int) -> float:
    """Estimates from which on ±2 ``StdErr.probes`` was measured to hold the truth in 93% of cases or more.

    4; in few dimensions, where estimates take few values or are skewed, more than the exact trace costs: 12 in D < 4,
    24 of Gaussian probes in D < 8. For ``xtrace`` no number: its estimates share their probes, and ±2 of their spread
    holds from 57% to 98%.

    >>> fewest("hutchinson", "rademacher", 64), fewest("hutchinson", "rademacher", 2)
    (4, 12)
    """
    if method == "xtrace":
        return math.inf
    below, enough = _FEW_DIMENSIONS.get(distribution, (4, 12))
    return enough if size < below else 4


_FEW_DIMENSIONS = {"gaussian": (8, 24)}


def spread_of(estimates: Float[Tensor, "batch n"], least: float = 2) -> Spread:
    """The spread of n independent estimates of each sample; from fewer than ``least``, without an interval.

    >>> two = spread_of(torch.tensor([[1.0, 3.0]]))
    >>> two.plain, two.calibrated * 2  # t_{0.975, 1} = 12.7
    (tensor([1.]), tensor([12.7062]))
    """
    n = estimates.shape[1]
    if n == 1:
        unknown = torch.full_like(estimates[:, 0], math.nan)
        return Spread(unknown, unknown)
    std, student = estimates.std(1), float(stdtrit(n - 1, 0.975))
    skewed = _skewness(estimates).square() * (_Z**4 + 2 * _Z**2 - 3) / (18 * n)
    widening = student / 2 * (1 + skewed) - 1
    return Spread(std / math.sqrt(n), widening if n >= least else torch.full_like(widening, math.nan))


def _skewness(estimates: Float[Tensor, "batch n"]) -> PerSample:
    """By the jackknife (Quenouille 1956): the plain one is biased towards 0, of 16 estimates by a third."""
    n = estimates.shape[1]
    centred = estimates - estimates.mean(1, keepdim=True)
    powers = torch.stack([centred, centred.square(), centred.pow(3)])  # of all estimates, and with one left out
    sums = powers.sum(2, keepdim=True)
    one, two, three = torch.cat([sums / n, (sums - powers) / (n - 1)], 2)
    variance = (two - one.square()).clamp(min=1e-6 * two[:, :1] + torch.finfo(two.dtype).tiny)
    found = (three - 3 * one * two + 2 * one.pow(3)) / variance.pow(1.5)
    return n * found[:, 0] - (n - 1) * found[:, 1:].mean(1)
