r"""Stochastic interpolants: from any law to any other, by an ODE, or by an SDE of any noise level.

    x_t = α(t) x_0 + β(t) x_1 + γ(t) z,   z ~ N(0, I),   α(0) = β(1) = 1,   α(1) = β(0) = γ(0) = γ(1) = 0

between pairs (x_0, x_1) of any coupling (Albergo, Boffi & Vanden-Eijnden 2023, Stochastic interpolants).
With b(x, t) = E[α' x_0 + β' x_1 + γ' z | x_t = x] the law of x_t follows dx = b dt, and with its score
s = −η/γ, η(x, t) = E[z | x_t = x], also, at any ε(t) ≥ 0,

    dx = (b + ε s) dt + √(2ε) dW        from 0 to 1,
    dx = (b − ε s) dt + √(2ε) dW̄        from 1 to 0

(signs for data at t = 0, as in the whole package; a test holds both to the marginals). b and η are what networks
learn, by ``interpolant_losses``; pairs of a batch are coupled by ``training.COUPLINGS``. With x_1 normal and γ = 0 this
is a ``Process``, to which all its solvers apply: ``linear`` without γ is ``Flow``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torchdiffeq
from jaxtyping import Float
from torch import Tensor

from sdekit import noise
from sdekit.door import Count, Network, Rows, Seed, Tolerance, door
from sdekit.names import Between, lookup
from sdekit.process import match

Times = Float[Tensor, "batch"]
Curve = Callable[[Tensor], Tensor]
States = Float[Tensor, "_ *_"]


@door
@dataclass(frozen=True)
class Interpolant:
    """α, β and γ as differentiable functions of t in [0, 1].

    >>> half = torch.tensor([0.5])
    >>> linear().between(torch.zeros(1, 2), torch.ones(1, 2), half, torch.zeros(1, 2))
    tensor([[0.5000, 0.5000]])
    """

    alpha: Curve
    beta: Curve
    gamma: Curve

    def between(self, x0: States, x1: States, t: Times, z: States) -> States:
        """x_t of each row."""
        a, b, c = (match(curve(t), x0) for curve in (self.alpha, self.beta, self.gamma))
        return a * x0 + b * x1 + c * z

    def rate(self, x0: States, x1: States, t: Times, z: States) -> States:
        """α' x_0 + β' x_1 + γ' z of each row: what b is the mean of."""
        a, b, c = (match(slope(curve, t), x0) for curve in (self.alpha, self.beta, self.gamma))
        return a * x0 + b * x1 + c * z


def slope(curve: Curve, t: Tensor) -> Tensor:
    """The curve's derivative, by autograd.

    >>> slope(torch.sin, torch.zeros(2))
    tensor([1., 1.])
    """
    with torch.enable_grad():
        at = t.detach().requires_grad_()
        value = curve(at)
        if not value.requires_grad:  # constant
            return torch.zeros_like(t)
        return torch.autograd.grad(value.sum(), at)[0]


def _bump(scale: float) -> Curve:
    if not scale:
        return torch.zeros_like
    # the root has no derivative at the ends: kept off them
    return lambda t: scale * (t * (1 - t)).clamp(min=1e-12).sqrt()


@door
def linear(gamma: Annotated[float, Between(0, 100)] = 1.0) -> Interpolant:
    """α = 1 − t, β = t, γ = g √(t (1 − t)): a Brownian bridge of variance g² between the pairs.

    >>> linear(gamma=0.0).rate(torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([0.3]), torch.zeros(1, 1))
    tensor([[1.]])
    """
    return Interpolant(lambda t: 1 - t, lambda t: t + 0, _bump(gamma))


@door
def trigonometric(gamma: Annotated[float, Between(0, 100)] = 1.0) -> Interpolant:
    """α = cos(π t/2), β = sin(π t/2), γ = g √(t (1 − t)): of constant variance between laws of equal variance.

    >>> curve = trigonometric(gamma=0.0)
    >>> round(curve.alpha(torch.tensor(0.5)).item(), 4)
    0.7071
    """
    return Interpolant(lambda t: torch.cos(t * (math.pi / 2)), lambda t: torch.sin(t * (math.pi / 2)), _bump(gamma))


INTERPOLANTS: dict[str, Callable[..., Interpolant]] = {"linear": linear, "trigonometric": trigonometric}


@door
def interpolant(name: str, gamma: Annotated[float, Between(0, 100)] = 1.0) -> Interpolant:
    """The interpolant of that name in ``INTERPOLANTS``. Raises ValueError for an unknown one.

    >>> interpolant("linear", gamma=0.5).gamma(torch.tensor(0.5))
    tensor(0.2500)
    """
    return lookup("interpolant", name, INTERPOLANTS)(gamma)


@door
def interpolant_losses(
    curve: Interpolant, velocity: Network, denoiser: Network | None, x0: Annotated[States, Rows()],
    x1: States, t: Times, z: States,
) -> tuple[Times, Times]:  # fmt: skip
    """‖b(x_t, t) − (α' x_0 + β' x_1 + γ' z)‖²/d and ‖η(x_t, t) − z‖²/d of each row; the latter 0 without a denoiser.

    Both are least at the b and η of the ODE and the SDE. Where γ is 0, at both ends, γ' is infinite:
    draw t inside. Raises ValueError for shapes that do not fit.

    >>> still = lambda x, t: torch.zeros_like(x)
    >>> zero, one, half = torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([0.5])
    >>> [loss.item() for loss in interpolant_losses(linear(), still, still, zero, one, half, one)]
    [1.0, 1.0]
    """
    if not (x0.shape == x1.shape == z.shape and t.shape == x0.shape[:1]):
        shapes = [list(one.shape) for one in (x0, x1, t, z)]
        raise ValueError(f"x0, x1, t, z: shapes {shapes}: x1 and z need that of x0, and t one time a row")
    x = curve.between(x0, x1, t, z)
    moved = (velocity(x, t) - curve.rate(x0, x1, t, z)).square().flatten(1).mean(1)
    if denoiser is None:
        return moved, torch.zeros_like(moved)
    return moved, (denoiser(x, t) - z).square().flatten(1).mean(1)


@door
@torch.no_grad()
def follow(
    velocity: Network,
    x: Annotated[States, Rows()],
    start: Annotated[float, Between(0, 1)] = 1.0,
    end: Annotated[float, Between(0, 1)] = 0.0,
    rtol: Tolerance = 1e-5,
    atol: Tolerance = 1e-5,
) -> States:
    """dx = b dt from ``start`` to ``end``, either way, by dopri5 of torchdiffeq.

    >>> follow(lambda x, t: -x, torch.ones(1, 2), 0.0, 1.0)
    tensor([[0.3679, 0.3679]])
    """
    times = torch.tensor([start, end], dtype=x.dtype, device=x.device)

    def rate(t: Tensor, x: Tensor) -> Tensor:
        return velocity(x, t.expand(len(x)))

    exact = {"step_t": times}  # it would step beyond the end, where there is no velocity
    path: Any = torchdiffeq.odeint(rate, x, times, rtol=rtol, atol=atol, options=exact)
    return path[-1]


@door
@torch.no_grad()
def diffuse(
    curve: Interpolant,
    velocity: Network,
    denoiser: Network,
    x: Annotated[States, Rows()],
    noise_level: Callable[[Tensor], Tensor],
    start: Annotated[float, Between(0, 1)] = 1.0,
    end: Annotated[float, Between(0, 1)] = 0.0,
    steps: Count = 100,
    seed: Seed = 0,
) -> States:
    """The SDE with ε(t) = ``noise_level`` from ``start`` to ``end``, either way: Euler–Maruyama in equal steps.

    Each step's coefficients are those of its middle, so that the ends, where s is infinite, are not met. ε may be any
    function of t that is at least 0; where it is of the order of γ² towards the ends, ε s stays small there.

    >>> curve = linear()
    >>> b, eta = lambda x, t: -x, lambda x, t: torch.zeros_like(x)
    >>> diffuse(curve, b, eta, torch.ones(1, 2), lambda t: 0 * t, 0.0, 1.0, steps=1000)
    tensor([[0.3677, 0.3677]])
    """
    step, rows = (end - start) / steps, torch.arange(len(x), device=x.device)
    for i in range(steps):
        t = x.new_full((len(x),), start + (i + 0.5) * step)
        level, gamma = noise_level(t), curve.gamma(t)
        pull = match(torch.where(level > 0, level / gamma, torch.zeros_like(t)), x)  # ε s = −(ε/γ) η
        drift = velocity(x, t) - math.copysign(1.0, step) * pull * denoiser(x, t)
        z = noise.normal(seed, i + 1, rows, x.shape[1:], x.dtype)
        x = x + step * drift + match((2 * level * abs(step)).sqrt(), x) * z
    return x


__all__ = [
    "INTERPOLANTS", "Interpolant", "diffuse", "follow", "interpolant", "interpolant_losses", "linear",
    "trigonometric",
]  # fmt: skip
