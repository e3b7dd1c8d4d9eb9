r"""DPM-Solver-v3: an exponential multistep method whose coefficients are fitted to a model (Zheng et al. 2023).

With y = x/α and coefficients l, s, b of λ, one for each element of the data, the probability-flow ODE
dy/dλ = −e^{−λ} ε takes the linear part l off the network,

    f = e^{−λ} (ε − (l/σ) x),     dy/dλ = −l y − f                                              (eq. 4)

and what is extrapolated over a step from λ_s is not f but the g that changes least where f' ≈ s f + b:

    g(λ) = e^{−∫s} f − ∫ e^{−∫s} b dr,     integrals from λ_s                                        (eq. 8)
    x_t = α_t e^{−∫l} [x_s/α_s − ∫ e^{∫(l+s)} (g(λ) + ∫ e^{−∫s} b dr) dλ],     from λ_s to λ_t         (eq. 9)

with g the polynomial in λ through its last values. (l, s, b) = (0, −1, 0) extrapolates ε, (1, 0, 0) x_0. The
``Statistics`` of a model are its l, s and b; ``sdekit.model_statistics`` estimates them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdekit.door import door
from sdekit.files import read_tensors, write_tensors
from sdekit.grid import Grid
from sdekit.names import OneOf, check_options, options_of
from sdekit.process import Knot, Process
from sdekit.process.description import build_process, describe_process
from sdekit.solvers.registry import FITTED, Solver, full_steps
from sdekit.solvers.tableau import Coefficient, Row

Array = np.ndarray | np.float64  # numpy makes one of an array without dimensions
Curve = Callable[[Any], Any]

NAME = "dpm-solver-v3"
FITTED[NAME] = "sdekit.solvers.fit_dpm_v3(model, data)"

# Gauss-Legendre on [0, 1] for each cell between two knots of the statistics, where they are polynomials
_POINTS, _WEIGHTS = (np.polynomial.legendre.leggauss(8)[0] + 1) / 2, np.polynomial.legendre.leggauss(8)[1] / 2
# [j, i]: the integral from 0 to point j of the polynomial that is 1 at point i and 0 at the others
_INNER = (_POINTS[:, None] ** np.arange(1, 9) / np.arange(1, 9)) @ np.linalg.inv(np.vander(_POINTS, increasing=True))


@door
@dataclass(frozen=True, eq=False)
class Statistics:
    """A model's l, s and b at some λ, cubic splines between them (Zheng et al. 2023, eq. 5 and 11).

    Attributes:
        process: the process of the model.
        half_log_snr: λ [knots], increasing, from the process's t_max to its t_min; at least 4.
        linear, scaling, bias: l, s and b [knots, *event] in the paper's normalisation. Without event, [knots], they
            are the same for every element of any data.

    Tensors are kept in float64 on the CPU. Raises ValueError for shapes that differ, knots that do not increase or do
    not span the process's range, and values that are not finite.

    >>> from sdekit.process import VP
    >>> ends = [VP().half_log_snr(t) for t in (1.0, 1e-3)]
    >>> half_log_snr = torch.linspace(*ends, 20, dtype=torch.float64)
    >>> zero = torch.zeros(20)
    >>> Statistics(VP(), half_log_snr, zero + 1, zero, zero).solver(order=2).plan(VP(), nfe=5).nfe
    5
    """

    process: Process
    half_log_snr: Tensor = field(repr=False)
    linear: Tensor = field(repr=False)
    scaling: Tensor = field(repr=False)
    bias: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        for name in ("half_log_snr", "linear", "scaling", "bias"):
            object.__setattr__(self, name, getattr(self, name).detach().cpu().double())
        _check(self)

    @property
    def event(self) -> torch.Size:
        """The data's shape; empty where the statistics are the same for every element."""
        return self.linear.shape[1:]

    def solver(self, **options: Any) -> Solver:
        """DPM-Solver-v3 with these statistics: a value for ``solver=``; the options are those of ``rows``.

        Raises ValueError for an unknown option or value. What it returns raises it for a model of another process, and
        for data of another shape.
        """
        known = options_of(Statistics.rows)
        check_options(NAME, known, options)
        chosen = {name: options.get(name, option.default) for name, option in known.items()}
        given = tuple(sorted((name, value) for name, value in options.items() if value != known[name].default))
        paper = "Zheng et al. 2023 (DPM-Solver-v3), algorithm 2"
        order, split = _order(**chosen), full_steps(1)
        return Solver(NAME, self.rows, order, "eps", 1, paper, split, options=given, process=self.process)

    def rows(
        self,
        grid: Grid,
        *,
        order: Annotated[int, OneOf(1, 2, 3)] = 3,
        predictor: Annotated[str, OneOf("full", "pseudo")] = "full",
        corrector: Annotated[str, OneOf("none", "full", "pseudo")] = "full",
        half: Annotated[bool, OneOf(False, True)] = False,
        lower_order_final: Annotated[bool, OneOf(False, True)] = True,
    ) -> Iterator[Row]:
        """x_t = α_t e^{−∫l} [x_s/α_s − ∫ e^{∫(l+s)} (g + ∫ e^{−∫s} b) dλ], g extrapolated from its last values.

        Args:
            order: how many values of g the predictor uses; the first steps have those there are.
            predictor: "pseudo" takes the k-th derivative from the last k + 1 values alone (eq. 15).
            corrector: "full" makes each step once more with as many values, that at its end among them, which the next
                step needs anyway; "pseudo" with one value more, as "pseudo" in ``predictor``. The last step is not
                corrected.
            half: correct only where t ≤ t_max/2, for large guidance scales (section 3.3; the released code corrects
                only where t > 0.5).
            lower_order_final: let the order fall to 1 towards the last step, as the released code does by default.
                With few steps on a grid whose last ones are large in λ that saves the run; it caps the order at 2.
        """
        if grid.process != self.process:
            raise ValueError(f"solver {NAME!r} was fitted for {self.process}: the model's process is {grid.process}")
        made: list[Knot] = []  # where each prediction was made, newest first
        steps = list(grid)
        for i, (s, t, _) in enumerate(steps):
            fresh = made[:1] != [s]
            made = [s, *made] if fresh else made
            count = min(order, len(made), len(steps) - i if lower_order_final else order)
            values = count + (corrector == "pseudo")  # that the corrector uses
            wanted = corrector != "none" and values > 1 and (not half or t.t <= self.process.t_max / 2)
            corrects = wanted and i < len(steps) - 1
            step = _Step(self, s, t, max(count, values))
            yield step.row(made, made[:count], predictor == "pseudo", evaluate=fresh, commit=not corrects)
            if corrects:
                past, made = made[1 : values - 1], [t, *made]
                yield step.row(made, [s, t, *past], corrector == "pseudo", evaluate=True, commit=True)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the statistics to a .safetensors file, whole or not at all.

        Raises ValueError where the process is one of your own, which a file cannot hold.
        """
        description = describe_process(self.process)
        build_process(description)  # refuses what ``load`` would refuse
        tensors = {name: getattr(self, name) for name in ("half_log_snr", "linear", "scaling", "bias")}
        write_tensors(path, tensors, {"process": json.dumps(description)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Statistics:
        """The statistics that ``save`` wrote.

        Raises ValueError for a file that is missing, damaged or not written by ``save``.
        """
        tensors, header = read_tensors(path)
        if "process" not in header or set(tensors) != {"half_log_snr", "linear", "scaling", "bias"}:
            raise ValueError(f"path={os.fspath(path)!r} holds no statistics; Statistics.save writes them")
        return cls(build_process(json.loads(header["process"])), **tensors)

    @cached_property
    def curves(self) -> Curves:
        """The splines through the statistics."""
        from scipy.interpolate import CubicSpline  # takes 0.15 s, which no other solver needs

        arrays = (getattr(self, name).numpy() for name in ("linear", "scaling", "bias"))
        linear, scaling, bias = (CubicSpline(self.half_log_snr.numpy(), array) for array in arrays)
        return Curves(linear, scaling, bias, linear.antiderivative(), scaling.antiderivative())


class Curves(NamedTuple):
    """l, s and b as functions of λ, and the integrals of l and s; each takes any array of λ to [*λ, *event]."""

    linear: Curve
    scaling: Curve
    bias: Curve
    linear_integral: Curve
    scaling_integral: Curve


class _Step:
    """The integrals of one step from s to t, over [λ_s, λ_t], to rounding."""

    @np.errstate(over="ignore", invalid="ignore")  # ``row`` refuses what is not finite
    def __init__(self, statistics: Statistics, s: Knot, t: Knot, count: int) -> None:
        self.statistics, self.s, self.t = statistics, s, t
        curves = statistics.curves
        self.h = t.half_log_snr - s.half_log_snr
        points, widths = self._cells(t)
        weights = widths[:, None] * _WEIGHTS
        # e^{∫(l + s)}, and the integral of e^{−∫s} b up to each point
        linear = curves.linear_integral(points) - curves.linear_integral(s.half_log_snr)
        growth = np.exp(linear + curves.scaling_integral(points) - curves.scaling_integral(s.half_log_snr))
        bias = self._scaled_bias(points)
        cells = np.tensordot(_WEIGHTS, bias, axes=(0, 1)) * _over(widths, bias[:, 0])
        within = np.moveaxis(np.tensordot(_INNER, bias, axes=(1, 1)), 0, 1) * _over(widths, bias)
        drift = (np.cumsum(cells, axis=0) - cells)[:, None] + within
        self.drift = np.tensordot(weights, growth * drift, axes=2)
        u = (points - s.half_log_snr) / self.h
        self.moments = np.stack([np.tensordot(weights * u**k, growth, axes=2) for k in range(count)])
        decay = np.exp(curves.linear_integral(s.half_log_snr) - curves.linear_integral(t.half_log_snr))
        self.scale = t.alpha * decay

    def _cells(self, end: Knot) -> tuple[np.ndarray, np.ndarray]:
        """Gauss points [cells, 8] between λ_s and λ at ``end``, cut at the statistics' knots; the cells' widths."""
        a, b = self.s.half_log_snr, end.half_log_snr
        knots = self.statistics.half_log_snr.numpy()
        inner = knots[(knots > min(a, b)) & (knots < max(a, b))]
        edges = np.concatenate([[a], inner if a < b else inner[::-1], [b]])
        widths = np.diff(edges)
        return edges[:-1, None] + widths[:, None] * _POINTS, widths

    def _scaled_bias(self, points: np.ndarray) -> np.ndarray:
        """e^{−∫s} b at each point, the integral from λ_s."""
        curves = self.statistics.curves
        lost = curves.scaling_integral(self.s.half_log_snr) - curves.scaling_integral(points)
        return np.exp(lost) * curves.bias(points)

    def _of_g(self, knot: Knot) -> tuple[Array, Array]:
        """What to multiply F = ε − (l/σ)x at this knot with, and what to subtract, for g."""
        points, widths = self._cells(knot)
        offset = np.tensordot(widths[:, None] * _WEIGHTS, self._scaled_bias(points), axes=2)
        scaling = self.statistics.curves.scaling_integral
        lost = scaling(self.s.half_log_snr) - scaling(knot.half_log_snr)
        return np.exp(lost - knot.half_log_snr), offset

    @np.errstate(over="ignore", invalid="ignore")
    def row(self, made: Sequence[Knot], nodes: Sequence[Knot], pseudo: bool, *, evaluate: bool, commit: bool) -> Row:
        """x at t from the polynomial through g at ``nodes``, s first; they are the newest that were ``made``."""
        offsets = [(knot.half_log_snr - self.s.half_log_snr) / self.h for knot in nodes]
        weights = np.tensordot(_taylor(offsets, pseudo).T, self.moments[: len(nodes)], axes=1)
        gains, biases = zip(*map(self._of_g, nodes))
        history = {knot: -self.scale * weight * gain for knot, weight, gain in zip(nodes, weights, gains)}
        shift = -self.scale * (self.drift - sum(weight * bias for weight, bias in zip(weights, biases)))
        if not all(np.isfinite(value).all() for value in (self.scale, shift, *history.values())):
            largest = self.statistics.scaling.abs().max().item()
            raise ValueError(
                f"solver {NAME!r}: the step from t={self.s.t:.6g} to {self.t.t:.6g} overflows, with s up to"
                f" {largest:.3g} in its statistics; fit them to more samples"
            )
        here = made[0]
        linear = self.statistics.curves.linear(here.half_log_snr) / here.sigma if evaluate else None
        return Row(
            to=self.t,
            anchor=_coefficient(self.scale / self.s.alpha),
            history=tuple(_coefficient(history[knot]) for knot in made[: len(nodes)]),
            shift=_coefficient(shift),
            linear=None if linear is None else _coefficient(linear),
            evaluate=evaluate,
            commit=commit,
        )


def _over(widths: np.ndarray, values: np.ndarray) -> np.ndarray:
    """One width for each cell, against values [cells, …]."""
    return widths.reshape(-1, *[1] * (values.ndim - 1))


def _taylor(offsets: Sequence[float], pseudo: bool) -> np.ndarray:
    """[k, i]: Σ_i of this times g at ``offsets`` is g^(k)(0)/k!, eq. 13; from the first k + 1 of them alone, eq. 15."""
    if not pseudo:
        return np.linalg.inv(np.vander(offsets, increasing=True))
    table = np.zeros((len(offsets), len(offsets)))
    for k in range(len(offsets)):
        table[k, : k + 1] = np.linalg.inv(np.vander(offsets[: k + 1], increasing=True))[k]
    return table


def _coefficient(value: Array) -> Coefficient:
    return float(value) if np.ndim(value) == 0 else torch.from_numpy(np.ascontiguousarray(value))


def _order(order: int, predictor: str, corrector: str, half: bool, lower_order_final: bool) -> int:
    """The global order; a test measures it."""
    predicted = min(order, 2) if predictor == "pseudo" else order  # the paper, after theorem 3.4
    corrected = {"none": predicted, "full": order, "pseudo": 2}[corrector]
    least = min(corrected, predicted) if half else corrected
    return min(least, 2) if lower_order_final else least


def _check(statistics: Statistics) -> None:
    at, process = statistics.half_log_snr, statistics.process
    shapes = {name: list(getattr(statistics, name).shape) for name in ("linear", "scaling", "bias")}
    if at.ndim != 1 or len(at) < 4:
        raise ValueError(f"half_log_snr has shape {list(at.shape)}: it must be [knots], at least 4")
    if shapes["linear"][:1] != [len(at)] or any(shape != shapes["linear"] for shape in shapes.values()):
        raise ValueError(f"linear, scaling and bias have shapes {shapes}: each must be [{len(at)}, *event]")
    if not bool((at.diff() > 0).all()):
        raise ValueError("half_log_snr: it must increase strictly, without NaN")
    span = (process.half_log_snr(process.t_max), process.half_log_snr(process.t_min))
    if not (at[0] <= span[0] + 1e-9 and at[-1] >= span[1] - 1e-9):
        raise ValueError(
            f"half_log_snr runs from {at[0]:.6g} to {at[-1]:.6g}: it must span {span[0]:.6g} to {span[1]:.6g}"
        )
    for name in shapes:
        finite = getattr(statistics, name).reshape(len(at), -1).isfinite().all(1)
        if not bool(finite.all()):
            t = process.t_of_half_log_snr(float(at[int(finite.int().argmin())]))
            raise ValueError(f"{name} holds NaN or infinity at t={t:.6g}: the model's predictions there must be finite")
