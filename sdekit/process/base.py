r"""Forward diffusions: x_t = α(t) x_0 + σ(t) ε, that is dx = f(t) x dt + g(t) dw.

A process is a frozen dataclass that states five formulas of its paper (``log_alpha``, ``log_sigma``,
``drift_rate`` f, ``diffusion`` g, ``t_of_half_log_snr``) and its time range; all else follows here.
Each formula takes a float (computed in float64 on the host) or a tensor (any device) and returns the same.

Time runs from data to noise. ``t_min`` is where sampling stops: the smallest time with σ > 0 that is
worth reaching. Where half-log-SNR is infinite (``Flow`` and ``CosineVP`` at t = 1) ``t_max`` lies just inside.

>>> from sdekit.process import VP
>>> process = VP()
>>> round(process.alpha(0.5) ** 2 + process.sigma(0.5) ** 2, 12)
1.0
"""

from __future__ import annotations

import math
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

from jaxtyping import Float
from torch import Tensor

from sdekit.elementwise import Scalar, exp, expm1, sqrt

State = Float[Tensor, "batch *event"]
Time = float | Float[Tensor, ""] | Float[Tensor, "batch"]
Score = Callable[[Tensor, "float | Tensor"], Tensor]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


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

    >>> from sdekit.process import VP
    >>> VP().knot(1.0).half_log_snr < VP().knot(0.5).half_log_snr
    True
    """

    t: float
    alpha: float
    sigma: float
    half_log_snr: float


class Process(ABC):
    r"""A Gaussian forward process. Subclass it with the five formulas below, as a frozen dataclass.

    α(t), σ(t): x_t | x_0 ~ N(α x_0, σ² I).  λ(t) = log(α/σ), strictly decreasing.
    f = d log α/dt and g² = dσ²/dt − 2fσ² = −2σ² dλ/dt (Kingma et al. 2021, eq. 18 and appendix).

    Making a process that lacks one of the five raises TypeError, which names it.
    """

    t_min: float
    t_max: float

    @abstractmethod
    def log_alpha(self, t: Scalar) -> Scalar:
        """log α(t)."""

    @abstractmethod
    def log_sigma(self, t: Scalar) -> Scalar:
        """log σ(t)."""

    @abstractmethod
    def drift_rate(self, t: Scalar) -> Scalar:
        """f(t) of the drift f(t) x."""

    @abstractmethod
    def diffusion(self, t: Scalar) -> Scalar:
        """g(t), the coefficient of dw."""

    @abstractmethod
    def t_of_half_log_snr(self, half_log_snr: Scalar) -> Scalar:
        """The time at which log(α/σ) has this value."""

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


def check_range(process: Process) -> None:
    if not 0 <= process.t_min < process.t_max:
        raise ValueError(f"t_min={process.t_min}, t_max={process.t_max}: they need 0 <= t_min < t_max")


def check_positive_range(names: str, low: float, high: float) -> None:
    if not 0 < low < high < math.inf:
        raise ValueError(f"{names} = {low}, {high}: they need 0 < first < second")


def constant(process: Process) -> bool:
    """Whether nothing about the process can change: a frozen dataclass of numbers, text and tuples of them.

    >>> from sdekit.process import VP
    >>> constant(VP())
    True
    """
    known = _CONSTANT.get(id(process))
    if known is not None and known() is process:
        return True
    found = type(process).__weakrefoffset__ > 0 and _unchanging(process)
    if found:
        weakref.finalize(process, _CONSTANT.pop, id(process), None)
        _CONSTANT[id(process)] = weakref.ref(process)
    return found


_CONSTANT: dict[int, weakref.ref[Process]] = {}  # what does not change stays what it was found to be
_UNCHANGING = (bool, int, float, str, type(None))


def _unchanging(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_unchanging(part) for part in value)
    if isinstance(value, _UNCHANGING):
        return True
    own = vars(type(value)).get("__dataclass_params__")  # the class's own: a subclass of a frozen one may change
    return bool(own and own.frozen) and all(_unchanging(getattr(value, field.name)) for field in fields(value))


def remembered(maxsize: int) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """``lru_cache`` for a function of processes, which asks one that can change, a learned schedule say, every time."""

    def remember(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        cached = lru_cache(maxsize)(function)

        @wraps(function)
        def ask(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            for value in args:
                if isinstance(value, Process) and not constant(value):
                    return function(*args, **kwargs)
            return cached(*args, **kwargs)

        return ask

    return remember
