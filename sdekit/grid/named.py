r"""The named grids: each a function from a process and the fraction of the way, 0 at noise and 1 at data, to a time.

Options are keyword-only parameters that carry their rule. A grid whose inner knots depend on the number of steps as
well takes it as a third argument, ``steps``. End points are exact whatever a function returns there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

from scipy.special import betaincinv

from sdekit.grid.published import ays
from sdekit.grid.table import leading, linspace, sgm, trailing
from sdekit.names import Between
from sdekit.process import VP, Process


def _line(first: float, last: float, fraction: float) -> float:
    return first + fraction * (last - first)


def _between_ends(process: Process, fraction: float, of_half_log_snr: Callable[[float], float]) -> float:
    """The value this fraction of the way, on a line between a quantity's values at both ends."""
    first, last = (of_half_log_snr(process.half_log_snr(t)) for t in (process.t_max, process.t_min))
    return _line(first, last, fraction)


def time(process: Process, fraction: float) -> float:
    """Uniform in t."""
    return _line(process.t_max, process.t_min, fraction)


def time_quadratic(process: Process, fraction: float) -> float:
    """Uniform in √t (Song, Meng & Ermon 2021, DDIM, appendix D.2)."""
    return _line(math.sqrt(process.t_max), math.sqrt(process.t_min), fraction) ** 2


def vp_time(
    process: Process,
    fraction: float,
    *,
    power: Annotated[float, Between(0.5, 10)] = 2.0,
    blend: Annotated[float, Between(0, 1)] = 0.0,
) -> float:
    """Uniform in τ^{1/power}, with τ the time at which ``VP()`` has the same λ; λ mixed with ``blend`` of ``logsnr``'s.

    One clock for every process: between equal ends, the same λ under each. On ``VP()`` itself power 1 is ``time`` and
    2 is ``time-quadratic``; larger powers take more steps near the data, and ``blend`` = 1 is ``logsnr``.
    """
    root = _between_ends(process, fraction, lambda value: _CLOCK.t_of_half_log_snr(value) ** (1 / power))
    uniform = _between_ends(process, fraction, lambda value: value)
    return process.t_of_half_log_snr(_line(_CLOCK.half_log_snr(root**power), uniform, blend))


_CLOCK = VP()


def logsnr(process: Process, fraction: float) -> float:
    """Uniform in λ = log(α/σ) (Lu et al. 2022, DPM-Solver, section 3.3), that is in log(σ/α): also ``exponential``."""
    return process.t_of_half_log_snr(_between_ends(process, fraction, lambda value: value))


def karras(process: Process, fraction: float, *, rho: Annotated[float, Between(1, 100)] = 7.0) -> float:
    """Uniform in (σ/α)^{1/ρ} (Karras et al. 2022, eq. 5); ρ = 1 is uniform in σ/α."""
    root = _between_ends(process, fraction, lambda value: math.exp(-value / rho))
    return process.t_of_half_log_snr(-rho * math.log(root))


def cosine(process: Process, fraction: float) -> float:
    """Uniform in the angle arctan(σ/α): the times at which a cosine schedule would be uniform in t."""
    angle = _between_ends(process, fraction, lambda value: math.atan(math.exp(-value)))
    return process.t_of_half_log_snr(-math.log(math.tan(angle)))


def beta(
    process: Process,
    fraction: float,
    *,
    alpha: Annotated[float, Between(0.1, 10)] = 0.6,
    beta: Annotated[float, Between(0.1, 10)] = 0.6,
) -> float:
    """t_min + (t_max − t_min) B, B the Beta(alpha, beta) distribution's quantile at 1 − fraction (Lee et al. 2024).

    With both parameters below 1 the steps are short at either end. Quantiles are of time, as in the paper ("Beta
    sampling is all you need"); diffusers' ``use_beta_sigmas`` takes them of σ/α instead, which is another grid.
    """
    return _line(process.t_min, process.t_max, float(betaincinv(alpha, beta, 1 - fraction)))


def shift(process: Process, fraction: float, *, shift: Annotated[float, Between(0.01, 100)] = 3.0) -> float:
    """t = s u/(1 + (s − 1) u) with u uniform, for ``Flow``; s is ``shift`` (Esser et al. 2024, SD3, eq. 23).

    It multiplies σ/α by s. In that form it serves every process: u = σ/(σ + s α) is uniform. s = 1 is uniform in time
    for ``Flow``, s > 1 takes more steps near the noise. Where a model states μ (Flux), s = e^μ.
    """
    log_shift = math.log(shift)
    u = _between_ends(process, fraction, lambda value: 1 / (1 + math.exp(value + log_shift)))
    return process.t_of_half_log_snr(math.log((1 - u) / u) - log_shift)


GRIDS: dict[str, Callable[..., float]] = {
    "time": time,
    "time-quadratic": time_quadratic,
    "vp-time": vp_time,
    "logsnr": logsnr,
    "exponential": logsnr,  # k-diffusion's name for it: uniform in log σ
    "karras": karras,
    "cosine": cosine,
    "beta": beta,
    "shift": shift,
    "trailing": trailing,
    "leading": leading,
    "linspace": linspace,
    "sgm": sgm,
    "ays": ays,
}
