r"""Forward diffusions: x_t = α(t) x_0 + σ(t) ε, that is dx = f(t) x dt + g(t) dw.

A process is a frozen dataclass that states five formulas of its paper (``log_alpha``, ``log_sigma``,
``drift_rate`` f, ``diffusion`` g, ``t_of_half_log_snr``) and its time range; all else follows here.
Each formula takes a float (computed in float64 on the host) or a tensor (any device) and returns the same.

Time runs from data to noise. ``t_min`` is where sampling stops: the smallest time with σ > 0 that is
worth reaching. Where half-log-SNR is infinite (``Flow`` and ``CosineVP`` at t = 1) ``t_max`` lies just inside.

>>> process = VP()
>>> round(process.alpha(0.5) ** 2 + process.sigma(0.5) ** 2, 12)
1.0
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import accumulate

from jaxtyping import Float
from torch import Tensor

from sdekit.elementwise import (
    LinearTable,
    Scalar,
    asinh,
    atan2,
    cos,
    exp,
    expm1,
    log,
    log1p,
    sigmoid,
    sin,
    softplus,
    sqrt,
    tan,
)

State = Float[Tensor, "batch *event"]
Time = float | Float[Tensor, ""] | Float[Tensor, "batch"]
Score = Callable[[Tensor, "float | Tensor"], Tensor]


def match(value: float | Tensor, x: Tensor) -> float | Tensor:
    """``value`` (a float, 0-d or [batch]) shaped so that it broadcasts against x [batch, *event].

    >>> import torch
    >>> match(torch.ones(2), torch.zeros(2, 3, 4)).shape
    torch.Size([2, 1, 1])
    """
    if isinstance(value, Tensor) and value.ndim == 1:
        return value.reshape(-1, *[1] * (x.ndim - 1))
    return value


@dataclass(frozen=True)
class Knot:
    """One point of a time grid: t, α, σ and λ = log(α/σ), float64 on the host.

    >>> VP().knot(1.0).half_log_snr < VP().knot(0.5).half_log_snr
    True
    """

    t: float
    alpha: float
    sigma: float
    half_log_snr: float


class Process:
    r"""A Gaussian forward process. Subclass it with the five formulas below, as a frozen dataclass.

    α(t), σ(t): x_t | x_0 ~ N(α x_0, σ² I).  λ(t) = log(α/σ), strictly decreasing.
    f = d log α/dt and g² = dσ²/dt − 2fσ² = −2σ² dλ/dt (Kingma et al. 2021, eq. 18 and appendix).
    """

    t_min: float
    t_max: float

    def log_alpha(self, t: Scalar) -> Scalar:
        """log α(t)."""
        raise NotImplementedError

    def log_sigma(self, t: Scalar) -> Scalar:
        """log σ(t)."""
        raise NotImplementedError

    def drift_rate(self, t: Scalar) -> Scalar:
        """f(t) of the drift f(t) x."""
        raise NotImplementedError

    def diffusion(self, t: Scalar) -> Scalar:
        """g(t), the coefficient of dw."""
        raise NotImplementedError

    def t_of_half_log_snr(self, half_log_snr: Scalar) -> Scalar:
        """The time at which log(α/σ) has this value."""
        raise NotImplementedError

    def alpha(self, t: Scalar) -> Scalar:
        """α(t), the factor of the data in x_t."""
        return exp(self.log_alpha(t))

    def sigma(self, t: Scalar) -> Scalar:
        """σ(t), the standard deviation of the noise in x_t."""
        return exp(self.log_sigma(t))

    def half_log_snr(self, t: Scalar) -> Scalar:
        """λ(t) = log(α/σ) (Lu et al. 2022, DPM-Solver)."""
        return self.log_alpha(t) - self.log_sigma(t)

    def alpha_rate(self, t: Scalar) -> Scalar:
        """dα/dt = f α."""
        return self.drift_rate(t) * self.alpha(t)

    def sigma_rate(self, t: Scalar) -> Scalar:
        """dσ/dt = f σ + g²/(2σ)."""
        sigma = self.sigma(t)
        return self.drift_rate(t) * sigma + self.diffusion(t) ** 2 / (2 * sigma)

    def knot(self, t: float) -> Knot:
        """The grid point at time t."""
        log_alpha, log_sigma = self.log_alpha(t), self.log_sigma(t)
        return Knot(t, math.exp(log_alpha), math.exp(log_sigma), log_alpha - log_sigma)

    def knot_at(self, half_log_snr: float) -> Knot:
        """The grid point at λ = ``half_log_snr``."""
        return self.knot(self.t_of_half_log_snr(half_log_snr))

    @property
    def prior_std(self) -> float:
        """Standard deviation of the Gaussian that stands for x at t_max: σ(t_max)."""
        return self.sigma(self.t_max)

    def drift(self, x: State, t: Time) -> State:
        """The forward SDE's drift f(t) x."""
        return match(self.drift_rate(t), x) * x

    def marginal(self, x0: State, t: Time) -> tuple[State, Time]:
        """Mean α x_0 and standard deviation σ (of t's shape) of x_t given x_0."""
        return match(self.alpha(t), x0) * x0, self.sigma(t)

    def perturb(self, x0: State, t: Time, eps: State) -> State:
        """x_t = α x_0 + σ ε."""
        return match(self.alpha(t), x0) * x0 + match(self.sigma(t), x0) * eps

    def transition(self, s: Scalar, t: Scalar) -> tuple[Scalar, Scalar]:
        """Scale and standard deviation of x_t given x_s, s ≤ t: N(α_t/α_s x_s, σ_t² (1 − e^{2(λ_t − λ_s)})).

        Raises ValueError for floats with s > t.
        """
        scale = exp(self.log_alpha(t) - self.log_alpha(s))
        lost = -expm1(2 * (self.half_log_snr(t) - self.half_log_snr(s)))
        if isinstance(lost, float) and lost < 0:
            raise ValueError(f"transition(s={s}, t={t}) runs backwards: it needs s <= t")
        return scale, self.sigma(t) * sqrt(lost)

    def reverse(self, score: Score, noise_level: float = 1.0) -> ReverseSDE:
        """The SDE that runs from t_max to t_min with the same marginals; see ``ReverseSDE``."""
        return ReverseSDE(self, score, noise_level)


@dataclass(frozen=True)
class ReverseSDE:
    r"""dx = [f x − ½(1 + η²) g² s(x, t)] dt + η g dw̄, integrated towards smaller t; η is ``noise_level``.

    η = 1 is Anderson's reverse SDE (Song et al. 2021, eq. 6), η = 0 the probability-flow ODE (eq. 13);
    every η has the marginals of the forward process (Karras et al. 2022, eq. 6).
    """

    process: Process
    score: Score
    noise_level: float = 1.0

    def __post_init__(self) -> None:
        if not self.noise_level >= 0:
            raise ValueError(f"noise_level={self.noise_level}: it must be at least 0")

    def drift(self, x: State, t: Time) -> State:
        """f x − ½(1 + η²) g² s(x, t), in forward time: a step towards the data subtracts it."""
        half = 0.5 * (1 + self.noise_level**2) * self.process.diffusion(t) ** 2
        return self.process.drift(x, t) - match(half, x) * self.score(x, t)

    def diffusion(self, t: Scalar) -> Scalar:
        """η g(t)."""
        return self.noise_level * self.process.diffusion(t)


def _check_range(process: Process) -> None:
    if not 0 <= process.t_min < process.t_max:
        raise ValueError(f"t_min={process.t_min}, t_max={process.t_max}: they need 0 <= t_min < t_max")


def _check_positive_range(names: str, low: float, high: float) -> None:
    if not 0 < low < high < math.inf:
        raise ValueError(f"{names} = {low}, {high}: they need 0 < first < second")


class _VariancePreserving(Process):
    """α² + σ² = 1, so that log α alone says everything: g² = −2f = β(t)."""

    def log_sigma(self, t: Scalar) -> Scalar:
        return 0.5 * log(-expm1(2 * self.log_alpha(t)))

    def diffusion(self, t: Scalar) -> Scalar:
        return sqrt(-2 * self.drift_rate(t))


@dataclass(frozen=True)
class _LinearBeta(Process):
    """What VP and sub-VP share: β(t) linear from β_min to β_max, f = −β/2."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        _check_positive_range("beta_min, beta_max", self.beta_min, self.beta_max)
        _check_range(self)

    def log_alpha(self, t: Scalar) -> Scalar:
        return -t * (self.beta_min / 2 + t * (self.beta_max - self.beta_min) / 4)

    def drift_rate(self, t: Scalar) -> Scalar:
        return -0.5 * (self.beta_min + t * (self.beta_max - self.beta_min))

    def _t_of_minus_log_alpha(self, value: Scalar) -> Scalar:
        # the root of log_alpha's quadratic in the form without cancellation
        half = self.beta_min / 2
        return 2 * value / (half + sqrt(half**2 + (self.beta_max - self.beta_min) * value))


@dataclass(frozen=True)
class VP(_LinearBeta, _VariancePreserving):
    """Variance preserving: β(t) linear from β_min to β_max, f = −β/2, g = √β (Song et al. 2021, eq. 32–33).

    >>> VP().drift_rate(0.0), VP(beta_max=10.0).t_max
    (-0.05, 1.0)
    """

    def t_of_half_log_snr(self, half_log_snr: Scalar) -> Scalar:
        return self._t_of_minus_log_alpha(0.5 * softplus(-2 * half_log_snr))


@dataclass(frozen=True)
class SubVP(_LinearBeta):
    """Sub-VP: VP's drift, g² = β (1 − α⁴), hence σ = 1 − α² (Song et al. 2021, eq. 27–29).

    >>> abs(SubVP().sigma(0.5) - VP().sigma(0.5) ** 2) < 1e-15
    True
    """

    def log_sigma(self, t: Scalar) -> Scalar:
        return log(-expm1(2 * self.log_alpha(t)))

    def diffusion(self, t: Scalar) -> Scalar:
        return sqrt(2 * self.drift_rate(t) * expm1(4 * self.log_alpha(t)))

    def t_of_half_log_snr(self, half_log_snr: Scalar) -> Scalar:
        # α/(1 − α²) = 1/(2 sinh(−log α))
        return self._t_of_minus_log_alpha(asinh(exp(-half_log_snr) / 2))


@dataclass(frozen=True)
class VE(Process):
    """Variance exploding: α = 1, σ = σ_min (σ_max/σ_min)^t (Song et al. 2021, eq. 30–31).

    σ(0) = σ_min > 0, so that t_min is 0. As in the paper's code the marginal is N(x_0, σ(t)²): the
    data at t = 0 already carries noise σ_min.

    >>> round(VE().sigma(0.0), 12), round(VE().prior_std, 12)
    (0.01, 50.0)
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self) -> None:
        _check_positive_range("sigma_min, sigma_max", self.sigma_min, self.sigma_max)
        _check_range(self)

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def log_alpha(self, t: Scalar) -> Scalar:
        return 0.0 * t

    def log_sigma(self, t: Scalar) -> Scalar:
        return math.log(self.sigma_min) + t * self._log_ratio

    def drift_rate(self, t: Scalar) -> Scalar:
        return 0.0 * t

    def diffusion(self, t: Scalar) -> Scalar:
        return math.sqrt(2 * self._log_ratio) * self.sigma(t)

    def t_of_half_log_snr(self, half_log_snr: Scalar) -> Scalar:
        return (-half_log_snr - math.log(self.sigma_min)) / self._log_ratio


@dataclass(frozen=True)
class CosineVP(_VariancePreserving):
    """VP with α = cos(u(t))/cos(u(0)), u = π/2 (t + s)/(1 + s) (Nichol & Dhariwal 2021, eq. 17).

    λ is −∞ at t = 1; sampling starts at t_max = 0.9946 (Lu et al. 2022, appendix D.4), where the data's
    factor in x is α = 0.0084, which a start from N(0, σ²) leaves out.

    >>> round(CosineVP().alpha(0.9946), 4)
    0.0084
    """

    s: float = 0.008
    t_min: float = 1e-3
    t_max: float = 0.9946

    def __post_init__(self) -> None:
        _check_range(self)
        if not (self.s > 0 and self.t_max < 1):
            raise ValueError(f"s={self.s}, t_max={self.t_max}: they need s > 0 and t_max < 1, where alpha is 0")

    def _angle(self, t: Scalar) -> Scalar:
        return (t + self.s) * (math.pi / 2 / (1 + self.s))

    def log_alpha(self, t: Scalar) -> Scalar:
        return log(cos(self._angle(t))) - math.log(math.cos(self._angle(0.0)))

    def log_sigma(self, t: Scalar) -> Scalar:
        # 1 − cos²u/cos²u₀ = sin(u − u₀) sin(u + u₀)/cos²u₀: no cancellation at small t
        u, u0 = self._angle(t), self._angle(0.0)
        return 0.5 * log(sin(u - u0) * sin(u + u0)) - math.log(math.cos(u0))

    def drift_rate(self, t: Scalar) -> Scalar:
        return -(math.pi / 2 / (1 + self.s)) * tan(self._angle(t))

    def t_of_half_log_snr(self, half_log_snr: Scalar) -> Scalar:
        u0 = self._angle(0.0)
        alpha2, sigma2 = sigmoid(2 * half_log_snr), sigmoid(-2 * half_log_snr)
        u = atan2(sqrt(math.sin(u0) ** 2 + math.cos(u0) ** 2 * sigma2), math.cos(u0) * sqrt(alpha2))
        return u * (2 * (1 + self.s) / math.pi) - self.s


@dataclass(frozen=True)
class Flow(Process):
    """Flow matching's straight path α = 1 − t, σ = t (Lipman et al. 2023; Liu et al. 2023).

    λ is ∓∞ at both ends; t stays in [0.001, 0.999]. A start from N(0, σ²) leaves out 0.001 x_0.

    >>> Flow().half_log_snr(0.5)
    0.0
    """

    t_min: float = 1e-3
    t_max: float = 1.0 - 1e-3

    def __post_init__(self) -> None:
        _check_range(self)
        if not (self.t_min > 0 and self.t_max < 1):
            raise ValueError(f"t_min={self.t_min}, t_max={self.t_max}: Flow needs both strictly inside (0, 1)")

    def log_alpha(self, t: Scalar) -> Scalar:
        return log1p(-t)

    def log_sigma(self, t: Scalar) -> Scalar:
        return log(t)

    def drift_rate(self, t: Scalar) -> Scalar:
        return -1 / (1 - t)

    def diffusion(self, t: Scalar) -> Scalar:
        return sqrt(2 * t / (1 - t))

    def t_of_half_log_snr(self, half_log_snr: Scalar) -> Scalar:
        return sigmoid(-half_log_snr)


def _linear_betas(steps: int) -> tuple[float, ...]:
    if steps < 2:
        raise ValueError(f"steps={steps}: a table of betas needs at least 2")
    scale = 1000 / steps
    low, high = 1e-4 * scale, 0.02 * scale
    return tuple(low + (high - low) * n / (steps - 1) for n in range(steps))


@dataclass(frozen=True)
class DiscreteVP(_VariancePreserving):
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
        object.__setattr__(self, "betas", betas)
        object.__setattr__(self, "t_min", 1 / len(betas))
        object.__setattr__(self, "_log_alpha", LinearTable(tuple(log_alphas)))

    def __hash__(self) -> int:  # the whole table's hash would cost more than a step of a solver
        return hash((DiscreteVP, self.steps, self._log_alpha.values[-1]))

    @classmethod
    def linear(cls, steps: int = 1000) -> DiscreteVP:
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
