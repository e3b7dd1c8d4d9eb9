r"""The statistics of a model of one's own that DPM-Solver-v3 works with (Zheng et al. 2023, appendix C.1.1).

At each λ, over x drawn from the model's marginal there and for each element of the data by itself,

    l = E[σ ∂ε/∂x]            which makes σ ε − l x change least with x                                (eq. 5, 58)
    s = Cov(f, f') / Var f,   b = E f' − s E f            least squares of f' ≈ s f + b                (eq. 60, 61)

with f = e^{−λ} (ε − (l/σ) x) and f' = e^{−λ} ((l − 1) ε + ε') − l' x/α its change along the probability-flow ODE
(eq. 62). ∂ε/∂x is estimated as v · (∂ε/∂x v) with one probe v = ±1 for each sample, and ε' is a product with
(dx/dλ, dt/dλ): two evaluations with forward-mode derivatives for each sample and λ.

A sample has the same noise and the same probe at every λ. So the estimates are smooth in λ, and l' is the derivative of
their spline, the one that the solver integrates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from scipy.interpolate import CubicSpline
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sdekit.divergence import draw_probes, forward_mode
from sdekit.door import Count, Seed, door
from sdekit.model import in_evaluation_mode
from sdekit.names import check_options, options_of
from sdekit.noise import normal
from sdekit.process import Knot, Process
from sdekit.sampling import Model, as_rows, check_conditions, conditions_of, progress_bar, sample
from sdekit.solvers import Solver, Statistics
from sdekit.solvers.dpm_v3 import NAME
from sdekit.solvers.registry import check_count

Samples = Float[Tensor, "n *event"]
PLAIN = SDPBackend.MATH


@door
@in_evaluation_mode
def fit_dpm_v3(
    model: Model,
    data: Samples | Sequence[int],
    *,
    order: int = 3,
    predictor: str = "full",
    corrector: str = "full",
    half: bool = False,
    lower_order_final: bool = True,
    knots: Count = 120,
    seed: Seed = 0,
    batch_size: Count | None = None,
    progress: bool = False,
    **conditions: Any,
) -> Solver:
    """DPM-Solver-v3 fitted to a model: ``fit_statistics(…).solver(…)``, a value for ``solver=``.

    Call ``fit_statistics`` instead to keep the statistics in a file, or to have solvers with several options from
    one fit.

    Args:
        order: how many past values the predictor extrapolates from, 1 to 3.
        predictor, corrector, half, lower_order_final: as in ``Statistics.rows``.
        model, data, knots, seed, batch_size, progress, conditions: as in ``fit_statistics``.

    Raises ValueError for unknown options, and as ``fit_statistics``. The solver raises it for a model of another
    process and for data of another shape.

    >>> from sdekit.process import VP
    >>> from sdekit.targets import Gaussian
    >>> target = Gaussian(torch.ones(2), torch.eye(2))
    >>> solver = fit_dpm_v3(target.model(VP()), target.sample(64), knots=30)
    >>> sample(target.model(VP()), (4, 2), solver=solver, nfe=5, seed=0).nfe
    5
    """
    options = {"order": order, "predictor": predictor, "corrector": corrector}
    options |= {"half": half, "lower_order_final": lower_order_final}
    check_options(NAME, options_of(Statistics.rows), options)  # before the fit, which may take hours
    statistics = fit_statistics(
        model, data, knots=knots, seed=seed, batch_size=batch_size, progress=progress, **conditions
    )
    return statistics.solver(**options)


@door
@in_evaluation_mode
@torch.no_grad()
def fit_statistics(
    model: Model,
    data: Samples | Sequence[int],
    *,
    knots: Count = 120,
    seed: Seed = 0,
    batch_size: Count | None = None,
    progress: bool = False,
    **conditions: Any,
) -> Statistics:
    """Estimate l, s and b of a model at ``knots`` values of λ, uniform from t_max to t_min.

    Their errors fall as 1/√n with the number of samples, and the splines' as knots⁻⁴.

    Args:
        model: a ``ScoreModel``, or what wraps one. Evaluated 2·knots times on all of the data, each time with a
            forward-mode derivative.
        data: samples [n, *event]; the paper takes 1,024 to 4,096. Or a shape (n, *event): that many are drawn from
            the model in 200 evaluations each.
        knots: values of λ; the paper takes 120 to 1,200.
        seed: of the noise, the probes and the drawn samples.
        batch_size: samples run at once (default: all).
        progress: show a progress bar on stderr.
        conditions: passed to the network; as in ``sample``, rows for each sample are split with the batch.

    Raises ValueError for fewer than 2 samples or 4 knots, data that are not finite or have another shape than the
    network takes, predictions or derivatives that are not finite (it names t), and an operation of the network that
    lacks forward mode.

    >>> from sdekit.process import VP
    >>> from sdekit.targets import Gaussian
    >>> target = Gaussian(torch.ones(2), torch.eye(2)).double()
    >>> fitted = fit_statistics(target.model(VP()), target.sample(64), knots=30)
    >>> torch.allclose(fitted.linear[-1], torch.full((2,), VP().sigma(1e-3) ** 2, dtype=torch.float64))  # σ²/(α² + σ²)
    True
    """
    check_count("knots", knots, 4, "a cubic spline goes through them")
    check_conditions(model, conditions, fit_statistics)
    x0 = _data(model, data, seed, batch_size, conditions)
    conditions = as_rows(model, conditions, len(x0))
    size = len(x0) if batch_size is None else batch_size
    check_count("batch_size", size, 1, "it is how many samples run at once")
    process = model.process
    ends = process.knot(process.t_max), process.knot(process.t_min)
    inner = torch.linspace(ends[0].half_log_snr, ends[1].half_log_snr, knots, dtype=torch.float64)[1:-1]
    places = [ends[0], *map(process.knot_at, inner.tolist()), ends[1]]
    found: list[_Moments] = []
    with progress_bar(progress, len(places) * len(range(0, len(x0), size)), "statistics") as advance:
        for knot in places:
            parts: list[Tensor] = []
            for first in range(0, len(x0), size):
                some = conditions_of(conditions, len(x0), first, size)
                parts.append(_sums(model, knot, x0[first : first + size], seed, first, some))
                advance()
            found.append(_Moments.make(torch.stack(parts).sum(0) / len(x0), knot, x0.dtype))
    return _statistics(process, places, found)


def _data(
    model: Model, data: Tensor | Sequence[int], seed: int, batch_size: int | None, conditions: dict[str, Any]
) -> Tensor:
    """The samples on the model's device."""
    n = len(data) if isinstance(data, Tensor) and data.ndim else next(iter(data), 0)
    check_count("samples in data", int(n), 2, "a variance is estimated over them")
    if not isinstance(data, Tensor):
        data = sample(model, data, solver="dpmpp-2m", nfe=200, seed=seed, batch_size=batch_size, **conditions).x
    if not data.is_floating_point() or not bool(data.isfinite().all()):
        raise ValueError(f"data has dtype {data.dtype}: it must be floating-point [n, *event], every entry finite")
    return data.to(model.device)


def _sums(model: Model, knot: Knot, x0: Tensor, seed: int, first: int, conditions: dict[str, Any]) -> Tensor:
    """Sums over the batch [10, *event]: σ ∂ε/∂x, then ε, ε', x̂_0 and their products; x̂_0 is the predicted x_0."""

    def eps(x: Tensor, t: float | Tensor) -> Tensor:
        return model.predict("eps", x, t, **conditions)

    numbers = torch.arange(first, first + len(x0), device=x0.device)
    z = normal(seed, 0, numbers, x0.shape[1:], x0.dtype)
    x = knot.alpha * x0 + knot.sigma * z
    (v,) = draw_probes(x, 1, "rademacher", seed, first)
    process, t = model.process, torch.tensor(knot.t, dtype=torch.float64, device=x.device)
    slope = -2 * (knot.sigma / process.diffusion(knot.t)) ** 2  # dt/dλ
    jvp: Any = torch.func.jvp  # its stub knows no result of two
    # fused attention has no forward mode, plain attention has
    with forward_mode("network: {} has no forward-mode derivative, which the statistics need"), sdpa_kernel(PLAIN):
        value, product = jvp(lambda x: eps(x, knot.t), (x,), (v,))
        change = slope * process.drift_rate(knot.t) * x - knot.sigma * value  # dx/dλ
        _, along = jvp(eps, (x, t), (change, torch.full_like(t, slope)))
    e, d, c = (a.double() for a in (value, along, (x - knot.sigma * value) / knot.alpha))
    terms = (knot.sigma * v * product, e, d, c, e * e, e * d, e * c, d * c, c * c)
    return torch.stack([term.double().sum(0) for term in terms])


@dataclass(frozen=True)
class _Moments:
    """At one λ: l, the means of ε, ε' and x̂_0, and the covariances that Var f and Cov(f, f') are made of."""

    linear: Tensor
    e: Tensor
    d: Tensor
    c: Tensor
    ee: Tensor
    ed: Tensor
    ec: Tensor
    dc: Tensor
    cc: Tensor
    rounding: Tensor

    @classmethod
    def make(cls, means: Tensor, knot: Knot, dtype: torch.dtype) -> _Moments:
        if not bool(means.isfinite().all()):
            raise ValueError(f"the network's predictions or their derivatives at t={knot.t:.6g} hold NaN or infinity")
        linear, e, d, c, ee, ed, ec, dc, cc = means.cpu()
        # the variance that f would have from rounding alone, x̂_0 being a difference of numbers of size |ε| σ/α
        rounding = (16 * torch.finfo(dtype).eps) ** 2 * (cc + math.exp(-2 * knot.half_log_snr) * ee)
        return cls(linear, e, d, c, ee - e * e, ed - e * d, ec - e * c, dc - d * c, cc - c * c, rounding)


def _statistics(process: Process, places: Sequence[Knot], found: Sequence[_Moments]) -> Statistics:
    at = torch.tensor([knot.half_log_snr for knot in places], dtype=torch.float64)
    linear = torch.stack([moments.linear for moments in found])
    slopes = torch.from_numpy(CubicSpline(at.numpy(), linear.numpy()).derivative()(at.numpy()))
    noise_ratios = [math.exp(-knot.half_log_snr) for knot in places]
    fits = list(map(_regress, found, linear, slopes, noise_ratios))
    scaling, bias = (torch.stack(values) for values in zip(*fits))
    return Statistics(process, at, linear, scaling, bias)


def _regress(m: _Moments, linear: Tensor, slope: Tensor, kappa: float) -> tuple[Tensor, Tensor]:
    """s and b at one λ, from f = κ(1 − l) ε − l x̂_0 and f' = κ(l − 1 − l') ε + κ ε' − l' x̂_0, κ = σ/α."""
    f_e, f_c = kappa * (1 - linear), -linear
    g_e, g_d, g_c = kappa * (linear - 1 - slope), kappa, -slope
    variance = f_e**2 * m.ee + 2 * f_e * f_c * m.ec + f_c**2 * m.cc
    covariance = f_e * (g_e * m.ee + g_d * m.ed + g_c * m.ec) + f_c * (g_e * m.ec + g_d * m.dc + g_c * m.cc)
    floor = m.rounding + 64 * torch.finfo(torch.float64).eps * (f_e**2 * (m.ee + m.e**2) + f_c**2 * (m.cc + m.c**2))
    # a constant f says nothing of s: b alone then fits f'
    scaling = torch.where(variance > floor, covariance / variance, 0.0)
    mean, mean_change = f_e * m.e + f_c * m.c, g_e * m.e + g_d * m.d + g_c * m.c
    return scaling, mean_change - scaling * mean
