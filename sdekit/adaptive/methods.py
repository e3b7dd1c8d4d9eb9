r"""One attempted step of each adaptive method: two results of different order, whose difference estimates the error.

A method integrates the variable u, which grows from noise to data: λ for the exponential methods, −t for the SDE's.
Every coefficient is a [batch] tensor of the process's own formulas, in float64, cast to the state's dtype at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.elementwise import lanewise
from sdekit.process import Process, match

Evaluate = Callable[[Tensor, Tensor], Tensor]
"""x [batch, *event], t [batch] → ε."""
Attempt = Callable[["Step", Evaluate], tuple[Tensor, Tensor]]
"""One attempted step → x at its end, of the lower and of the higher order."""


@dataclass(frozen=True)
class Variable:
    """An integration variable u that grows from noise to data: its name, u(t) and t(u)."""

    name: str
    of_t: Callable[[Process, Any], Any]
    to_t: Callable[[Process, Any], Any]


HALF_LOG_SNR = Variable(
    "half_log_snr", lambda process, t: process.half_log_snr(t), lambda process, u: process.t_of_half_log_snr(u)
)
MINUS_TIME = Variable("t", lambda process, t: -t, lambda process, u: -u)


@dataclass(frozen=True)
class Knots:
    """What the steps need at one u, each [batch] in u's dtype; λ is ``half_log_snr``."""

    t: Tensor
    log_alpha: Tensor
    sigma: Tensor
    half_log_snr: Tensor
    drift_rate: Tensor
    diffusion: Tensor


@dataclass(frozen=True)
class Field:
    """A process seen along u; times stay within [low, high]."""

    process: Process
    variable: Variable
    low: float
    high: float

    def at(self, *u: Tensor) -> list[Knots]:
        """The knots at each of several u [batch]."""
        values = lanewise(self._values, torch.stack(u))
        return [Knots(*values[:, i].unbind()) for i in range(len(u))]

    def _values(self, u: Tensor) -> Tensor:
        process = self.process
        t = self.variable.to_t(process, u).clamp(self.low, self.high)
        log_alpha, log_sigma = process.log_alpha(t), process.log_sigma(t)
        rest = (log_alpha - log_sigma, process.drift_rate(t), process.diffusion(t))
        return torch.stack([value.expand(t.shape) for value in (t, log_alpha, log_sigma.exp(), *rest)])


@dataclass(frozen=True)
class Step:
    """A step to try: x and ε there [batch, *event], h in u [batch], unit noise z; knots at its start, nodes and end."""

    x: Tensor
    F: Tensor
    h: Tensor
    z: Tensor
    knots: list[Knots]


def _times(value: Tensor, x: Tensor) -> Tensor:
    """value [batch] times x, in x's dtype."""
    return match(value.to(x.dtype), x) * x


def _first_order(step: Step, to: Knots) -> Tensor:
    """DPM-Solver-1 from the step's start: (α_t/α_s) x − σ_t (e^h − 1) ε (Lu et al. 2022, eq. 3.7)."""
    s = step.knots[0]
    growth = torch.expm1(to.half_log_snr - s.half_log_snr)
    return _times((to.log_alpha - s.log_alpha).exp(), step.x) - _times(to.sigma * growth, step.F)


def dpm_solver_12(step: Step, evaluate: Evaluate) -> tuple[Tensor, Tensor]:
    """DPM-Solver-1, and -2 with r_1 = 1/2 (Lu et al. 2022, algorithm 1)."""
    _, middle, t = step.knots
    low = _first_order(step, t)
    change = evaluate(_first_order(step, middle), middle.t) - step.F
    return low, low - _times(t.sigma * step.h.expm1(), change)


def dpm_solver_23(step: Step, evaluate: Evaluate) -> tuple[Tensor, Tensor]:
    """DPM-Solver-2 with r_1 = 1/3, and -3 with r_1 = 1/3, r_2 = 2/3 (Lu et al. 2022, appendix B and algorithm 2)."""
    _, first, second, t = step.knots
    constant = _first_order(step, t)
    change = evaluate(_first_order(step, first), first.t) - step.F
    low = constant - _times(1.5 * t.sigma * step.h.expm1(), change)
    inner = step.h * (2 / 3)
    moved = _first_order(step, second) - _times(2 * second.sigma * (inner.expm1() / inner - 1), change)
    change = evaluate(moved, second.t) - step.F
    return low, constant - _times(1.5 * t.sigma * (step.h.expm1() / step.h - 1), change)


def improved_euler(step: Step, evaluate: Evaluate) -> tuple[Tensor, Tensor]:
    """Euler–Maruyama and stochastic improved Euler on the reverse SDE (Jolicoeur-Martineau et al. 2021, algorithm 1).

    x' = x + K(x, s), x'' = x + ½(K(x, s) + K(x', t)), K(y, t) = −h (f y + (g²/σ) ε(y, t)) + √h g z, one z for both.
    """
    s, t = step.knots

    def change(at: Knots, y: Tensor, eps: Tensor) -> Tensor:
        drift = _times(step.h * at.drift_rate, y) + _times(step.h * at.diffusion * at.diffusion / at.sigma, eps)
        return _times(step.h.sqrt() * at.diffusion, step.z) - drift

    first = change(s, step.x, step.F)
    low = step.x + first
    return low, step.x + (first + change(t, low, evaluate(low, t.t))) / 2


@dataclass(frozen=True)
class Method:
    """An adaptive method.

    Attributes:
        attempt: one attempted step.
        variable: what it steps in.
        nodes: where within a step it wants knots, as fractions of h.
        evaluations: network evaluations of an attempt; the first is kept when the step is rejected.
        exponent: r of h ← θ h E^{−r}.
        first_step: the first attempt's h, in u.
        stochastic: whether it draws noise.
        reference: paper and place in it.
    """

    attempt: Attempt
    variable: Variable
    nodes: tuple[float, ...]
    evaluations: int
    exponent: float
    first_step: float
    stochastic: bool
    reference: str


_LU = "Lu et al. 2022 (DPM-Solver), appendix C"
_JM = "Jolicoeur-Martineau et al. 2021 (Gotta Go Fast), algorithm 1"

METHODS: dict[str, Method] = {
    "dpm-solver-12": Method(dpm_solver_12, HALF_LOG_SNR, (1 / 2,), 2, 1 / 2, 0.05, False, _LU),
    "dpm-solver-23": Method(dpm_solver_23, HALF_LOG_SNR, (1 / 3, 2 / 3), 3, 1 / 3, 0.05, False, _LU),
    "sde": Method(improved_euler, MINUS_TIME, (), 2, 0.9, 0.01, True, _JM),
}
"""What ``sample_adaptive`` knows; one of one's own is one more entry."""


@dataclass(frozen=True)
class Control:
    """h ← θ h E^{−a r} E_prev^{b r} after an accepted step and θ h E^{−r} after a rejected one, θ = 0.9.

    E is the error in units of the tolerance, E_prev that of the accepted step before; factors stay in [low, high].
    """

    proportional: float
    integral: float
    low: float
    high: float

    def factor(self, error: Tensor, before: Tensor, exponent: float) -> Tensor:
        """h's factor [batch]."""
        # exp and log round alike at every place of a vector, pow does not
        log_error, log_before = error.clamp(min=1e-30).log(), before.clamp(min=1e-4).log()
        accepted = 0.9 * (exponent * (self.integral * log_before - self.proportional * log_error)).exp()
        rejected = 0.9 * (-exponent * log_error).exp()
        return torch.where(error <= 1, accepted.clamp(self.low, self.high), rejected.clamp(min=self.low, max=1.0))


CONTROLS: dict[str, Control] = {
    "i": Control(1.0, 0.0, 0.0, math.inf),  # as both papers
    "pi": Control(0.7, 0.4, 0.2, 10.0),  # Gustafsson 1991; Hairer, Nørsett & Wanner 1993, section II.4
}
