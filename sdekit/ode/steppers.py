r"""Ways to integrate the field: Dormand–Prince with a step size for each sample, or with equal steps, and torchdiffeq.

A stepper takes the field, the state z [n, D + probes], the ends (u0, u1) and ``Settings``; it returns z at u1, the
network evaluations of each sample, and an estimate of the error of the log density where it has one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torchdiffeq
from torch import Tensor, nn

from sdekit.elementwise import clock
from sdekit.ode.field import Field
from sdekit.solvers.registry import check_count


@dataclass(frozen=True)
class Settings:
    """What ``integrate`` was asked for; ``parameters`` are the network's, for the adjoint."""

    rtol: float
    atol: float
    steps: int | None
    max_attempts: int
    gradients: str
    options: dict[str, Any]
    parameters: tuple[nn.Parameter, ...]


Solved = tuple[Tensor, list[int], "Tensor | None"]
Stepper = Callable[[Field, Tensor, tuple[float, float], Settings], Solved]

# Dormand & Prince 1980, RK5(4)7M; the last row is the fifth-order result, evaluated once for two steps
_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0
_PROPORTIONAL, _INTEGRAL = 0.7 / 5, 0.4 / 5  # Hairer, Nørsett & Wanner 1993, section II.4; Gustafsson 1991


def _combine(slopes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ weights_j slopes_j."""
    total = slopes[0] * weights[0]
    for slope, weight in zip(slopes[1:], weights[1:]):
        if weight:
            total.add_(slope, alpha=weight)
    return total


@dataclass(frozen=True)
class _Step:
    """A step tried: the new state and its slope, the estimate of its error, and what that means for the log density."""

    z: Tensor
    slope: Tensor
    error: Tensor
    defect: Tensor | None


def _try_step(
    field: Field, z: Tensor, slope: Tensor, u: Tensor, h: Tensor, nodes: Tensor, rows: Tensor | None
) -> _Step:
    """One Dormand–Prince step of size h [m] from (u [m], z): six evaluations, every coefficient computed at once."""
    at = field.at(u + nodes[:, None] * h)
    length, slopes, moved = h.to(z.dtype)[:, None], [slope], z
    for stage, weights in enumerate(_STAGES):
        moved = torch.addcmul(z, length, _combine(slopes, weights))
        slopes.append(field(at[stage], moved, rows))
    error = length * _combine(slopes, _ERROR)
    with torch.no_grad():
        tracked = z.shape[1] > field.size
        defect = field.log_density_slope(at[5], moved, slopes[-1], error) if tracked else None
    return _Step(moved, slopes[-1], error, defect)


def _fixed(field: Field, z: Tensor, ends: tuple[float, float], settings: Settings) -> Solved:
    """Equal steps in u. The host reads nothing."""
    check_count("steps", settings.steps, 1, "method 'fixed' takes equal steps in the integration variable")
    steps = settings.steps or 1
    knots = [ends[0] + (ends[1] - ends[0]) * i / steps for i in range(steps + 1)]
    nodes, h = _tensor(_NODES, z), torch.full((1,), (ends[1] - ends[0]) / steps, dtype=clock(z), device=z.device)
    slope = field(field.at(torch.full_like(h, ends[0])[None])[0], z)
    total: Tensor | None = None
    for knot in knots[:-1]:
        step = _try_step(field, z, slope, torch.full_like(h, knot), h, nodes, None)
        z, slope = step.z, step.slope
        if step.defect is not None:
            total = step.defect.abs() if total is None else total + step.defect.abs()
    return z, [1 + 6 * steps] * len(z), total


def _tensor(values: Sequence[float], z: Tensor) -> Tensor:
    return torch.tensor(values, dtype=clock(z), device=z.device)


@dataclass
class _Active:
    """The samples under way, one row each: their numbers, and their rows in the first batch (None: all of them).

    The state and its slope, u, the step to try next, the error ratio of the step before, the defects added up.
    """

    ids: list[int]
    rows: Tensor | None
    z: Tensor
    slope: Tensor
    u: Tensor
    h: Tensor
    memory: Tensor
    total: Tensor

    def advance(self, step: _Step, u: Tensor, ratio: Tensor, accept: Tensor | None) -> None:
        """Take the step where it was accepted (None: everywhere)."""
        new = [step.z, step.slope, u, ratio.clamp(min=1e-4)]
        if step.defect is not None:
            new.append(self.total + step.defect.abs())
        old = (self.z, self.slope, self.u, self.memory, self.total)
        if accept is not None:
            new = [torch.where(accept[:, None] if b.ndim > 1 else accept, b, a) for a, b in zip(old, new)]
        self.z, self.slope, self.u, self.memory, self.total = *new, *old[len(new) :]

    def keep(self, live: list[int]) -> None:
        pick, self.ids = torch.tensor(live, device=self.z.device), [self.ids[k] for k in live]
        self.rows = pick if self.rows is None else self.rows[pick]
        self.z, self.slope, self.u = self.z[pick], self.slope[pick], self.u[pick]
        self.h, self.memory, self.total = self.h[pick], self.memory[pick], self.total[pick]


def _per_sample(field: Field, z: Tensor, ends: tuple[float, float], settings: Settings) -> Solved:
    """Each sample with its own steps; samples that arrive leave the batch. One read by the host for each step tried."""
    n, nodes = len(z), _tensor(_NODES, z)
    active = _begin(field, z, ends, settings)
    tiny = 1e-13 * max(map(abs, ends))
    arrived: list[tuple[list[int], Tensor, Tensor]] = []
    nfe = [1] * n
    for _ in range(settings.max_attempts):
        left = ends[1] - active.u
        last = active.h / left >= 1 - 1e-12
        h = torch.where(last, left, active.h)
        step = _try_step(field, active.z, active.slope, active.u, h, nodes, active.rows)
        with torch.no_grad():
            ratio = _error_ratio(field, active.z, step, settings).to(h.dtype)
            accept, factor = _control(ratio, active.memory)
            active.h = h * factor
            stuck = active.h.abs() < tiny
            status = torch.stack([accept, last, stuck]).tolist()  # the one read of the host
        for i in active.ids:
            nfe[i] += 6
        _check(field, active, status[2])
        active.advance(step, torch.where(last, ends[1], active.u + h), ratio, None if all(status[0]) else accept)
        done = [a and b for a, b in zip(*status[:2])]
        if not any(done):
            continue
        here, live = ([k for k, is_done in enumerate(done) if is_done is which] for which in (True, False))
        pick = torch.tensor(here, device=z.device)
        arrived.append(([active.ids[k] for k in here], active.z[pick], active.total[pick]))
        if not live:
            return _gather(arrived, field, z, nfe)
        active.keep(live)
    why = f"no end after max_attempts={settings.max_attempts} steps"
    raise _stopped(field, active, [True] * len(active.ids), why)


def _begin(field: Field, z: Tensor, ends: tuple[float, float], settings: Settings) -> _Active:
    u = torch.full((len(z),), ends[0], dtype=clock(z), device=z.device)
    slope = field(field.at(u[None])[0], z)
    span = ends[1] - ends[0]
    h = math.copysign(1.0, span) * _first_step(field, z, slope, settings, abs(span))
    return _Active(list(range(len(z))), None, z, slope, u, h, torch.ones_like(u), z.new_zeros(len(z)))


def _gather(arrived: list[tuple[list[int], Tensor, Tensor]], field: Field, z: Tensor, nfe: list[int]) -> Solved:
    """The samples in their first order."""
    order = [i for ids, _, _ in arrived for i in ids]
    back = torch.tensor(sorted(range(len(order)), key=order.__getitem__), device=z.device)
    ended, total = (torch.cat(parts)[back] for parts in list(zip(*arrived))[1:])
    return ended, nfe, total if z.shape[1] > field.size else None


def _first_step(field: Field, z: Tensor, slope: Tensor, settings: Settings, span: float) -> Tensor:
    """1% of the time in which y would change by its own size, at most 5% of the way."""
    with torch.no_grad():
        y, dy = z[:, : field.size], slope[:, : field.size]
        scale = settings.atol + settings.rtol * y.abs()
        size, speed = ((part / scale).square().mean(1).sqrt() for part in (y, dy))
        return (0.01 * size / speed).to(clock(z)).nan_to_num(span, span).clamp(1e-6 * span, 0.05 * span)


def _error_ratio(field: Field, z: Tensor, step: _Step, settings: Settings) -> Tensor:
    """The error against the tolerance [m]: root mean square over y, and that of the integral's mean over the probes."""
    size, scale = field.size, torch.maximum(z.abs(), step.z.abs()).mul_(settings.rtol).add_(settings.atol)
    ratio = torch.linalg.vector_norm(step.error[:, :size] / scale[:, :size], dim=1) / size**0.5
    if z.shape[1] > size:
        ratio = torch.maximum(ratio, step.error[:, size:].mean(1).abs() / scale[:, size:].mean(1))
    return ratio.nan_to_num(math.inf)


def _control(ratio: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Which steps are accepted, and the factor to the next step size: a PI controller."""
    accept = ratio <= 1
    factor = torch.where(accept, ratio**-_PROPORTIONAL * memory**_INTEGRAL, ratio**-0.2)
    return accept, (_SAFETY * factor).clamp(_SHRINK, _GROW)


def _check(field: Field, active: _Active, stuck: list[bool]) -> None:
    if any(stuck):
        raise _stopped(field, active, stuck, "the step size fell to zero: the field is not finite there")


def _stopped(field: Field, active: _Active, bad: list[bool], why: str) -> ValueError:
    where = [k for k, is_bad in enumerate(bad) if is_bad]
    t = field.variable.to_t(field.process, active.u[where[0]].item())
    others = f" (and {len(where) - 1} more)" if len(where) > 1 else ""
    return ValueError(f"the ODE of sample {active.ids[where[0]]}{others} got no further than t={t:.6g}: {why}")


class _Called:
    """The field as torchdiffeq calls it; remembers how often and where last."""

    def __init__(self, field: Field, z: Tensor) -> None:
        self.field, self.clock, self.calls = field, clock(z), 0
        self.u: Tensor | None = None

    def __call__(self, u: Tensor, z: Tensor) -> Tensor:
        self.calls, self.u = self.calls + 1, u
        return self.field(self.field.at(u.detach().to(self.clock).reshape(1, 1))[0], z)


def _torchdiffeq(
    field: Field, z: Tensor, ends: tuple[float, float], settings: Settings, *, method: str, fixed: bool
) -> Solved:
    called, span = _Called(field, z), abs(ends[1] - ends[0])
    if settings.gradients == "direct" and method == "scipy_solver":
        raise ValueError("method='scipy_solver' leaves torch: gradients='direct' cannot pass, use 'adjoint'")
    times = torch.tensor(ends, dtype=clock(z), device=z.device)
    options: dict[str, Any] = {"norm": partial(_norm, field.size)}
    if fixed:
        check_count("steps", settings.steps, 1, f"method {method!r} takes equal steps in the integration variable")
        options["grid_constructor"] = partial(_equal_steps, settings.steps or 1)
        if method == "explicit_adams":
            options["max_order"] = 5  # torchdiffeq's 12 is unstable here: with more steps its error stops falling
    elif method != "scipy_solver":
        # without these torchdiffeq steps past the end and interpolates back, and looks for a first step outside
        options |= {"step_t": times, "first_step": 0.01 * span, "max_num_steps": settings.max_attempts}
    arguments: dict[str, Any] = {"rtol": settings.rtol, "atol": settings.atol, "options": options | settings.options}
    odeint = torchdiffeq.odeint
    if settings.gradients == "adjoint":
        odeint = partial(torchdiffeq.odeint_adjoint, adjoint_params=settings.parameters)
    try:
        ended: Any = odeint(called, z, times, method=method, **arguments)
        ended = ended[-1]
    except AssertionError as error:
        here = math.nan if called.u is None else called.u.item()
        t = field.variable.to_t(field.process, here)
        raise ValueError(
            f"method={method!r} got no further than t={t:.6g}, with one step size for the batch: {error}"
        ) from None
    return ended, [called.calls] * len(z), None


def _norm(size: int, z: Tensor) -> Tensor:
    """Root mean square over y; the integrals count by their mean over the probes, for the worst sample."""
    if z.ndim < 2:  # the adjoint's times and parameters
        return z.abs().max()
    norm = z[:, :size].square().mean().sqrt()
    return norm if z.shape[1] == size else torch.maximum(norm, z[:, size:].mean(1).abs().max())


def _equal_steps(steps: int, field: object, z: Tensor, times: Tensor) -> Tensor:
    fractions = torch.arange(steps + 1, dtype=times.dtype, device=times.device) / steps
    knots = times[0] + (times[-1] - times[0]) * fractions
    return torch.cat([times[:1], knots[1:-1], times[-1:]])


# torchdiffeq's methods (PyPI 0.2.5): the tolerance chooses the steps of the first, ``steps`` those of the second
_ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun", "scipy_solver")
_FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams", "fixed_adams")

STEPPERS: dict[str, Stepper] = {
    "per-sample": _per_sample,
    "fixed": _fixed,
    **{name: partial(_torchdiffeq, method=name, fixed=False) for name in _ADAPTIVE},
    **{name: partial(_torchdiffeq, method=name, fixed=True) for name in _FIXED},
}
"""Integration methods beside the registry's solvers."""
