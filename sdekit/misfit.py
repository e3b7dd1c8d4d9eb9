r"""How far data are from what a process takes them for: the start at t_max and the blur at t_min.

Sampling starts from N(0, σ²), σ = σ(t_max), where the data pushed forward have mean α m and covariance σ² + α² S (m, S
the data's). Along a direction of mean m and variance s the samples come out wrong by two numbers, exactly so for
Gaussian data: their mean is short by α m/σ of the data's standard deviations, their standard deviation short by
the factor (1 + α² s/σ²)^{−1/2}. At the other end the noise σ/α that is left at t_min blurs the data.

Both go away for data of mean 0 and variance 1: ``data.Standardise``.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sdekit.process.base import Process

PerSample = Float[Tensor, "batch"]

MATERIAL = 0.1  # of a standard deviation
FEWEST = 16  # samples whose mean and spread are worth a warning
_FAR = 3.0  # root mean square of a feature of data that nobody standardised
_SURE = 5.0  # standard errors between the mean and what is not material


class MisfitWarning(UserWarning):
    """Data far from what the process starts from, or from what a network is good at."""


@dataclass(frozen=True)
class Misfit:
    """How far data are from standardised, for one process; each a number of the worst feature but ``blur``.

    Attributes:
        shift: α |m|/σ at t_max: by how many standard deviations of the data their mean comes out short; the part of it
            that is certain from so many samples.
        shrink: (1 + α² s/σ²)^{1/2} − 1: by how much their standard deviation does.
        rms: root mean square.
        blur: σ/α at t_min over the standard deviation of all features.
    """

    shift: float
    shrink: float
    rms: float
    blur: float

    @staticmethod
    def of(process: Process, x: Float[Tensor, "n *event"]) -> Misfit:
        """Of data x (t = 0). Reads the device.

        >>> from sdekit.process import VE
        >>> x = 8 + torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
        >>> round(Misfit.of(VE(), x).shift, 2)  # 8/50
        0.16
        """
        flat = x.detach().reshape(len(x), -1)  # scalars too
        variance, mean = torch.var_mean(flat, 0, correction=0)
        square = mean.square() - _SURE**2 * variance / len(flat)
        worst = torch.stack([square.max(), variance.max(), (mean.square() + variance).max(), variance.mean()])
        shift, spread, second, whole = worst.double().tolist()
        ratio, left = (math.exp(s * process.half_log_snr(t)) for s, t in ((1, process.t_max), (-1, process.t_min)))
        return Misfit(
            ratio * math.sqrt(max(shift, 0.0)), math.sqrt(1 + ratio**2 * spread) - 1, math.sqrt(second),
            left / math.sqrt(whole) if whole > 0 else 0.0,
        )  # fmt: skip


def warn_of_start(process: Process, samples: Float[Tensor, "n *event"]) -> None:
    """Warn where the mean of samples says that N(0, σ²) was not where to start from. Of CPU samples only: no read.

    The mean alone is looked at: what a network that was never trained returns spreads as far as it likes.
    """
    if samples.device.type != "cpu" or len(samples) < FEWEST:
        return
    largest = samples.detach().reshape(len(samples), -1).mean(0).abs().max().item()
    if not math.exp(process.half_log_snr(process.t_max)) * largest > MATERIAL:  # as good as always: one pass will do
        return
    misfit = Misfit.of(process, samples)
    if misfit.shift > MATERIAL:
        _warn(
            f"the data of this model lie far from 0: samples that start from N(0, σ²) of {type(process).__name__} have"
            f" a mean that is short by {misfit.shift:.1g} of the data's standard deviations"
        )


def warn_of_data(process: Process, x: Float[Tensor, "n *event"], name: str) -> None:
    """Warn where training data are far from standardised: for the start, for the network, or for the blur at t_min."""
    if len(x) < FEWEST:
        return
    misfit = Misfit.of(process, x)
    faults = [sentence for holds, sentence in (
        (max(misfit.shift, misfit.shrink) > MATERIAL,
         f"starting from N(0, σ²) costs {max(misfit.shift, misfit.shrink):.1g} of their standard deviations"),
        (misfit.rms > _FAR, f"a feature's root mean square is {misfit.rms:.3g}"),
        (misfit.blur > MATERIAL, f"the noise left at t_min is {misfit.blur:.1g} of their standard deviation"),
    ) if holds]  # fmt: skip
    if faults:
        _warn(f"{name}: far from standardised for {type(process).__name__} ({'; '.join(faults)})")


def _warn(text: str) -> None:
    warnings.warn(f"{text}; sdekit.data.Standardise maps data to mean 0 and variance 1 and back", MisfitWarning, 3)


def prior_error(
    process: Process, x: Float[Tensor, "batch *event"], t: float, z: Float[Tensor, "batch *event"]
) -> PerSample:
    r"""The size of log N(z; α m, σ² + α² S) − log N(z; 0, σ²) at t_max, m and S the data's as x at time t shows them.

    To first order in S: with w = (z − α m)/σ and A = α² S/σ² it is α mᵀz/σ² − α²|m|²/(2σ²) + (wᵀA w − tr A)/2. S is the
    whole covariance, off its diagonal too. To its square is added wᵀA w/n, what the mean of n samples leaves open. Of
    one sample m is taken to be x itself and S to be 0: too much by far where data are centred, of which one sample
    says nothing.
    """
    at, end = process.knot(t), process.knot(process.t_max)
    ratio, data, n = end.alpha / end.sigma, (x.detach() / at.alpha).flatten(1), len(x)
    mean = data.mean(0)
    centred = ratio * (data - mean) / math.sqrt(max(n - 1, 1))  # A is its square, but for x's own noise
    latent, shift = z.detach().flatten(1) / end.sigma, ratio * mean
    w = latent - shift
    few = data.shape[1] <= n
    products = ((w @ (centred.mT @ centred)) * w).sum(1) if few else (w @ centred.mT).square().sum(1)
    own = (ratio * at.sigma / at.alpha) ** 2 * (w.square().sum(1) - data.shape[1]) if n > 1 else 0.0
    signed = latent @ shift - 0.5 * shift.square().sum() + 0.5 * (products - centred.square().sum() - own)
    return (signed.square() + products / n).sqrt()
