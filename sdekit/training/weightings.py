r"""Weights w of the ε-loss, and what they make of a loss on any other prediction.

With ε̂ − ε = c_F (F̂ − F), c_F from ``prediction.convert``, the weight of ‖F̂ − F‖² is w c_F²: one weighting serves every
network. Which times are drawn is another choice (``times``): the mean over them is of w times what the sampler states.

In the form of Kingma & Gao 2023 (Understanding diffusion objectives), ½ ∫ w(λ') ‖ε̂ − ε‖² dλ' over the log-SNR λ'
= 2λ, it is ``importance`` times with w; ``likelihood`` is w = 1 there and the variational bound for x_0 given x_t.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from sdekit.door import door
from sdekit.names import Above, Between, check_options, lookup, options_of, parse
from sdekit.prediction import convert
from sdekit.process import Process

Weighting = Callable[[Process, Float[Tensor, "batch"]], Float[Tensor, "batch"]]


def simple(process: Process, t: Tensor) -> Tensor:
    """1: L_simple of Ho et al. 2020, eq. 14, with uniform times; the likelihood with ``importance`` times."""
    return torch.ones_like(t)


def likelihood(process: Process, t: Tensor) -> Tensor:
    """g²/σ² = −2 dλ/dt: the likelihood weighting with uniform times (Song et al. 2021, ScoreFlow, theorem 1)."""
    return process.diffusion(t) ** 2 / process.sigma(t) ** 2


def edm(process: Process, t: Tensor, *, sigma_data: Annotated[float, Above(0)] = 0.5) -> Tensor:
    """(κ² + σ_d²)/σ_d², κ = σ/α: (κ² + σ_d²)/(κ σ_d)² on the x_0-loss of Karras et al. 2022, table 1."""
    return 1 + torch.exp(-2 * process.half_log_snr(t)) / sigma_data**2


def min_snr(process: Process, t: Tensor, *, gamma: Annotated[float, Above(0)] = 5.0) -> Tensor:
    """min(SNR, γ)/SNR: min(SNR, γ) on the x_0-loss (Hang et al. 2023)."""
    return (gamma * torch.exp(-2 * process.half_log_snr(t))).clamp(max=1)


def p2(
    process: Process,
    t: Tensor,
    *,
    gamma: Annotated[float, Between(0, 10)] = 1.0,
    k: Annotated[float, Above(0)] = 1.0,
) -> Tensor:
    """(k + SNR)^−γ (Choi et al. 2022)."""
    return (k + torch.exp(2 * process.half_log_snr(t))) ** -gamma


def sigmoid(process: Process, t: Tensor, *, bias: Annotated[float, Between(-20, 20)] = 2.0) -> Tensor:
    """sigmoid(b − 2λ), for ``importance`` times (Kingma & Gao 2023, VDM++)."""
    return torch.sigmoid(bias - 2 * process.half_log_snr(t))


WEIGHTINGS: dict[str, Weighting] = {
    "simple": simple,
    "likelihood": likelihood,
    "edm": edm,
    "min-snr": min_snr,
    "p2": p2,
    "sigmoid": sigmoid,
}


@door
def weighting(spec: str) -> Weighting:
    """The weight of the ε-loss of that name, with options as in ``"min-snr(gamma=1)"``.

    Raises ValueError for an unknown name, option or value.

    >>> from sdekit.process import VE
    >>> weighting("min-snr(gamma=1)")(VE(0.1, 10.0), torch.tensor([0.25, 0.5]))
    tensor([0.1000, 1.0000])
    """
    name, options = parse(spec)
    function = lookup("weighting", name, WEIGHTINGS)
    check_options(name, options_of(function), options)
    return partial(function, **options) if options else function


def of_prediction(weight: Weighting, predicts: str, process: Process, t: Tensor) -> Tensor:
    """w c_F²: the weight of the squared error of what the network predicts.

    >>> from sdekit.process import VE
    >>> of_prediction(simple, "x0", VE(0.1, 10.0), torch.tensor([0.75]))  # 1/κ², κ = √10
    tensor([0.1000])
    """
    _, c_F = convert(predicts, "eps", process, t)  # noqa: N806
    return weight(process, t) * c_F**2
