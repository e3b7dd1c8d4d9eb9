r"""``log_prob``: the log density of the probability-flow ODE's samples, with its error.

Along the ODE log p changes by minus the divergence (Chen et al. 2018; Song et al. 2021, eq. 39), so in the scaled state
y of ``ode``, log p_t(x) = log p_T(x_T) + D log(s_T/s_t) + ∫ div(dy/du) du with s² = α² + σ². The part of the divergence
that is linear in x is known; only the network's is estimated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sdekit import noise
from sdekit.data import Quantization
from sdekit.divergence import METHODS, divergence, draw_probes
from sdekit.door import Count, Evaluations, Place, Seed, Tolerance, bare, door, record
from sdekit.grid import GridSpec
from sdekit.likelihood.dequantisation import truncated_normal, uniform, uniforms
from sdekit.likelihood.errors import Spread, StdErr, fewest, spread_of
from sdekit.misfit import prior_error
from sdekit.names import lookup, unknown
from sdekit.ode import Evaluate, States, integrate, rows_of, state_of
from sdekit.sampling import Model, as_rows, space_of
from sdekit.solvers.registry import check_count

PerSample = Float[Tensor, "batch"]


@record
@dataclass(frozen=True)
class LogLikelihood:
    """What ``log_prob`` returns.

    Attributes:
        nats: log density, or log probability of the levels with ``quantization``, [batch].
        stderr: its errors, in nats.
        nfe: network evaluations that each sample took [batch].
        latent: the states at t_max [batch, *event] (of the last draw).
        blur: σ/α at the time where the ODE starts: what ``nats`` is the density of is blurred by this much.
        space: ``"latents"`` where the model is one of latents (``latent``): ``nats`` is then their density, and says
            nothing about what they decode to.
    """

    nats: PerSample
    stderr: StdErr
    nfe: Int[Tensor, "batch"]
    latent: Float[Tensor, "batch *event"] = field(repr=False)
    blur: float
    space: str = "data"

    @property
    def bits_per_dim(self) -> PerSample:
        """−log2 p/D. Of a density, not of levels, it depends on the data's units."""
        return -self.nats / (self.latent[0].numel() * math.log(2))

    def summary(self) -> dict[str, float]:
        """Mean bits/dim over the batch, its standard error over the samples, and the errors' share of it.

        ``error_probes``, ``error_dequantisation``: independent between samples, root of the mean square over √n.
        ``error_solver``, ``error_prior``: not random, their mean. NaN where unknown. All in bits/dim.
        """
        unit = self.latent[0].numel() * math.log(2)
        bits, n = self.bits_per_dim.double(), len(self.nats)
        random = {"probes": self.stderr.estimates.plain, "dequantisation": self.stderr.draws.plain}
        return {
            "bits_per_dim": bits.mean().item(),
            "standard_error": bits.std().item() / math.sqrt(n) if n > 1 else math.nan,
            **{f"error_{name}": value.double().square().mean().sqrt().item() / unit / math.sqrt(n)
               for name, value in random.items()},
            **{f"error_{name}": getattr(self.stderr, name).double().mean().item() / unit
               for name in ("solver", "prior")},
            "nfe": self.nfe.double().mean().item(),
        }  # fmt: skip


Lift = Callable[[Quantization, Tensor, float, Tensor], tuple[Tensor, Tensor]]

DEQUANTISATIONS: dict[str, tuple[Lift, bool]] = {
    "uniform": (uniform, False),
    "importance": (uniform, True),
    "truncated-normal": (truncated_normal, False),
    "truncated-normal-importance": (truncated_normal, True),
}
"""How points in a bin are drawn, and whether draws are joined by log-mean-exp (Burda et al. 2016) or by their mean."""


SMALL = 8
"""The largest D whose exact trace is taken by default: it costs as many products as 8 probes."""


def _choose(divergence: str, probes: int | None, size: int, distribution: str) -> tuple[str, int]:
    """The estimator and its number of probes, where the caller left either open: as many as an error bar needs."""
    if divergence not in ("auto", *METHODS):
        raise unknown("divergence", divergence, ("auto", *METHODS))
    if divergence == "auto":
        divergence = "exact" if probes is None and size <= SMALL else "hutchinson"
    if probes is not None:
        return divergence, probes
    least = fewest(divergence, distribution, size)
    return divergence, int(least if least < math.inf else 4) * (3 if divergence == "hutch++" else 1)


@dataclass(frozen=True)
class _Solve:
    """The arguments of ``log_prob`` that one solve needs."""

    model: Model
    divergence: str
    probes: int
    distribution: str
    mode: str
    chunk_size: int | None
    seed: int
    prior: Callable[[Tensor], Tensor] | None
    ode: Mapping[str, Any]
    conditions: Mapping[str, Any]

    def __call__(self, x: Tensor, t: float, first: int, draw: int) -> LogLikelihood:
        process, size = self.model.process, x[0].numel()
        path = integrate(
            self.model, x, t, process.t_max, evaluate=self._evaluate(x, first, draw), probes=self._estimates, **self.ode
        )
        prior = self.prior or _standard(process.prior_std)
        scales = (math.hypot(process.alpha(s), process.sigma(s)) for s in (process.t_max, t))
        shift = size * (math.log(next(scales)) - math.log(next(scales)))
        nats = prior(path.x) + size * path.integral.mean(1) + shift
        zero = torch.zeros_like(nats)
        none = Spread(zero, zero)
        least = fewest(self.divergence, self.distribution, size)
        spread = none if self.divergence == "exact" else spread_of(size * path.integral.detach(), least)
        missed = prior_error(process, x, t, path.x) if self.prior is None else zero
        defect = torch.full_like(nats, math.nan) if path.defect is None else path.defect
        blur = math.exp(-process.half_log_snr(t))
        return LogLikelihood(nats, StdErr(spread, defect, none, missed), path.nfe, path.x, blur, space_of(self.model))

    @property
    def _kind(self) -> str:
        """The prediction whose divergence is estimated: the network's own where a multiple of x costs no variance.

        Of Gaussian probes and of sketches a multiple of the identity in the Jacobian is the larger part of the
        error. For data like N(0, 1) that part of v is 0.
        """
        exact = self.divergence == "exact" or (self.divergence == "hutchinson" and self.distribution != "gaussian")
        return getattr(self.model, "predicts", "eps") if exact else "v"

    @property
    def _estimates(self) -> int:
        return {"exact": 1, "hutch++": self.probes // 3}.get(self.divergence, self.probes)

    def _evaluate(self, x: Tensor, first: int, draw: int) -> tuple[str, Evaluate]:
        """The network and its divergences; the probes stay the same through the solve."""
        kind, probes = self._kind, None
        if self.divergence != "exact":
            probes = draw_probes(x, self.probes, self.distribution, noise.key(self.seed, draw), first)

        def evaluate(x: Tensor, t: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
            given = bare(rows_of)(self.conditions, rows, n)
            here = probes if probes is None or rows is None else probes[:, rows]
            predict: Callable[[Tensor], Tensor] = lambda x: self.model.predict(kind, x, t, **given)  # noqa: E731
            return bare(divergence)(predict, x, here, self.divergence, self.mode, self.chunk_size)

        n = len(x)
        return kind, evaluate


@door
def log_prob(
    model: Model,
    x: States,
    *,
    t: float | None = None,
    divergence: str = "auto",
    probes: Count | None = None,
    distribution: str = "rademacher",
    mode: str = "vjp",
    chunk_size: Count | None = None,
    seed: Seed = 0,
    first: Place = 0,
    quantization: Quantization | None = None,
    dequantisation: str = "uniform",
    draws: Count = 1,
    prior: Callable[[Tensor], Tensor] | None = None,
    method: str = "per-sample",
    variable: str = "half-log-snr",
    rtol: Tolerance = 3e-6,
    atol: Tolerance = 3e-6,
    steps: Evaluations | None = None,
    grid: GridSpec = "auto",
    gradients: str = "none",
    max_attempts: Evaluations = 1000,
    options: Mapping[str, Any] | None = None,
    **conditions: Any,
) -> LogLikelihood:
    r"""Log density of x under the probability-flow ODE, or log probability of quantised data, with errors.

    Without ``quantization`` this is log p_t(x), the density of the state at time t. Data itself has t = 0, where no
    process of a finite λ arrives: by default x is taken for a state at t_min, as is usual, and ``blur`` says how far
    that is from the data. Denoised samples (``sample``'s default) are no states at any time: give what ``sample``
    returned with ``final="none"`` itself, which knows its time. With ``quantization`` the number is a lower bound on
    log P(levels) of a complete model: draw x at t_min by the ODE, divide by α(t_min), round to the nearest level;
    nothing is left out.

    Args:
        x: [batch, *event], a tensor, a numpy array (taken as torch's default dtype), or what ``sample`` returned. The
            error ``stderr.prior`` takes it for samples of the data.
        t: the time of x; default t_min, of what ``sample`` returned its own.
        divergence, probes, distribution, mode, chunk_size: see ``divergence``; drawn once and kept through a solve.
            ``"auto"`` takes the exact trace in D ≤ 8, else, and wherever ``probes`` is given, ``"hutchinson"``. By
            default there are as many probes as an error bar needs; with fewer ``stderr.probes`` is NaN. A network
            call with 4 took 2.2 times as long as one with 1, 4 to 5 bare calls.
        seed, first: sample i's probes and draws depend on (seed, first + i) alone, so a data set may be cut anywhere.
        quantization: what levels x holds.
        dequantisation: a name in ``DEQUANTISATIONS``; needs ``quantization``.
        draws: points drawn in each bin.
        prior: log density of the state at t_max; default N(0, σ(t_max)²), and ``stderr.prior`` says how far the data's
            own density there is from it.
        method, variable, rtol, atol, steps, grid, gradients, max_attempts, options: see ``ode.integrate``.
        conditions: passed to the network.

    Raises ValueError for unknown names, x that is not finite or not on a level, denoised samples, fewer than one
    probe or draw, and as ``ode.integrate`` and ``divergence`` do.

    >>> from sdekit import VP, targets
    >>> target = targets.Gaussian(torch.zeros(2), torch.eye(2))
    >>> x = target.sample(3)
    >>> found = log_prob(target.model(VP()), x)
    >>> torch.allclose(found.nats, target.log_prob(x, 1e-3, VP()), atol=1e-4)
    True
    """
    if quantization is not None and space_of(model) != "data":
        raise ValueError(
            "quantization: the levels are of data, and this model is one of latents, whose density has none"
        )
    x, start = state_of(model, x, t)
    divergence, probes = _choose(divergence, probes, x[0].numel(), distribution)
    check_count("probes", probes, 1, "a trace is estimated from at least one probe")
    check_count("draws", draws, 1, "each sample needs at least one point in its bin")
    if not bool(x.isfinite().all()):
        bad = (~x.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        raise ValueError(f"x holds NaN or infinity in samples {bad[:10]}: every entry must be finite")
    ode = {
        "method": method, "variable": variable, "rtol": rtol, "atol": atol, "steps": steps, "grid": grid,
        "gradients": gradients, "max_attempts": max_attempts, "options": options,
    }  # fmt: skip
    solve = _Solve(
        model, divergence, probes, distribution, mode, chunk_size, seed, prior, ode,
        as_rows(model, conditions, len(x)),
    )  # fmt: skip
    with torch.set_grad_enabled(gradients != "none"):
        if quantization is None:
            return solve(x, start, first, 0)
        return _quantised(solve, x, start, first, quantization, dequantisation, draws)


def _quantised(
    solve: _Solve, x: Tensor, t: float, first: int, quantization: Quantization, name: str, draws: int
) -> LogLikelihood:
    lift, importance = lookup("dequantisation", name, DEQUANTISATIONS)
    process = solve.model.process
    alpha, blur = process.alpha(t), math.exp(-process.half_log_snr(t))
    samples = torch.arange(first, first + len(x), device=x.device)
    found: list[LogLikelihood] = []
    weights: list[Tensor] = []
    for draw in range(draws):
        point, minus_log_q = lift(quantization, x, blur, uniforms(solve.seed, draw, samples, x))
        part = solve(alpha * point, t, first, draw)
        found.append(part)
        weights.append(part.nats + x[0].numel() * math.log(alpha) + minus_log_q)
    return _join(found, torch.stack(weights), importance)


def _join(found: list[LogLikelihood], w: Tensor, importance: bool) -> LogLikelihood:
    """The draws' mean or log-mean-exp, with the errors of either."""
    count = len(w)
    share = w.detach().softmax(0) if importance else torch.full_like(w, 1 / count)
    nats = w.logsumexp(0) - math.log(count) if importance else w.mean(0)
    # log-mean-exp: the relative error of the mean weight
    draws = spread_of((share * count if importance else w.detach()).mT)
    estimates = Spread.join([part.stderr.estimates for part in found], share)
    solver, prior = (
        (share * torch.stack([part.stderr.parts[name] for part in found])).sum(0) for name in ("solver", "prior")
    )
    nfe = torch.stack([part.nfe for part in found]).sum(0)
    return LogLikelihood(nats, StdErr(estimates, solver, draws, prior), nfe, found[-1].latent, found[-1].blur)


def _standard(std: float) -> Callable[[Tensor], Tensor]:
    """log N(z; 0, std²) of each sample."""

    def log_density(z: Tensor) -> Tensor:
        return -0.5 * (z / std).flatten(1).square().sum(1) - z[0].numel() * math.log(std * math.sqrt(2 * math.pi))

    return log_density
