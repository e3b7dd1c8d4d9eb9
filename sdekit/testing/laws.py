r"""What every solver must obey, measured against truths that no solver computes.

Order: deterministic runs on a 1-D mixture are compared with the exact flow map, which in one dimension is the
monotone rearrangement F_s^{-1}(F_t(x)) of the marginals' distribution functions. Stochastic runs on Gaussian data are
affine in the start and the noise, so their mean and variance are exact numbers, without Monte Carlo:
``gaussian_moments``.

Equal steps hide what a method forgets: the ratio of its steps in its weights, the length of this one in its noise. So
the laws hold on equal steps in λ and on uneven ones: ``SPACINGS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor

from sdekit.grid import GridSpec
from sdekit.model import ScoreModel
from sdekit.process import VE, VP, Flow, Process, match
from sdekit.sampling import march, sample
from sdekit.solvers import Plan, Solver, get
from sdekit.targets import GaussianMixture

_MEANS, _STD, _WEIGHTS = (-1.5, 0.3, 1.0), 0.35, (0.3, 0.5, 0.2)
_PROCESS = VP(t_min=0.02)
_FLOW = Flow(t_min=0.1, t_max=0.98)
_EXACT = torch.float64
_STARTS = np.linspace(-2.0, 2.0, 17)


Spacing = Callable[[Process, int], GridSpec]
*_EXPONENTS, _PHASE = np.random.default_rng(8).uniform(size=5).tolist()


def uneven(process: Process, steps: int) -> tuple[float, ...]:
    """Times of uneven steps in λ: a random pattern of four, over and over, laid on a random smooth map.

    Neighbours differ up to 2.5 times however many steps there are, so that weights of equal steps show order 1. (On a
    smooth map alone the ratios tend to 1, and such weights show order 2.) The map makes steps in one part of λ three
    times as long as in another. As the pattern repeats, the error has an expansion in the number of steps and its slope
    is clean, which it is not where each step is drawn anew.

    >>> times = uneven(VP(), 8)
    >>> len(times), times[0], times[-1]
    (9, 1.0, 0.001)
    """
    pattern = [4.0 ** (exponent - 0.5) for exponent in _EXPONENTS]
    ends = np.cumsum([0.0, *np.resize(pattern, steps)])
    angles = 2 * math.pi * (ends / ends[-1] + _PHASE)
    fractions = (angles - angles[0] + 0.5 * (np.sin(angles) - np.sin(angles[0]))) / (2 * math.pi)
    first, last = process.half_log_snr(process.t_max), process.half_log_snr(process.t_min)
    inner = [process.t_of_half_log_snr(first + part * (last - first)) for part in fractions[1:-1].tolist()]
    return (process.t_max, *inner, process.t_min)


SPACINGS: dict[str, Spacing] = {"equal": lambda process, steps: "logsnr", "uneven": uneven}
"""The steps that the laws run on: equal in λ, and ``uneven``."""


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
    means, stds = _moments(plan, process, mean, torch.tensor([std], dtype=_EXACT))
    return means.item(), stds.item()


def _moments(plan: Plan, process: Process, mean: float, stds: Tensor) -> tuple[Tensor, Tensor]:
    """``gaussian_moments`` for several standard deviations of the data [kinds], in one run."""
    numbers = {interval: number for number, interval in enumerate(plan.intervals, start=2)}
    units = torch.eye(len(numbers) + 2, dtype=_EXACT)
    one, first, stds = units[0], units[1], stds[:, None]

    def net(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = match(process.alpha(t), x), match(process.sigma(t), x)
        return sigma * (x - alpha * mean * one) / (alpha**2 * stds**2 + sigma**2)

    def draw(start: float, end: float) -> Tensor:
        return units[numbers[start, end]][None]

    here = plan.start
    x = here.alpha * mean * one + (here.alpha**2 * stds**2 + here.sigma**2).sqrt() * first
    for _, x in march(plan, ScoreModel(net, process), x, draw):  # noqa: B007
        pass
    return x[:, 0], x[:, 1:].norm(dim=1)


def moment_error(solver: Solver | str, steps: int, grid: GridSpec = "logsnr", process: Process = _PROCESS) -> float:
    """Largest error of mean and standard deviation at t_min, on data N(1, 0.25²) and N(1, 0.4²).

    Two kinds of data, since the leading error of one may be near a zero, and the slope is then another's.
    """
    plan = get(solver).plan(process, steps=steps, grid=grid, final="none")
    data = torch.tensor([0.25, 0.4], dtype=_EXACT)
    means, stds = _moments(plan, process, 1.0, data)
    alpha, sigma = process.alpha(process.t_min), process.sigma(process.t_min)
    errors = torch.cat([means - alpha, stds - (alpha**2 * data**2 + sigma**2).sqrt()])
    return errors.abs().max().item()


def strong_error(solver: Solver | str, steps: int, spacing: str = "equal", process: Process = _PROCESS) -> float:
    """RMS distance at t_min between runs of ``steps`` and of twice as many steps on the same 512 Brownian paths.

    Runs of strong order p are c n^{−p} apart. The data is a mixture, so that the drift is not linear, of modes that
    overlap: few paths pass near a watershed, where they would outweigh all others.
    """
    coarse, fine = (_path_ends(get(solver), n, SPACINGS[spacing](process, n), process) for n in (steps, 2 * steps))
    return (coarse - fine).square().mean().sqrt().item()


@lru_cache(maxsize=1)  # the fine run is the next one's coarse
def _path_ends(solver: Solver, steps: int, grid: GridSpec, process: Process) -> Tensor:
    model = _mixture((-0.8, 0.2, 0.7), 0.5).model(process)
    return sample(
        model, (512, 1), solver=solver, steps=steps, grid=grid, seed=0, noise="brownian", final="none", dtype=_EXACT
    ).x


def measured_order(error: Callable[[int], float], steps: tuple[int, int] = (128, 256)) -> float:
    """The slope of log error against log steps between two step counts, so many that the leading error leads.

    >>> round(measured_order(lambda n: 3.0 / n**2), 6)
    2.0
    """
    coarse, fine = (error(n) for n in steps)
    return math.log(coarse / fine) / math.log(steps[1] / steps[0])


def order_of(
    solver: Solver | str, process: Process = _PROCESS, spacing: str = "equal", steps: tuple[int, int] | None = None
) -> float:
    """The measured order: of the flow map on the mixture, or of the moments on Gaussian data where it draws noise.

    ``spacing`` is one of ``SPACINGS``. ``steps`` are usually 256 and 512 for a stochastic solver; for another 128 and
    256 equal ones, or 192 and 384 uneven ones, where the leading error leads later.
    """
    rule, place = get(solver), SPACINGS[spacing]
    error = moment_error if rule.stochastic else flow_error
    usual = (256, 512) if rule.stochastic else {"equal": (128, 256), "uneven": (192, 384)}[spacing]
    return measured_order(lambda n: error(rule, n, place(process, n), process), steps or usual)


def _told(orders: dict[str, float]) -> str:
    """What was measured, for a message.

    >>> _told({"equal": 1.998, "uneven": 1.01})
    'order 2.00 measured on equal steps, 1.01 on uneven ones'
    """
    return "order {equal:.2f} measured on equal steps, {uneven:.2f} on uneven ones".format(**orders)


def check_order(solver: Solver | str) -> None:
    """The order stated is the least one measured, within 0.3; order 0 is an error that more steps do not lower."""
    rule = get(solver)
    orders = {spacing: order_of(rule, spacing=spacing) for spacing in SPACINGS}
    assert abs(min(orders.values()) - rule.order) < 0.3, f"{rule.name}: {_told(orders)}, {rule.order} stated"


def check_strong_order(solver: Solver | str) -> None:
    """A stochastic solver that converges does so path by path, with strong order 1 at least (within 0.3).

    The noise is additive, so that even a first-order step has it; more would need ∫ W inside the steps. One that says
    ``pathwise=False`` does not, on equal or on uneven steps.
    """
    rule = get(solver)
    if rule.stochastic and rule.order > 0:
        orders = {
            spacing: measured_order(lambda n, at=spacing: strong_error(rule, n, at), (32, 64)) for spacing in SPACINGS
        }
        converges = min(orders.values()) > 0.7
        assert converges == rule.pathwise, f"{rule.name}: strong {_told(orders)}; it says pathwise={rule.pathwise}"


def check_convergence(solver: Solver | str) -> None:
    """A solver that is not invariant converges under another process too: its drift is not one process's own."""
    rule = get(solver)
    if rule.order > 0 and not rule.invariant:
        order = order_of(rule, _FLOW, "uneven", (128, 256))
        assert order > 0.7, f"{rule.name}: order {order:.2f} measured under {_FLOW}"


def _settings(rule: Solver) -> tuple[tuple[Process, Spacing], ...]:
    """Equal and uneven steps, under two processes where the solver is not for one."""
    return (rule.process or _PROCESS, SPACINGS["equal"]), (rule.process or _FLOW, uneven)


def check_budget(solver: Solver | str) -> None:
    """``nfe`` is exact for every budget, as planned and as counted at the network."""
    rule = get(solver)
    for process, grid in ((rule.process or VP(), "logsnr"), (rule.process or Flow(), "karras")):
        for nfe in range(2, 4 * rule.evaluations + 6):
            model = ScoreModel(lambda x, t: x, process)
            out = sample(model, (1, 2), solver=rule, nfe=nfe, grid=grid, seed=0)
            assert out.nfe == model.nfe == nfe, f"{rule.name}: {model.nfe} evaluations at nfe={nfe}, grid={grid!r}"


def check_constant(solver: Solver | str) -> None:
    """A deterministic exponential solver is exact where the prediction it is written for is constant."""
    rule = get(solver)
    if rule.stochastic or rule.predicts not in ("eps", "x0", "flow"):
        return
    x = torch.tensor([[0.7]], dtype=torch.float64)
    for process, place in _settings(rule):
        for steps in (1, 2, 3, 7):
            plan = rule.plan(process, steps=steps, grid=place(process, steps), final="none")
            model = ScoreModel(lambda x, t: torch.full_like(x, 0.3), process, predicts=rule.predicts)
            *_, (end, out) = march(plan, model, x, _no_noise)
            start = plan.start
            truth = {
                "eps": end.alpha / start.alpha * (0.7 - start.sigma * 0.3) + end.sigma * 0.3,
                "x0": end.sigma / start.sigma * (0.7 - start.alpha * 0.3) + end.alpha * 0.3,
                "flow": 0.7 + (end.t - start.t) * 0.3,
            }[rule.predicts]
            scale = max(1.0, start.sigma / start.alpha)
            assert abs(out.item() - truth) < 1e-12 * scale, f"{rule.name}: {steps} steps under {process}"


def check_noise(solver: Solver | str) -> None:
    """No noise is drawn by a deterministic solver; a stochastic one draws over intervals that do not overlap.

    So z are independent on a Brownian path as well; noise over a union of intervals is a sum of their draws.
    """
    rule = get(solver)
    for process, place in _settings(rule):
        plan = rule.plan(process, steps=5, grid=place(process, 5))
        assert bool(plan.intervals) == rule.stochastic
        reached = plan.start.half_log_snr
        for start, end in sorted(plan.intervals):
            assert reached <= start < end, f"{rule.name}: noise over [{start}, {end}] overlaps what ends at {reached}"
            reached = end


def check_prediction(solver: Solver | str) -> None:
    """The samples do not depend on what the network predicts."""
    for process, place in _settings(get(solver)):
        results = [
            sample(
                _mixture().model(process, predicts), (5, 1), solver=solver, steps=6, grid=place(process, 6), seed=1,
                dtype=_EXACT,
            ).x
            for predicts in ("eps", "x0", "score", "v", "flow")
        ]  # fmt: skip
        for other in results[1:]:
            assert torch.allclose(results[0], other, rtol=1e-9, atol=1e-9), f"{get(solver).name}: {results[0] - other}"


_VE = VE(
    sigma_min=math.exp(-_PROCESS.half_log_snr(_PROCESS.t_min)),
    sigma_max=math.exp(-_PROCESS.half_log_snr(_PROCESS.t_max)),
)


def check_invariance(solver: Solver | str) -> None:
    """x/α is the same under VP and VE on the same λ, knot by knot, exactly where the solver says so."""
    rule, start = get(solver), torch.tensor(_STARTS)[:, None]
    for name, place in SPACINGS.items():
        ends = []
        for process in (_PROCESS, _VE):
            scaled = start * (process.alpha(process.t_max) / _PROCESS.alpha(_PROCESS.t_max))
            model, grid = _mixture().model(process), place(process, 8)
            ends.append(sample(model, start.shape, solver=rule, steps=8, grid=grid, start=scaled, seed=3).x)  # α = 1
        equal = torch.allclose(*ends, rtol=1e-9, atol=1e-9)
        said = f"the solver says invariant={rule.invariant}"
        assert equal == rule.invariant, f"{rule.name}: VP and VE agree on {name} steps: {equal}; {said}"


def _no_noise(start: float, end: float) -> Tensor:
    raise AssertionError(f"noise over [{start}, {end}] drawn by a deterministic solver")


LAWS = (
    check_order,
    check_strong_order,
    check_convergence,
    check_budget,
    check_constant,
    check_noise,
    check_prediction,
    check_invariance,
)


def check_solver(solver: Solver | str) -> None:
    """Hold a solver, one's own or a registered one, to every law; raises AssertionError with what was measured.

    >>> check_solver("ddim")
    """
    for law in LAWS:
        law(solver)
