r"""Time grids fitted to a model of one's own; each function returns times, to be given as ``grid=``.

Both measure on a fine grid of candidate times what a step from each candidate to each later one costs, and then choose
among the candidates. Noise levels are σ/α and states x/α, so that a fitted grid has the same noise levels under every
process.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sdekit.door import Count, Evaluations, Rows, Seed, door
from sdekit.grid import Grid, GridSpec
from sdekit.model import in_evaluation_mode
from sdekit.noise import normal
from sdekit.process import Knot, Process
from sdekit.sampling import Model, as_rows, sample
from sdekit.solvers import Solver, get
from sdekit.solvers.registry import check_count

Samples = Float[Tensor, "n *event"]
Costs = Float[np.ndarray, "k k"]  # [i, j] is the cost of a step from knot i to knot j; infinite where j ≤ i

GAMMAS = (1.0, 1.05, 1.1, 1.15, 1.2, 1.3, 1.5, 2.0)


@door
@in_evaluation_mode
@torch.no_grad()
def fit_ays(
    model: Model,
    x0: Annotated[Samples, Rows()],
    steps: Evaluations,
    *,
    start: GridSpec = "logsnr",
    sweeps: int | None = 3,
    candidates: Count = 100,
    seed: Seed = 0,
    **conditions: Any,
) -> tuple[float, ...]:
    r"""Align Your Steps: the times that lower the KL divergence's upper bound for this model and data.

    The bound, between the paths of the reverse SDE and those of a first-order solver (stochastic DDIM) that holds
    D = E[x_0 | x] fixed over each step, is a sum over the steps from time s to time t of

        KLUB(s, t) = 2 ∫ e^{2λ} E‖D(x_u, u) − D(x_s, s)‖² dλ(u)   from λ_s to λ_t

    with x_u, x_s on one path of the forward process (Sabour et al. 2024, eq. 9 and 10, for σ/α as time). Sweeping over
    the inner times, each is moved to the candidate between its neighbours with the least bound (their algorithm 1).
    Few sweeps are early stopping: the bound is on whole paths, and near its minimum the end of a deterministic run gets
    worse again (appendix A.3). A stochastic solver may gain from the minimum itself (``sweeps=None``).

    Where the paper draws u at random for each step, by importance, here each path visits every candidate, and the
    integral is a sum over them: one set of ``candidates`` evaluations gives the bound of every possible step.

    Args:
        model: a ``ScoreModel``, or what wraps one. It is evaluated about ``candidates + steps`` times on all of x0.
        x0: data [n, *event]; the paper takes 8,192 samples, a few hundred will do.
        steps: how many steps the grid has; it returns one time more.
        start: the grid to improve, a name or times.
        sweeps: passes over the times; None until none moves.
        candidates: times to choose from, uniform in λ, besides those of ``start``.
        seed: of the paths' noise.
        conditions: passed to the network.

    Raises ValueError for counts too small, a bad grid, empty data, and predictions that are not finite.

    >>> from sdekit.process import VP
    >>> from sdekit.targets import Gaussian
    >>> target = Gaussian(torch.zeros(2), torch.eye(2))
    >>> times = fit_ays(target.model(VP()), target.sample(64), 5)
    >>> len(times), times[0], times[-1]
    (6, 1.0, 0.001)
    """
    check_count("steps", steps, 1, "a grid has at least one step")
    check_count("candidates", candidates, steps, "there is a choice of one for each step")
    if sweeps is not None:
        check_count("sweeps", sweeps, 0, "it counts passes over the times; None goes on until none moves")
    _check_samples("x0", x0)
    knots, chosen = _candidates(model.process, start, steps, candidates)
    denoised = _along_paths(model, x0.to(model.device), knots, seed, as_rows(model, conditions, len(x0)))
    path = _descend(_path_divergence(denoised, knots), chosen, sweeps)
    return tuple(knots[i].t for i in path)


def _candidates(process: Process, start: GridSpec, steps: int, count: int) -> tuple[list[Knot], list[int]]:
    """The knots of ``start`` and, where none of them is near, ``count`` more, noise first; and where its own stand."""
    try:
        own = Grid.make(process, start, steps).knots
    except ValueError as error:
        raise ValueError(f"start: {error}") from None
    fine = np.linspace(own[0].half_log_snr, own[-1].half_log_snr, count + 1)
    taken = np.array([knot.half_log_snr for knot in own])
    apart = (own[-1].half_log_snr - own[0].half_log_snr) / (100 * count)
    free = [process.knot_at(float(value)) for value in fine if np.abs(taken - value).min() > apart]
    knots = sorted([*own, *free], key=lambda knot: knot.half_log_snr)
    return knots, [knots.index(knot) for knot in own]


def _along_paths(
    model: Model, x0: Tensor, knots: Sequence[Knot], seed: int, conditions: dict[str, Any]
) -> list[Tensor]:
    """D(x, t) at each knot, x on one forward path from each x_0: x/α = x_0 + W((σ/α)²)."""
    numbers = torch.arange(len(x0), device=x0.device)
    x, clock, found = x0, 0.0, list[Tensor]()
    for draw, knot in enumerate(reversed(knots)):
        now = math.exp(-2 * knot.half_log_snr)
        z = normal(seed, draw, numbers, x0.shape[1:], x0.dtype)
        x, clock = x + math.sqrt(now - clock) * z, now
        found.append(model.predict("x0", x * knot.alpha, knot.t, **conditions))
    _check_finite("the network's predictions of x0", found[::-1], knots)
    return found[::-1]


def _path_divergence(denoised: Sequence[Tensor], knots: Sequence[Knot]) -> Costs:
    """KLUB of a step from each knot to each later one, by the trapezoidal rule in λ over the knots between."""
    all_denoised = torch.stack(list(denoised)).flatten(2)
    gaps = torch.stack([(all_denoised - one).double().square().sum(2).mean(1) for one in all_denoised])
    half_log_snr = np.array([knot.half_log_snr for knot in knots])
    density = 2 * np.exp(2 * half_log_snr) * gaps.cpu().numpy()
    cells = (density[:, 1:] + density[:, :-1]) / 2 * np.diff(half_log_snr)
    total = np.concatenate([np.zeros((len(knots), 1)), np.cumsum(np.triu(cells), axis=1)], axis=1)
    return np.where(np.triu(np.ones_like(total), 1) > 0, total, math.inf)


def _descend(costs: Costs, path: Sequence[int], sweeps: int | None) -> list[int]:
    """Move each inner knot to the best place between its neighbours, one after the other, ``sweeps`` times."""
    path, before, done = list(path), list[int](), 0
    while path != before and done != sweeps:
        before, done = list(path), done + 1
        for i in range(1, len(path) - 1):
            first, last = path[i - 1], path[i + 1]
            path[i] = first + 1 + int(np.argmin(costs[first, first + 1 : last] + costs[first + 1 : last, last]))
    return path


@door
@in_evaluation_mode
@torch.no_grad()
def fit_gits(
    model: Model,
    start: Annotated[Samples, Rows()],
    steps: Evaluations,
    *,
    solver: str | Solver = "ddim",
    gammas: Sequence[float] = GAMMAS,
    teacher: str | Solver = "dpm-solver-3",
    candidates: GridSpec = "logsnr",
    teacher_steps: Evaluations = 100,
    **conditions: Any,
) -> tuple[float, ...]:
    r"""GITS: the times along an accurate trajectory between which DDIM steps err least, by dynamic programming.

    With y = x/α and κ = σ/α, a DDIM step from knot i of the teacher's trajectory to knot j errs by

        c_ij = mean ‖y_i + (κ_j − κ_i) ε(x_i, t_i) − y_j‖

    and the knots i_0 … i_N are those of least c_{i_0 i_1} + γ (c_{i_1 i_2} + γ (c_{i_2 i_3} + …)) (Chen et al. 2024,
    "On the trajectory regularity of ODE-based diffusion sampling"; the default of their code is γ = 1.15). γ > 1 says
    that an early error shrinks before the end. How much depends on model, solver and N, so of several γ the one
    is taken whose run with ``solver`` ends nearest the teacher's.

    Args:
        model: a ``ScoreModel``, or what wraps one. Evaluated by the teacher, once more at each candidate,
            and by a run of ``solver`` for each γ.
        start: states at t_max [n, *event], as for ``sample``: σ(t_max) times normal numbers. The paper takes 256.
        steps: how many steps the grid has; it returns one time more.
        solver: the deterministic solver that will use the grid.
        gammas: the γ to try, each positive.
        teacher: the solver of the accurate trajectory, deterministic.
        candidates: the teacher's grid, and the times to choose from.
        teacher_steps: its steps, where ``candidates`` is a name.
        conditions: passed to the network.

    Raises ValueError for a teacher that diverges or a solver that draws noise, counts too small, no γ, and a bad grid.

    >>> from sdekit.process import VP
    >>> from sdekit.targets import Gaussian
    >>> model = Gaussian(torch.zeros(2), torch.eye(2)).model(VP())
    >>> times = fit_gits(model, torch.randn(16, 2), 5, teacher_steps=50)
    >>> len(times), times[0], times[-1]
    (6, 1.0, 0.001)
    """
    check_count("steps", steps, 1, "a grid has at least one step")
    _check_samples("start", start)
    _check_deterministic(solver=solver, teacher=teacher)
    if not gammas or not all(0 < gamma < math.inf for gamma in gammas):
        raise ValueError(f"gammas={tuple(gammas)}: at least one is needed, each positive and finite")
    if not isinstance(candidates, str):
        if len(candidates) <= steps:
            raise ValueError(f"candidates: {len(candidates)} times given, of which {steps} steps need {steps + 1}")
        teacher_steps = len(candidates) - 1
    check_count("teacher_steps", teacher_steps, steps, f"the grid's {steps} steps end on the teacher's times")
    knots = Grid.make(model.process, candidates, teacher_steps).knots
    times = [knot.t for knot in knots]
    conditions = as_rows(model, conditions, len(start))
    states = _run(model, start, teacher, times, conditions, keep="all")
    _check_finite(f"the trajectory of teacher={get(teacher).name!r}", states, knots)
    costs = _euler_errors(model, states, knots, conditions)
    grids = list(dict.fromkeys(tuple(times[i] for i in _cheapest(costs, steps, gamma)) for gamma in gammas))
    if len(grids) == 1:
        return grids[0]
    ends = [_run(model, start, solver, grid, conditions)[-1] for grid in grids]
    errors = torch.stack([(end - states[-1]).double().square().mean() for end in ends])
    return grids[int(errors.nan_to_num(math.inf).argmin())]


def _run(
    model: Model,
    start: Tensor,
    solver: str | Solver,
    times: Sequence[float],
    conditions: dict[str, Any],
    keep: str = "last",
) -> Tensor:
    """The states at the run's knots, or its last alone [times or 1, n, *event]."""
    out = sample(model, start.shape, solver=solver, grid=times, start=start, final="none", keep=keep, **conditions)
    return out.x[None] if out.trajectory is None else out.trajectory


def _euler_errors(model: Model, states: Tensor, knots: Sequence[Knot], conditions: dict[str, Any]) -> Costs:
    y = torch.stack([x / knot.alpha for x, knot in zip(states, knots)])
    costs = np.full((len(knots), len(knots)), math.inf)
    for i, knot in enumerate(knots[:-1]):
        eps = model.predict("eps", states[i], knot.t, **conditions)
        change = [math.exp(-later.half_log_snr) - math.exp(-knot.half_log_snr) for later in knots[i + 1 :]]
        ahead = torch.tensor(change, dtype=y.dtype, device=y.device).reshape(-1, *[1] * eps.ndim)
        costs[i, i + 1 :] = (y[i] + ahead * eps - y[i + 1 :]).flatten(2).double().norm(dim=2).mean(1).cpu().numpy()
    return costs


def _cheapest(costs: Costs, steps: int, gamma: float) -> list[int]:
    """The path from the first to the last knot in ``steps`` steps of least c_1 + γ (c_2 + γ (c_3 + …))."""
    to_go, choices = costs[:, -1], list[np.ndarray]()
    for _ in range(steps - 1):
        through = costs + gamma * to_go  # [i, j]: on to j, and from there as cheaply as can be
        choices.append(through.argmin(axis=1))
        to_go = through.min(axis=1)
    path = [0]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return [*path, len(costs) - 1]


def _check_deterministic(**solvers: str | Solver) -> None:
    for role, spec in solvers.items():
        try:
            solver = get(spec)
        except ValueError as error:
            raise ValueError(f"{role}: {error}") from None
        if solver.stochastic:
            raise ValueError(f"{role}={solver.name!r} draws noise: a trajectory needs a deterministic solver")


def _check_samples(name: str, x: Tensor) -> None:
    if x.ndim == 0 or not x.numel() or not x.is_floating_point():
        raise ValueError(
            f"{name} has shape {list(x.shape)} and dtype {x.dtype}: it must be floating-point [n, *event], not empty"
        )
    if not bool(x.isfinite().all()):
        raise ValueError(f"{name} holds NaN or infinity: every entry must be finite")


def _check_finite(what: str, values: Sequence[Tensor] | Tensor, knots: Sequence[Knot]) -> None:
    for value, knot in zip(values, knots):
        if not bool(value.isfinite().all()):
            raise ValueError(f"{what} holds NaN or infinity at t={knot.t}: it diverged, finite values are needed")
