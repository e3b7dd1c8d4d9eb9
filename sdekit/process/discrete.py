"""A trained DDPM's table of β as a continuous process."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate

from sdekit.door import Evaluations, door
from sdekit.elementwise import LinearTable, Scalar, softplus
from sdekit.process.vp import VariancePreserving


def _linear_betas(steps: int) -> tuple[float, ...]:
    if steps < 2:
        raise ValueError(f"steps={steps}: a table of betas needs at least 2")
    scale = 1000 / steps
    low, high = 1e-4 * scale, 0.02 * scale
    return tuple(low + (high - low) * n / (steps - 1) for n in range(steps))


@lru_cache(64)
def _one(betas: tuple[float, ...]) -> tuple[float, ...]:
    """One object for all equal tables: caches compare processes at every call, which entry by entry takes 10 µs."""
    return betas


@door
@dataclass(frozen=True)
class DiscreteVP(VariancePreserving):
    """A trained DDPM's table β_0 … β_{T−1} as a continuous process (Ho et al. 2020, eq. 4).

    Entry n is the time t = (n + 1)/T, exactly; between entries log α is linear, so that β(t) is
    constant there and the transitions between entries are the table's own. ``time="index"`` of
    ``ScoreModel`` tells the network n = tT − 1. The default table is DDPM's: linear, 1e-4 … 0.02, T = 1000.

    Raises ValueError for an empty table or an entry outside (0, 1).

    >>> process = DiscreteVP([0.1, 0.2])
    >>> round(process.alpha(0.5) ** 2, 12), round(process.alpha(1.0) ** 2, 12)
    (0.9, 0.72)
    """

    betas: Iterable[float] = field(default_factory=lambda: _linear_betas(1000), repr=False)
    t_min: float = field(init=False)
    t_max: float = field(init=False, default=1.0)
    _log_alpha: LinearTable = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        betas = tuple(float(beta) for beta in self.betas)
        if len(betas) < 2:
            raise ValueError(f"betas: {len(betas)} given, at least 2 are needed")
        for n, beta in enumerate(betas):
            if not 0 < beta < 1:
                raise ValueError(f"betas[{n}] = {beta}: every beta must lie in (0, 1)")
        log_alphas = accumulate((0.5 * math.log1p(-beta) for beta in betas), initial=0.0)
        object.__setattr__(self, "betas", _one(betas))
        object.__setattr__(self, "t_min", 1 / len(betas))
        object.__setattr__(self, "_log_alpha", LinearTable(tuple(log_alphas)))

    def __hash__(self) -> int:  # the whole table's hash would cost more than a step of a solver
        return hash((DiscreteVP, self.steps, self._log_alpha.values[-1]))

    @classmethod
    @door
    def linear(cls, steps: Evaluations = 1000) -> DiscreteVP:
        """DDPM's linear table, 1e-4 … 0.02 at T = 1000, times 1000/T for other lengths.

        >>> DiscreteVP.linear(100).steps
        100
        """
        return cls(_linear_betas(steps))

    @property
    def steps(self) -> int:
        """T, the length of the table."""
        return len(self._log_alpha.values) - 1

    def log_alpha(self, t: Scalar) -> Scalar:
        return self._log_alpha(t * self.steps)

    def drift_rate(self, t: Scalar) -> Scalar:
        return self._log_alpha.slope(t * self.steps) * self.steps

    def t_of_half_log_snr(self, half_log_snr: Scalar) -> Scalar:
        return self._log_alpha.inverse(-0.5 * softplus(-2 * half_log_snr)) / self.steps
