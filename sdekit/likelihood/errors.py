r"""Errors of means over few random draws, such that ±2 of them is a 95% interval.

A mean of n independent estimates has the standard error s/√n, but ±2 s/√n holds the truth in less than 95% of cases:
s is itself estimated, and where the estimates are skewed it is small just when the mean is off. The half-width that
holds it in 95% is, to order 1/n (Hall 1992, The Bootstrap and Edgeworth Expansion, section 2.6: the studentised
mean's q_2; its normal term is replaced by Student's t, exact for normal estimates),

    t_{0.975, n−1} s/√n · [1 + γ² (z⁴ + 2z² − 3)/(18 n)],   z = 1.96, γ the estimates' skewness,

and half of it is what ``StdErr`` gives. The kurtosis's term, −κ (z² − 3)/(12 n), is left out: its factor is a
fifteenth of the skewness's. What is left out is of order 1/n²: with fewer than 8 estimates of a skewed distribution
the intervals still hold the truth too seldom.
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
        """Half the half-width of a 95% interval."""
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
    """What each source adds to the error of ``nats``, in nats; NaN where one draw does not tell, 0 where there is none.

    ±2 of the random parts, ``probes`` and ``dequantisation``, is a 95% interval.

    Attributes:
        estimates: spread of the trace estimates of the probes.
        solver: an estimate of the ODE solver's error: each step's embedded error, weighted with what it changes in
            the log density, absolute values added up: its size, too small at tolerances looser than 1e-5. NaN for
            methods of torchdiffeq.
        draws: spread of the dequantisation's draws.
    """

    estimates: Spread
    solver: PerSample
    draws: Spread

    @property
    def probes(self) -> PerSample:
        """Error of the trace estimates [batch], NaN with one probe."""
        return self.estimates.calibrated

    @property
    def dequantisation(self) -> PerSample:
        """Error over the dequantisation's draws [batch], NaN with one draw."""
        return self.draws.calibrated

    @property
    def total(self) -> PerSample:
        """Root of the sum of squares, of those that are known."""
        parts = torch.stack([self.probes, self.solver, self.dequantisation])
        return parts.nan_to_num(0.0).square().sum(0).sqrt()


def spread_of(estimates: Float[Tensor, "batch n"]) -> Spread:
    """The spread of n independent estimates of each sample.

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
    return Spread(std / math.sqrt(n), student / 2 * (1 + skewed) - 1)


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
