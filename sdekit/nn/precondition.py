r"""EDM's preconditioning of a network (Karras et al. 2022, section 5 and table 1), under any process.

With x̂ = x/α and κ = σ/α, D(x̂, κ) = c_skip x̂ + c_out net(c_in x̂, …),

    c_skip = σ_d²/(κ² + σ_d²),   c_out = κ σ_d/√(κ² + σ_d²),   c_in = 1/√(κ² + σ_d²):

for data of standard deviation σ_d what enters the network and what it should give both have unit variance at every
time. The weight (κ² + σ_d²)/(κ σ_d)², ``weights="edm(sigma_data=σ_d)"`` with ``times="log-normal"``, makes the loss of
all times equal to begin with, and is the paper's training.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sdekit.door import Positive, door
from sdekit.model import ScoreModel
from sdekit.process import Process, match


class Preconditioned(nn.Module):
    """The denoiser x_0 = c_skip x/α + c_out net(c_in x/α, −log κ), told t itself; see ``preconditioned``."""

    def __init__(self, net: nn.Module, process: Process, sigma_data: float) -> None:
        super().__init__()
        self.net, self.process, self.sigma_data = net, process, sigma_data

    def forward(self, x: Float[Tensor, "batch *event"], t: Float[Tensor, "batch"], **conditions: Any) -> Tensor:
        level, alpha = self.process.half_log_snr(t), self.process.alpha(t)
        kappa, s = torch.exp(-level), self.sigma_data
        norm = (kappa**2 + s**2).sqrt()
        scaled = match(1 / (alpha * norm), x) * x
        skip, out = match(s**2 / norm, x), match(kappa * s / norm, x)
        return skip * scaled + out * self.net(scaled, level, **conditions)


@door
def preconditioned(net: nn.Module, process: Process, sigma_data: Positive = 1.0) -> ScoreModel:
    """A model whose network is EDM's denoiser around ``net``, which is told half-log-SNR.

    Args:
        net: ``net(x, half_log_snr, **conditions)``, raw: for it to give 0 is the best linear denoiser.
        process: any.
        sigma_data: the data's standard deviation; 0.5 in the paper, 1 for standardised data.

    >>> from sdekit.process import VP
    >>> class Zero(nn.Module):
    ...     def forward(self, x, level):
    ...         return torch.zeros_like(x)
    >>> model = preconditioned(Zero(), VP())
    >>> x, t = torch.ones(1, 2), 0.3
    >>> torch.allclose(model.x0(x, t), VP().alpha(t) * x)  # of N(0, 1): α x, since α² + σ² = 1
    True
    """
    return ScoreModel(Preconditioned(net, process, sigma_data), process, "x0", "t")
