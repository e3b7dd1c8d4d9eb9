r"""What every forward process must obey, measured on its own formulas as black boxes.

x_t = α(t) x_0 + σ(t) ε is stated twice: as α, σ, λ, and as the SDE dx = f x dt + g dw. The laws hold the one against
the other, both against the inverse of λ, floats against tensors, and a run of a solver against the exact moments.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sdekit.process import Process
from sdekit.solvers import get
from sdekit.testing.laws import gaussian_moments

_FORMULAS = ("log_alpha", "log_sigma", "alpha", "sigma", "half_log_snr", "drift_rate", "diffusion")
_COUNT = 64


def _times(process: Process) -> list[float]:
    """Times between the ends, no simple fraction of the range: a table's kinks are at those."""
    marks = [(i + 0.5 + 0.25 * math.sin(i)) / _COUNT for i in range(_COUNT)]
    return [process.t_min + mark * (process.t_max - process.t_min) for mark in marks]


def _close(value: float, truth: float, relative: float, absolute: float = 0.0) -> bool:
    return abs(value - truth) <= relative * abs(truth) + absolute


def check_range(process: Process) -> None:
    """0 ≤ t_min < t_max, and α, σ, λ finite at both."""
    missing = [name for name in ("t_min", "t_max") if not hasattr(process, name)]
    assert not missing, (
        f"{type(process).__name__} has no {' and no '.join(missing)}: a process states its range of times"
    )
    for name in _FORMULAS:
        value = getattr(process, name)(0.5 * (process.t_min + process.t_max))
        assert isinstance(value, float), f"{name}: a float must give a float, got {value!r}"
    assert 0 <= process.t_min < process.t_max < math.inf, f"t_min={process.t_min}, t_max={process.t_max}"
    for t in (process.t_min, process.t_max):
        knot = process.knot(t)
        finite = 0 < knot.alpha < math.inf and 0 < knot.sigma < math.inf and math.isfinite(knot.half_log_snr)
        assert finite, f"at t={t}: {knot}"


def check_levels(process: Process) -> None:
    """λ strictly decreases from t_min to t_max, and ``t_of_half_log_snr`` inverts it."""
    times = [process.t_min, *_times(process), process.t_max]
    levels = [process.half_log_snr(t) for t in times]
    for t, s, later, earlier in zip(times, times[1:], levels, levels[1:]):
        assert later > earlier, f"half_log_snr must fall with t: {later} at t={t}, {earlier} at t={s}"
    for t, level in zip(times, levels):
        back = process.half_log_snr(process.t_of_half_log_snr(level))
        assert _close(back, level, 1e-9, 1e-9), f"t_of_half_log_snr: λ({t}) = {level} comes back as {back}"


def check_kinds(process: Process) -> None:
    """A float gives a float, and a float64 tensor its values in its shape."""
    times = _times(process)
    for name, points in [*((name, times) for name in _FORMULAS), ("t_of_half_log_snr", _levels(process))]:
        formula = getattr(process, name)
        values = [formula(point) for point in points]
        result = _of_tensor(formula, name, points)
        for point, value, other in zip(points, values, result.tolist()):
            assert _close(other, value, 1e-9, 1e-11), f"{name}({point}) = {value} for a float, {other} for a tensor"


def check_single_precision(process: Process) -> None:
    """α and σ in float32 are those in float64, to some roundings of t and of the result.

    1 − e^{2 log α} loses most digits of σ² where σ is small; ``expm1`` and ``log1p`` do not.
    """
    for name in ("alpha", "sigma"):
        for t in _times(process):
            single = torch.tensor(t)
            value, (exact, slope) = getattr(process, name)(single).item(), _with_slope(process, name, single.item())
            roundings = 1 + abs(t * slope / exact)
            assert _close(value, exact, 2e-6 * roundings), f"{name}({t}) = {value} in float32, {exact} in float64"


def _of_tensor(formula: Callable[[Tensor], Tensor], name: str, points: list[float]) -> Tensor:
    times = torch.tensor(points, dtype=torch.float64)
    try:
        result = formula(times)
    except (TypeError, ValueError, RuntimeError) as error:
        raise AssertionError(f"{name}: it must take a tensor too (see sdekit.elementwise), but: {error}") from error
    right = isinstance(result, Tensor) and result.shape == times.shape and result.dtype == times.dtype
    assert right, f"{name}: for a tensor it must give a tensor of its shape and dtype, got {result}"
    return result


def _levels(process: Process) -> list[float]:
    return [process.half_log_snr(t) for t in _times(process)]


def _with_slope(process: Process, name: str, t: float) -> tuple[float, float]:
    time = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    value = getattr(process, name)(time)
    if not value.requires_grad:  # a constant
        return value.item(), 0.0
    return value.item(), torch.autograd.grad(value, time)[0].item()


def check_rates(process: Process) -> None:
    """f = d log α/dt and g² = −2σ² dλ/dt (Kingma et al. 2021, appendix), the slopes by autograd."""
    for t in _times(process):
        _, slope = _with_slope(process, "log_alpha", t)
        f = process.drift_rate(t)
        assert _close(f, slope, 1e-7, 1e-11), f"drift_rate({t}) = {f}, but d log_alpha/dt = {slope}"
        _, slope = _with_slope(process, "half_log_snr", t)
        g, truth = process.diffusion(t), math.sqrt(max(0.0, -2 * process.sigma(t) ** 2 * slope))
        assert _close(g, truth, 1e-7, 1e-11), f"diffusion({t}) = {g}, but sqrt(−2σ² dλ/dt) = {truth}"


def check_transition(process: Process) -> None:
    """From t_min to t by way of s is from t_min to t, and leads from one marginal to the other."""
    start = process.t_min
    for s, t in _pairs(process):
        (a, v), (b, w), (c, u) = process.transition(start, s), process.transition(s, t), process.transition(start, t)
        assert _close(a * b, c, 1e-9), f"transition: scales from {start} to {s} to {t} are {a}·{b}, directly {c}"
        assert _close(math.hypot(b * v, w), u, 1e-6), f"transition: stds by way of s={s} and directly to t={t} differ"
        assert _close(math.hypot(c * process.sigma(start), u), process.sigma(t), 1e-9), f"transition to t={t}: sigma"


def _pairs(process: Process) -> Iterator[tuple[float, float]]:
    times = _times(process)
    return zip(times[::8], times[5::8])


def check_runs(process: Process) -> None:
    """On data N(1, 0.25²) DDIM brings the exact moments at t_max to those at t_min, with an error that halves.

    By the exact moments of its table, without Monte Carlo; the grid is uniform in λ.
    """
    alpha, sigma = process.alpha(process.t_min), process.sigma(process.t_min)
    errors = []
    for steps in (200, 400):
        plan = get("ddim").plan(process, steps=steps, final="none")
        mean, std = gaussian_moments(plan, process, 1.0, 0.25)
        errors.append(max(abs(mean - alpha), abs(std - math.hypot(0.25 * alpha, sigma))))
    assert errors[1] < 0.6 * errors[0] < 0.06, f"ddim: errors of the moments {errors} with 200 and 400 steps"


def check_change(process: Process) -> None:
    """Where the process lets its ``t_max`` be set, a table made afterwards starts there."""
    changed, t_max = copy.copy(process), 0.5 * (process.t_min + process.t_max)
    get("ddim").plan(changed, steps=2)
    try:
        changed.t_max = t_max
    except AttributeError:  # frozen, as a process best is
        return
    start = get("ddim").plan(changed, steps=2).start.t
    assert start == t_max, f"t_max was set to {t_max}, but a table made after that starts at {start}"


PROCESS_LAWS = (
    check_range,
    check_levels,
    check_kinds,
    check_single_precision,
    check_rates,
    check_transition,
    check_runs,
    check_change,
)


def check_process(process: Process) -> None:
    """Hold a process, one's own or the package's, to every law; raises AssertionError with what was measured.

    >>> from sdekit.process import VP
    >>> check_process(VP())
    """
    for law in PROCESS_LAWS:
        law(process)
