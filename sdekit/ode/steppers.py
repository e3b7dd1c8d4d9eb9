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
        total = total.add_(slope, alpha=weight) if weight else total
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
        moved = z + length * _combine(slopes, weights)
        slopes.append(field(at[stage], moved, rows))
    error = length * _combine(slopes, _ERROR)
    with torch.no_grad():
        tracked = z.shape[1] > field.size
        defect = field.log_density_slope(at[5], moved, slopes[-1], error) if tracked else None
    return _Step(moved, slopes[-1], error, defect)


def _clock(z: Tensor) -> torch.dtype:
    # float64 for the handful of coefficients, wherever the device has it
    return z.dtype if z.device.type == "mps" else torch.float64


def _fixed(field: Field, z: Tensor, ends: tuple[float, float], settings: Settings) -> Solved:
    """Equal steps in u. The host reads nothing."""
    check_count("steps", settings.steps, 1, "method 'fixed' takes equal steps in the integration variable")
    steps = settings.steps or 1
    knots = [ends[0] + (ends[1] - ends[0]) * i / steps for i in range(steps + 1)]
    nodes, h = _tensor(_NODES, z), torch.full((1,), (ends[1] - ends[0]) / steps, dtype=_clock(z), device=z.device)
    slope = field(field.at(torch.full_like(h, ends[0])[None])[0], z)
    total: Tensor | None = None
    for knot in knots[:-1]:
        step = _try_step(field, z, slope, torch.full_like(h, knot), h, nodes, None)
        z, slope = step.z, step.slope
        if step.defect is not None:
            total = step.defect.abs() if total is None else total + step.defect.abs()
    return z, [1 + 6 * steps] * len(z), total


def _tensor(values: Sequence[float], z: Tensor) -> Tensor:
    return torch.tensor(values, dtype=_clock(z), device=z.device)


def _per_sample(field: Field, z: Tensor, ends: tuple[float, float], settings: Settings) -> Solved:
    """Each sample with its own steps; samples that arrive leave the batch. One read by the host for each step tried."""
    n, (start, end) = len(z), ends
    nodes, ids = _tensor(_NODES, z), list(range(n))
    u = torch.full((n,), start, dtype=_clock(z), device=z.device)
    rows: Tensor | None = None
    slope = field(field.at(u[None])[0], z)
    h = math.copysign(1.0, end - start) * _first_step(field, z, slope, settings, abs(end - start))
    memory = torch.ones_like(u)
    total, tiny = z.new_zeros(n), 1e-13 * max(abs(end), abs(start))
    arrived: list[tuple[list[int], Tensor, Tensor]] = []
    nfe = [1] * n
    for _ in range(settings.max_attempts):
        last = h.abs() >= (end - u).abs() * (1 - 1e-12)
        h = torch.where(last, end - u, h)
        step = _try_step(field, z, slope, u, h, nodes, rows)
        with torch.no_grad():
            ratio = _error_ratio(field, z, step, settings).to(u.dtype)
            accept, factor = _control(ratio, memory)
        z = torch.where(accept[:, None], step.z, z)
        slope = torch.where(accept[:, None], step.slope, slope)
        u = torch.where(accept, torch.where(last, end, u + h), u)
        memory = torch.where(accept, ratio.clamp(min=1e-4), memory)
        total = total + torch.where(accept, 0.0 if step.defect is None else step.defect.abs(), 0.0)
        h = h * factor
        for i in ids:
            nfe[i] += 6
        status = ((accept & last).long() + 2 * (h.abs() < tiny).long()).tolist()  # the one read of the host
        if any(code == 2 for code in status):
            _give_up(
                field,
                u,
                ids,
                [code == 2 for code in status],
                "the step size fell to zero: the field is not finite there",
            )
        if not any(status):
            continue
        here, live = ([k for k, code in enumerate(status) if bool(code) is done] for done in (True, False))
        pick = torch.tensor(here, device=z.device)
        arrived.append(([ids[k] for k in here], z[pick], total[pick]))
        if not live:
            return _gather(arrived, field, z, nfe)
        pick, ids = torch.tensor(live, device=z.device), [ids[k] for k in live]
        z, slope, u, h, memory, total = (value[pick] for value in (z, slope, u, h, memory, total))
        rows = pick if rows is None else rows[pick]
    _give_up(field, u, ids, [True] * len(ids), f"no end after max_attempts={settings.max_attempts} steps")
    raise AssertionError("unreachable")


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
        return (0.01 * size / speed).to(_clock(z)).nan_to_num(span, span).clamp(1e-6 * span, 0.05 * span)


def _error_ratio(field: Field, z: Tensor, step: _Step, settings: Settings) -> Tensor:
    """The error against the tolerance [m]: root mean square over y, and that of the integral's mean over the probes."""
    size = field.size
    scale = settings.atol + settings.rtol * torch.maximum(z.abs(), step.z.abs())
    ratio = (step.error[:, :size] / scale[:, :size]).square().mean(1).sqrt()
    if z.shape[1] > size:
        ratio = torch.maximum(ratio, step.error[:, size:].mean(1).abs() / scale[:, size:].mean(1))
    return torch.where(ratio.isfinite(), ratio, math.inf)


def _control(ratio: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Which steps are accepted, and the factor to the next step size: a PI controller."""
    accept = ratio <= 1
    small = ratio.clamp(min=1e-10)
    smooth = _SAFETY * small**-_PROPORTIONAL * memory**_INTEGRAL
    factor = torch.where(accept, smooth.clamp(_SHRINK, _GROW), (_SAFETY * small**-0.2).clamp(_SHRINK, 1.0))
    return accept, factor


def _give_up(field: Field, u: Tensor, ids: list[int], bad: list[bool], why: str) -> None:
    where = [(ids[k], u[k].item()) for k in range(len(ids)) if bad[k]]
    sample, here = where[0]
    t = field.variable.to_t(field.process, here)
    others = f" (and {len(where) - 1} more)" if len(where) > 1 else ""
    raise ValueError(f"the ODE of sample {sample}{others} got no further than t={t:.6g}: {why}")


class _Called:
    """The field as torchdiffeq calls it; remembers how often and where last."""

    def __init__(self, field: Field, z: Tensor) -> None:
        self.field, self.clock, self.calls = field, _clock(z), 0
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
    times = torch.tensor(ends, dtype=_clock(z), device=z.device)
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
