"""The singular value decomposition of a linear operator, and what is solved with it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit.door import record
from sdekit.inverse.operators import Operator

LARGEST = 1 << 26
"""Entries of a matrix beyond which it is not decomposed."""


@record  # empty where nothing is measured
@dataclass(frozen=True, eq=False)
class Spectrum:
    """A = U diag(s) Vᵀ on flattened samples: u [m, k], s [k] above 0, v [D, k], float64.

    >>> from sdekit.inverse import Mask
    >>> Spectrum.of(Mask(torch.tensor([True, False, True]))).s
    tensor([1., 1.], dtype=torch.float64)
    """

    u: Tensor
    s: Tensor
    v: Tensor

    @staticmethod
    def of(operator: Operator, device: torch.device | str = "cpu") -> Spectrum:
        """The decomposition, on ``device``. Raises ValueError where A is not linear, or too large for a matrix."""
        size = math.prod(operator.event) * math.prod(operator.measured)
        if size > LARGEST:
            raise ValueError(
                f"operator: its matrix has {size} entries, more than {LARGEST}: this method decomposes it; mmps and dps"
                " do not"
            )
        matrix = operator.matrix()
        if matrix.numel() == 0:
            return Spectrum(*(torch.zeros(*shape, dtype=torch.float64, device=device) for shape in _empty(matrix)))
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        rank = int((s > s[0] * max(matrix.shape) * torch.finfo(s.dtype).eps).sum())
        return Spectrum(*(part.to(device) for part in (u[:, :rank], s[:rank], vh[:rank].T)))

    def gain(self, residual: Tensor, variance: float | Tensor, noise_variance: float, event: torch.Size) -> Tensor:
        """c Aᵀ (c A Aᵀ + σ_y² I)⁻¹ residual, with c = ``variance``; the pseudo-inverse A⁺ for σ_y = 0. [batch, *event].

        ``variance`` is a number, or [batch] numbers shaped to broadcast against x.
        """
        u, s, v = (part.to(residual.dtype) for part in (self.u, self.s, self.v))
        c = variance.reshape(-1, 1) if isinstance(variance, Tensor) else variance
        factor = s * c / (c * s.square() + noise_variance)
        return ((residual.flatten(1) @ u) * factor @ v.T).reshape(-1, *event)

    def log_density(self, residual: Tensor, variance: float | Tensor, noise_variance: float) -> Tensor:
        """log N(residual; 0, c A Aᵀ + σ_y² I) [batch], c = ``variance``, σ_y above 0."""
        flat = residual.flatten(1)
        u, s = self.u.to(flat.dtype), self.s.to(flat.dtype)
        c = variance.reshape(-1, 1) if isinstance(variance, Tensor) else variance
        inside = flat @ u
        outside = flat - inside @ u.T  # what A cannot reach, which has the noise alone
        total = c * s.square() + noise_variance
        squares = (inside.square() / total + total.log()).sum(1) + outside.square().sum(1) / noise_variance
        left = flat.shape[1] - len(s)
        return -0.5 * (squares + left * math.log(noise_variance) + flat.shape[1] * math.log(2 * math.pi))


def _empty(matrix: Tensor) -> tuple[tuple[int, ...], ...]:
    """Shapes of u, s and v of a matrix without rows."""
    return (matrix.shape[0], 0), (0,), (matrix.shape[1], 0)
