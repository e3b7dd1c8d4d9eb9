"""The probability-flow ODE by a solver of the registry, in either direction, and the density along its run.

A table moves x alone. The integral of the divergence comes from the divergences at the knots, which cost one product
each: by a cubic spline through them in λ, of order 4. So a multistep solver gives a density at one evaluation a step.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from torch import Tensor

from sdekit.door import Evaluations, door
from sdekit.elementwise import clock
from sdekit.grid import Grid, GridSpec, identified
from sdekit.ode.field import Field
from sdekit.prediction import convert
from sdekit.process import Process, remembered
from sdekit.sampling import march
from sdekit.solvers import Plan, Solver, get
from sdekit.solvers.registry import check_count


@dataclass
class _Recorder:
    """The ODE's network as a model for ``march``; it keeps each time and divergence."""

    ode: Field
    device: torch.device
    times: list[float] = field(default_factory=list[float])
    divergences: list[Tensor] = field(default_factory=list[Tensor])
    nfe: int = 0

    @property
    def process(self) -> Process:
        return self.ode.process

    def predict(self, kind: str, x: Tensor, t: float | Tensor, /, **conditions: Any) -> Tensor:
        time, (low, high) = float(t), self.ode.range
        F, divergence = self.ode.evaluate(x, x.new_full((len(x),), min(max(time, low), high)), None)  # noqa: N806
        self.nfe += 1
        self.times.append(time)
        if divergence is not None:
            self.divergences.append(divergence)
        if kind == self.ode.kind:
            return F
        c_x, c_F = convert(self.ode.kind, kind, self.process, time)  # noqa: N806
        return c_x * x + c_F * F


def run_plan(
    solver: Solver, ode: Field, x: Tensor, t0: float, t1: float, steps: int | None, grid: GridSpec, probes: int
) -> tuple[Tensor, int, Tensor]:
    """x at t1, the evaluations made, and ∫ div(dy/du)/D du for each probe [batch, probes]; the host reads nothing."""
    if solver.stochastic:
        raise ValueError(f"method={solver.name!r} draws noise with these options: a flow needs a deterministic solver")
    plan = plan_between(solver, ode.process, t0, t1, steps, grid)
    if probes and plan.nfe != sum(row.commit for row in plan.rows):
        raise ValueError(
            f"method={solver.name!r} gives no density: that needs one evaluation for each step; use a solver such as"
            " 'unipc-3', or 'per-sample'"
        )
    recorder = _Recorder(ode, x.device)
    *_, (end, x) = march(plan, recorder, x, lambda start, end: x.new_empty(0))
    if not probes:
        return x, recorder.nfe, x.new_zeros(len(x), 0)
    recorder.predict(ode.kind, x, end.t)  # the divergence at the end
    return x, recorder.nfe, _integral(recorder)


def _integral(recorder: _Recorder) -> Tensor:
    """The integral of the spline through the knots' values, as a weighted sum of them: knots are known beforehand."""
    levels = [recorder.process.half_log_snr(t) for t in recorder.times]
    sign = 1 if levels[0] < levels[-1] else -1
    rising = np.array(levels[::sign])
    spline = make_interp_spline(rising, np.eye(len(levels)), k=min(3, len(levels) - 1))
    weights = (sign * spline.integrate(rising[0], rising[-1]))[::sign]
    divergences = torch.stack(recorder.divergences)  # [knots, batch, probes]
    host = torch.tensor([levels, weights.tolist()], dtype=clock(divergences), device=divergences.device)
    at = recorder.ode.at(host[0][:, None])
    linear, volume = torch.cat([knot.linear for knot in at]), torch.cat([knot.volume for knot in at])  # [knots, 1]
    weight = host[1].to(divergences.dtype)[:, None]
    return (weight * linear).sum() + ((weight * volume)[..., None] * divergences).sum(0)


@door
def plan_between(
    solver: Solver | str,
    process: Process,
    t0: float,
    t1: float,
    steps: Evaluations | None = None,
    grid: GridSpec = "auto",
) -> Plan:
    """A registered solver's table from t0 to t1 in either direction, without a final denoising.

    With t0 < t1 it runs from data to noise, as DDIM inversion does (Song, Meng & Ermon 2021, section 4.3).

    Args:
        grid: as in ``sample``, laid over [t0, t1]; or the times themselves, from t0 to t1.

    Raises ValueError where t0 = t1, and as ``Grid.make`` does.

    >>> from sdekit import VP
    >>> [round(row.to.t, 3) for row in plan_between("dpmpp-2m", VP(), 0.1, 0.9, 2, "time").rows]
    [0.5, 0.9]
    """
    for name, t in (("t0", t0), ("t1", t1)):
        if not process.t_min <= t <= process.t_max:
            raise ValueError(f"{name}={t}: it must lie in [t_min, t_max] = [{process.t_min}, {process.t_max}]")
    if t0 == t1:
        raise ValueError(f"t0={t0}, t1={t1}: a solver of the registry needs two different times")
    if not isinstance(grid, str) and len(grid) < 2:
        raise ValueError(f"grid={list(grid)}: at least two times are needed, from t0 to t1")
    count = steps if isinstance(grid, str) else len(grid) - 1
    check_count("steps", count, 1, "a solver of the registry takes a fixed number of them")
    rule = get(solver).at(count or 1, grid)
    return _between(rule, process, t0, t1, count or 1, *identified(rule.grid if grid == "auto" else grid))


@remembered(64)
def _between(rule: Solver, process: Process, t0: float, t1: float, steps: int, grid: GridSpec, key: object) -> Plan:
    # a solve's table is the same for every batch; ``key`` tells two grids of one name apart
    narrowed = copy.copy(process)  # the same process, whose range is the range to cross
    object.__setattr__(narrowed, "t_min", min(t0, t1))
    object.__setattr__(narrowed, "t_max", max(t0, t1))
    spec = grid if isinstance(grid, str) or t0 > t1 else tuple(grid)[::-1]
    falling = Grid.make(narrowed, spec, [rule.evaluations] * steps)
    knots = falling.knots if t0 > t1 else falling.knots[::-1]
    try:
        rows = tuple(rule.rows(Grid(process, knots, falling.evaluations), **dict(rule.options)))
    except ValueError as error:
        raise ValueError(f"method={rule.name!r} has no table from t0={t0} to t1={t1}: {error}") from None
    return Plan(knots[0], rows, rule.predicts)
