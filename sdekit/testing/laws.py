r"""What every solver must obey, measured against truths that no solver computes.

Order: deterministic runs on a 1-D mixture are compared with the exact flow map, which in one dimension is the
monotone rearrangement F_s^{-1}(F_t(x)) of the marginals' distribution functions. Stochastic runs on Gaussian data are
affine in the start and the noise, so their mean and variance are exact numbers, without Monte Carlo:
``gaussian_moments``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor

from sdekit.grid import GridSpec
from sdekit.model import ScoreModel
from sdekit.process import VE, VP, Process, match
from sdekit.sampling import march, sample
from sdekit.solvers import Plan, Solver, get
from sdekit.targets import GaussianMixture

_MEANS, _STD, _WEIGHTS = (-1.5, 0.3, 1.0), 0.35, (0.3, 0.5, 0.2)
_PROCESS = VP(t_min=0.02)
_EXACT = torch.float64
_STARTS = np.linspace(-2.0, 2.0, 17)


def _mixture(means: tuple[float, ...] = _MEANS, std: float = _STD) -> GaussianMixture:
    centres = torch.tensor(means, dtype=torch.float64)[:, None]
    return GaussianMixture(centres, std, weights=torch.tensor(_WEIGHTS, dtype=torch.float64))


def _distribution(x: np.ndarray, t: float, process: Process) -> np.ndarray:
    """The distribution function of the mixture's marginal at time t."""
    std = math.hypot(process.alpha(t) * _STD, process.sigma(t))
    parts = [w * ndtr((x - process.alpha(t) * mean) / std) for mean, w in zip(_MEANS, _WEIGHTS)]
    return np.sum(parts, axis=0)


def exact_flow(x: np.ndarray, t: float, s: float, process: Process) -> np.ndarray:
    """Where the probability-flow ODE of the laws' mixture takes x from t to s, by bisection to rounding.

    >>> bool(abs(exact_flow(np.array([0.3]), 0.5, 0.5, VP()) - 0.3) < 1e-12)
    True
    """
    level = _distribution(x, t, process)
    reach = 60 * max(process.sigma(s), 1.0)
    low, high = np.full_like(x, -reach), np.full_like(x, reach)
    for _ in range(100):
        middle = (low + high) / 2
        below = _distribution(middle, s, process) < level
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def flow_error(solver: Solver | str, steps: int, grid: GridSpec = "logsnr", process: Process = _PROCESS) -> float:
    """Largest error of a deterministic solver at t_min against the exact flow map of the laws' mixture."""
    truth = exact_flow(_STARTS, process.t_max, process.t_min, process)
    start = torch.tensor(_STARTS)[:, None]
    model = _mixture().model(process)
    out = sample(model, start.shape, solver=solver, steps=steps, grid=grid, start=start, final="none")
    return float(np.abs(out.x[:, 0].numpy() - truth).max())


def gaussian_moments(plan: Plan, process: Process, mean: float, std: float) -> tuple[float, float]:
    """Mean and standard deviation of a plan's result on data N(mean, std²), exactly, starting from the true p_T.

    The result is affine in the start and in each z: the plan runs once on the vector of those coefficients.

    >>> plan = get("ddim").plan(VP(), nfe=1000, final="none")
    >>> m, s = gaussian_moments(plan, VP(), mean=1.0, std=0.5)
    >>> abs(m - VP().alpha(1e-3)) < 0.01
    True
    """
    count = len(plan.intervals)
    one, first, *rest = torch.eye(count + 2, dtype=torch.float64)

    def net(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = match(process.alpha(t), x), match(process.sigma(t), x)
        return sigma * (x - alpha * mean * one) / (alpha**2 * std**2 + sigma**2)

    def draw(start: float, end: float) -> Tensor:
        return rest[plan.intervals.index((start, end))][None]

    here = plan.start
    x = (here.alpha * mean * one + math.hypot(here.alpha * std, here.sigma) * first)[None]
    for _, x in march(plan, ScoreModel(net, process), x, draw):  # noqa: B007
        pass
    return x[0, 0].item(), x[0, 1:].norm().item()


def moment_error(solver: Solver | str, steps: int, grid: GridSpec = "logsnr", process: Process = _PROCESS) -> float:
    """Error of mean and standard deviation at t_min on data N(1, 0.25²), the larger of the two."""
    plan = get(solver).plan(process, steps=steps, grid=grid, final="none")
    mean, std = gaussian_moments(plan, process, 1.0, 0.25)
    alpha, sigma = process.alpha(process.t_min), process.sigma(process.t_min)
    return max(abs(mean - alpha), abs(std - math.hypot(0.25 * alpha, sigma)))


def strong_error(solver: Solver | str, steps: int, grid: GridSpec = "logsnr", process: Process = _PROCESS) -> float:
    """RMS distance at t_min between runs of ``steps`` and of twice as many steps on the same 1,024 Brownian paths.

    Runs of strong order p are c n^{−p} apart. The data is a mixture, so that the drift is not linear, of modes that
    overlap: few paths pass near a watershed, where they would outweigh all others.
    """
    model = _mixture((-0.8, 0.2, 0.7), 0.5).model(process)
    coarse, fine = (
        sample(
            model, (1024, 1), solver=solver, steps=n, grid=grid, seed=0, noise="brownian", final="none", dtype=_EXACT
        )
        for n in (steps, 2 * steps)
    )
    return (coarse.x - fine.x).square().mean().sqrt().item()


def measured_order(error: Callable[[int], float], steps: tuple[int, int] = (128, 256)) -> float:
    """The slope of log error against log steps between two step counts, so many that the leading error leads.

    >>> round(measured_order(lambda n: 3.0 / n**2), 6)
    2.0
    """
    coarse, fine = (error(n) for n in steps)
    return math.log(coarse / fine) / math.log(steps[1] / steps[0])


def order_of(solver: Solver | str, process: Process = _PROCESS) -> float:
    """The measured order: of the flow map on the mixture, or of the moments on Gaussian data where it draws noise."""
    rule = get(solver)
    if rule.stochastic:
        return measured_order(lambda steps: moment_error(rule, steps, process=process), (256, 512))
    return measured_order(lambda steps: flow_error(rule, steps, process=process))


def check_order(solver: Solver | str) -> None:
    """The order stated is the order measured, within 0.3; order 0 is an error that more steps do not lower."""
    rule, order = get(solver), order_of(solver)
    assert abs(order - rule.order) < 0.3, f"{rule.name}: order {order:.2f} measured, {rule.order} stated"


def check_strong_order(solver: Solver | str) -> None:
    """A stochastic solver that converges does so path by path, with strong order 1 at least (within 0.3).

    The noise is additive, so that even a first-order step has it; more would need ∫ W inside the steps.
    """
    rule = get(solver)
    if rule.stochastic and rule.order > 0:
        order = measured_order(lambda steps: strong_error(rule, steps), (32, 64))
        assert order > 0.7, f"{rule.name}: strong order {order:.2f} measured"


def check_budget(solver: Solver | str) -> None:
    """``nfe`` is exact for every budget, as planned and as counted at the network."""
    rule = get(solver)
    for nfe in range(2, 4 * rule.evaluations + 6):
        model = ScoreModel(lambda x, t: x, VP())
        out = sample(model, (1, 2), solver=rule, nfe=nfe, seed=0)
        assert out.nfe == model.nfe == nfe, f"{rule.name}: {model.nfe} evaluations at nfe={nfe}"


def check_constant(solver: Solver | str) -> None:
    """A deterministic exponential solver is exact where the prediction it is written for is constant."""
    rule = get(solver)
    if rule.stochastic or rule.predicts not in ("eps", "x0", "flow"):
        return
    x = torch.tensor([[0.7]], dtype=torch.float64)
    for steps in (1, 2, 3, 7):
        plan = rule.plan(_PROCESS, steps=steps, final="none")
        model = ScoreModel(lambda x, t: torch.full_like(x, 0.3), _PROCESS, predicts=rule.predicts)
        *_, (end, out) = march(plan, model, x, _no_noise)
        start = plan.start
        truth = {
            "eps": end.alpha / start.alpha * (0.7 - start.sigma * 0.3) + end.sigma * 0.3,
            "x0": end.sigma / start.sigma * (0.7 - start.alpha * 0.3) + end.alpha * 0.3,
            "flow": 0.7 + (end.t - start.t) * 0.3,
        }[rule.predicts]
        assert abs(out.item() - truth) < 1e-12 * max(1.0, start.sigma / start.alpha), f"{rule.name}: {steps} steps"


def check_noise(solver: Solver | str) -> None:
    """No noise is drawn by a deterministic solver; a stochastic one draws over intervals that do not overlap.

    So z are independent on a Brownian path as well; noise over a union of intervals is a sum of their draws.
    """
    rule = get(solver)
    plan = rule.plan(_PROCESS, steps=5)
    assert bool(plan.intervals) == rule.stochastic
    reached = plan.start.half_log_snr
    for start, end in sorted(plan.intervals):
        assert reached <= start < end, f"{rule.name}: noise over [{start}, {end}] overlaps what ends at {reached}"
        reached = end


def check_prediction(solver: Solver | str) -> None:
    """The samples do not depend on what the network predicts."""
    results = [
        sample(_mixture().model(_PROCESS, predicts), (5, 1), solver=solver, nfe=12, seed=1, dtype=torch.float64).x
        for predicts in ("eps", "x0", "score", "v", "flow")
    ]
    for other in results[1:]:
        assert torch.allclose(results[0], other, rtol=1e-9, atol=1e-9), f"{get(solver).name}: {results[0] - other}"


_VE = VE(
    sigma_min=math.exp(-_PROCESS.half_log_snr(_PROCESS.t_min)),
    sigma_max=math.exp(-_PROCESS.half_log_snr(_PROCESS.t_max)),
)


def check_invariance(solver: Solver | str) -> None:
    """x/α is the same under VP and VE on the same λ, knot by knot, exactly where the solver says so."""
    rule, start = get(solver), torch.tensor(_STARTS)[:, None]
    ends = []
    for process in (_PROCESS, _VE):
        scaled = start * (process.alpha(process.t_max) / _PROCESS.alpha(_PROCESS.t_max))
        out = sample(_mixture().model(process), start.shape, solver=rule, steps=8, grid="logsnr", start=scaled, seed=3)
        ends.append(out.x)  # denoised: α = 1
    equal = torch.allclose(*ends, rtol=1e-9, atol=1e-9)
    assert equal == rule.invariant, f"{rule.name}: VP and VE agree: {equal}; the solver says invariant={rule.invariant}"


def _no_noise(start: float, end: float) -> Tensor:
    raise AssertionError(f"noise over [{start}, {end}] drawn by a deterministic solver")


LAWS = (check_order, check_strong_order, check_budget, check_constant, check_noise, check_prediction, check_invariance)


def check_solver(solver: Solver | str) -> None:
    """Hold a solver, one's own or a registered one, to every law; raises AssertionError with what was measured.

    >>> check_solver("ddim")
    """
    for law in LAWS:
        law(solver)
