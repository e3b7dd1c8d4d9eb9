r"""Stochastic interpolants: from any law to any other, by an ODE, or by an SDE of any noise level.

    x_t = α(t) x_0 + β(t) x_1 + γ(t) z,   z ~ N(0, I),   α(0) = β(1) = 1,   α(1) = β(0) = γ(0) = γ(1) = 0

between pairs (x_0, x_1) of any coupling (Albergo, Boffi & Vanden-Eijnden 2023, Stochastic interpolants).
With b(x, t) = E[α' x_0 + β' x_1 + γ' z | x_t = x] the law of x_t follows dx = b dt, and with its score
s = −η/γ, η(x, t) = E[z | x_t = x], also, at any ε(t) ≥ 0,

    dx = (b + ε s) dt + √(2ε) dW        from 0 to 1,
    dx = (b − ε s) dt + √(2ε) dW̄        from 1 to 0

(signs for data at t = 0, as in the whole package; a test holds both to the marginals). b and η are what networks
learn, by ``interpolant_losses``; pairs of a batch are coupled by ``training.COUPLINGS``. With x_1 standard normal and
independent of x_0 this is a ``Process``, to which all solvers, densities and guidance apply: ``InterpolantProcess``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torchdiffeq
from jaxtyping import Float
from scipy.optimize import brentq
from torch import Tensor

from sdekit import noise
from sdekit.door import Count, Network, Rows, Seed, Tolerance, door
from sdekit.elementwise import Scalar, clock, exp, sqrt
from sdekit.model import evaluating
from sdekit.names import Between, lookup
from sdekit.process import Process, match

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
    t = t.detach()
    learning = torch.is_grad_enabled() and curve(t).requires_grad  # the slope then has the parameters' gradient too
    with torch.enable_grad():
        at = t.clone().requires_grad_()
        value = curve(at)
        if not value.requires_grad:  # constant
            return torch.zeros_like(t)
        return torch.autograd.grad(value.sum(), at, create_graph=learning)[0]


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
    moved = (_told("velocity", velocity, x, t) - curve.rate(x0, x1, t, z)).square().flatten(1).mean(1)
    if denoiser is None:
        return moved, torch.zeros_like(moved)
    return moved, (_told("denoiser", denoiser, x, t) - z).square().flatten(1).mean(1)


def _told(name: str, net: Network, x: Tensor, t: Tensor) -> Tensor:
    """net(x, t), in x's shape: another would be spread over the batch without a word."""
    output = net(x, t)
    if output.shape != x.shape:
        raise ValueError(
            f"{name} returned shape {list(output.shape)} for x of shape {list(x.shape)}: they must be equal"
        )
    return output


def _wide(name: str, net: Network, dtype: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
    """The network as the solvers call it: given x in ``dtype``, while times and state stay in float32 at least."""
    return lambda x, t: _told(name, net, x.to(dtype), t).to(x.dtype)


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

    b is not asked for beyond the two times. Networks run in evaluation mode. Raises ValueError where the velocity
    returns another shape than x, or the step size falls to zero.

    >>> follow(lambda x, t: -x, torch.ones(1, 2), 0.0, 1.0)
    tensor([[0.3679, 0.3679]])
    """
    if start == end:
        return x.clone()
    state, known = x.to(torch.promote_types(x.dtype, torch.float32)), _wide("velocity", velocity, x.dtype)
    times = torch.tensor([start, end], dtype=state.dtype, device=x.device)
    # without these it steps beyond the end, and looks for a first step there, where there is no velocity
    inside = {"step_t": times, "first_step": 0.01 * abs(end - start), "max_num_steps": _MOST}
    try:
        with evaluating([velocity]):
            path: Any = torchdiffeq.odeint(
                lambda t, x: known(x, t.expand(len(x))), state, times, rtol=rtol, atol=atol, options=inside
            )
    except AssertionError as error:
        raise ValueError(f"velocity: the ODE from start={start} did not get to end={end}: {error}") from None
    return path[-1].to(x.dtype)


_MOST = 100_000  # steps before a solve is given up


@door
@torch.no_grad()
def diffuse(
    curve: Interpolant,
    velocity: Network,
    denoiser: Network,
    x: Annotated[States, Rows()],
    noise_level: float | Callable[[Tensor], Tensor],
    start: Annotated[float, Between(0, 1)] = 1.0,
    end: Annotated[float, Between(0, 1)] = 0.0,
    steps: Count = 100,
    seed: Seed = 0,
) -> States:
    """The SDE with ε(t) = ``noise_level`` from ``start`` to ``end``, either way: Euler–Maruyama in equal steps.

    Each step's coefficients are those of its middle, so that the ends, where s is infinite, are not met. ε may be a
    number, or any function of t that is at least 0; where it is of the order of γ² towards the ends, ε s stays small
    there. Networks run in evaluation mode; the host reads nothing while they do.

    Raises ValueError where ε is negative or not finite, or is not 0 where γ is, and where a network returns another
    shape than x.

    >>> curve = linear()
    >>> b, eta = lambda x, t: -x, lambda x, t: torch.zeros_like(x)
    >>> diffuse(curve, b, eta, torch.ones(1, 2), 0.0, 0.0, 1.0, steps=1000)
    tensor([[0.3677, 0.3677]])
    """
    step, rows, dtype = (end - start) / steps, torch.arange(len(x), device=x.device), x.dtype
    known, cleaned = _wide("velocity", velocity, dtype), _wide("denoiser", denoiser, dtype)
    x = x.to(torch.promote_types(dtype, torch.float32))
    with evaluating([velocity, denoiser]):
        for i, (time, level, pull) in enumerate(_levels(curve, noise_level, start, step, steps, x)):
            t = x.new_full((len(x),), time)
            drift = known(x, t)
            if level > 0:
                drift = drift - math.copysign(pull, step) * cleaned(x, t)  # ±ε s = ∓(ε/γ) η
            x = x + step * drift
            if level > 0:
                z = noise.normal(seed, i + 1, rows, x.shape[1:], x.dtype)
                x = x + math.sqrt(2 * level * abs(step)) * z
    return x.to(dtype)


def _levels(
    curve: Interpolant,
    noise_level: float | Callable[[Tensor], Tensor],
    start: float,
    step: float,
    steps: int,
    x: Tensor,
) -> list[tuple[float, float, float]]:
    """t, ε and ε/γ in the middle of each step, as numbers of the host."""
    t = start + (torch.arange(steps, dtype=clock(x), device=x.device) + 0.5) * step
    level = torch.as_tensor(noise_level(t) if callable(noise_level) else noise_level).to(t).expand(steps)
    rows = torch.stack([t, level, curve.gamma(t).to(t).expand(steps)], 1).tolist()
    for time, epsilon, gamma in rows:
        if not 0 <= epsilon < math.inf:
            raise ValueError(f"noise_level is {epsilon} at t={time:.4g}: it must be a finite number of at least 0")
        if epsilon and not gamma > 0:
            raise ValueError(
                f"noise_level is {epsilon:.4g} at t={time:.4g}, where gamma is {gamma:.4g}: the score is −η/γ,"
                " and an SDE needs γ > 0 (with a standard normal x1, InterpolantProcess has one at γ = 0 too)"
            )
    return [(time, epsilon, epsilon / gamma if epsilon else 0.0) for time, epsilon, gamma in rows]


@door
@dataclass(frozen=True)
class InterpolantProcess(Process):
    """The process of an interpolant whose x_1 is standard normal and independent of x_0: σ² = β² + γ².

    x_t = α x_0 + (β x_1 + γ z), and what is in brackets is N(0, σ²): so b is dx/dt of the probability-flow ODE,
    ``ScoreModel(velocity, InterpolantProcess(curve), predicts="flow")``, the only network that is needed. λ is
    infinite at both ends; the times stay inside. λ must fall with t, or the process has no inverse.

    >>> variance_preserving = InterpolantProcess(linear(gamma=2**0.5))
    >>> round(variance_preserving.alpha(0.5) ** 2 + variance_preserving.sigma(0.5) ** 2, 12)
    1.0
    """

    curve: Interpolant
    t_min: float = 1e-3
    t_max: float = 1 - 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.t_min < self.t_max < 1:
            raise ValueError(f"t_min={self.t_min}, t_max={self.t_max}: they need 0 < t_min < t_max < 1")
        levels = self.half_log_snr(torch.linspace(self.t_min, self.t_max, 1001, dtype=torch.float64))
        if not bool((levels.diff() < 0).all()):
            raise ValueError("curve: α²/(β² + γ²) must fall from t_min to t_max, and does not")

    def log_alpha(self, t: Scalar) -> Scalar:
        return _of(lambda t: self.curve.alpha(t).log(), t)

    def log_sigma(self, t: Scalar) -> Scalar:
        return _of(self._log_sigma, t)

    def _log_sigma(self, t: Tensor) -> Tensor:
        return 0.5 * (self.curve.beta(t).square() + self.curve.gamma(t).square()).log()

    def drift_rate(self, t: Scalar) -> Scalar:
        return _of(lambda t: slope(lambda t: self.curve.alpha(t).log(), t), t)

    def diffusion(self, t: Scalar) -> Scalar:
        falls = _of(lambda t: -2 * slope(lambda t: self.curve.alpha(t).log() - self._log_sigma(t), t), t)
        return exp(self.log_sigma(t)) * sqrt(falls)

    def t_of_half_log_snr(self, half_log_snr: Scalar) -> Scalar:
        given: Any = half_log_snr
        found: Any = self._halve(given) if isinstance(given, Tensor) else self._root(given)
        return found

    def _root(self, level: float) -> Any:
        first, last = (self.half_log_snr(t) for t in (self.t_min, self.t_max))
        level = min(max(level, last), first)  # a rounding beyond an end is that end
        return brentq(lambda t: self.half_log_snr(t) - level, self.t_min, self.t_max, xtol=1e-15)

    def _halve(self, level: Tensor) -> Tensor:
        """λ falls with t: the host reads nothing, whatever the device."""
        low, high = torch.full_like(level, self.t_min), torch.full_like(level, self.t_max)
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            early = self.curve.alpha(middle).log() - self._log_sigma(middle) > level
            low, high = torch.where(early, middle, low), torch.where(early, high, middle)
        return 0.5 * (low + high)


_HALVINGS = 60


def _of(formula: Curve, t: Any) -> Any:
    """A formula of tensors, of a float too, in float64."""
    if isinstance(t, Tensor):
        return formula(t)
    return formula(torch.tensor(t, dtype=torch.float64)).item()


__all__ = [
    "INTERPOLANTS", "Interpolant", "InterpolantProcess", "diffuse", "follow", "interpolant", "interpolant_losses",
    "linear", "trigonometric",
]  # fmt: skip
