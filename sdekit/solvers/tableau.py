r"""A solver's whole run as a table of float64 numbers, and the integrals its entries are made of.

A row computes  x ← a·anchor + Σ_j b_j F_{−j} + Σ_k c_k z_k  where F are the network's predictions, newest
first, and z_k the unit Wiener increment over a stated λ-interval. It may evaluate the network first, at
the knot where x then lies, and it may commit x as the new anchor. That is every explicit solver:

    one-step        evaluate, commit
    multistep       evaluate, commit, several b
    multi-stage     evaluate, evaluate, …, commit at the last
    predictor–corrector   a row that moves x without committing; the next evaluates there and commits
    churn, restart  a row with noise and no evaluation

A solver fitted to a model (DPM-Solver-v3) has coefficients of the data's shape, adds a constant, and remembers of
each prediction what is left when a linear part is taken off: F = prediction − l·x.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from sdekit.door import door
from sdekit.names import Between, OneOf
from sdekit.process import Knot

Coefficient = float | Tensor

DATA = Knot(t=0.0, alpha=1.0, sigma=0.0, half_log_snr=math.inf)
"""Where x lies after the final denoising."""


@door
@dataclass(frozen=True)
class Draw:
    """c·z, with z the unit Wiener increment over [start, end] in λ; equal intervals are the same z.

    Raises ValueError where start is not below end, as times are that were given for λ.

    >>> Draw(1.0, start=0.5, end=-0.5)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: Draw(start=0.5, end=-0.5): start must be below end, both λ = half_log_snr, which rises towards ...
    """

    coefficient: Coefficient
    start: float
    end: float

    def __post_init__(self) -> None:
        if not -math.inf < self.start < self.end < math.inf:
            raise ValueError(
                f"Draw(start={self.start}, end={self.end}): start must be below end, both λ = half_log_snr, which rises"
                " towards the data (times fall)"
            )


@door
@dataclass(frozen=True)
class Row:
    """x ← anchor·(the anchor) + Σ_j history[j]·F_{−j} + shift + Σ noise, after which x lies at ``to``.

    A row that evaluates puts F = prediction − linear·x into the history, x being where the network is evaluated.
    Coefficients are floats, or tensors of the data's shape. Where the x that a row commits is no state of the run to
    look at, ``shown`` makes that of the same anchor and history (``Plan.fused``).
    """

    to: Knot
    anchor: Coefficient
    history: tuple[Coefficient, ...] = ()
    noise: tuple[Draw, ...] = ()
    evaluate: bool = True
    commit: bool = True
    shift: Coefficient | None = None
    linear: Coefficient | None = None
    shown: Row | None = None

    def each_tensor(self, change: Callable[[Tensor], Tensor]) -> Row:
        """The row with ``change`` applied to each coefficient that is a tensor."""

        def one(value: Any) -> Any:
            return change(value) if isinstance(value, Tensor) else value

        noise = tuple(replace(draw, coefficient=one(draw.coefficient)) for draw in self.noise)
        history = tuple(one(value) for value in self.history)
        return replace(
            self, anchor=one(self.anchor), history=history, noise=noise, shift=one(self.shift), linear=one(self.linear)
        )


@door
@dataclass(frozen=True)
class Plan:
    """The rows of a run from ``start``, written for predictions of kind ``predicts``.

    ``print(plan)`` shows the table.

    >>> row = Row(to=DATA, anchor=1.0, history=(-0.5,))
    >>> Plan(Knot(1.0, 1.0, 0.5, math.log(2)), (row,), "eps").nfe
    1
    """

    start: Knot
    rows: tuple[Row, ...]
    predicts: str

    def __post_init__(self) -> None:
        evaluations = 0
        for i, row in enumerate(self.rows):
            evaluations += row.evaluate
            if len(row.history) > evaluations:
                raise ValueError(f"row {i} uses {len(row.history)} predictions, but only {evaluations} were made")
        if not self.rows or not self.rows[-1].commit:
            raise ValueError("the last row of a plan must commit: its x is the result")

    @property
    def nfe(self) -> int:
        """Network evaluations in the plan."""
        return sum(row.evaluate for row in self.rows)

    @property
    def memory(self) -> int:
        """How many past predictions the run holds at most."""
        return max(1, *(len(row.history) for row in self.rows))

    @cached_property
    def intervals(self) -> tuple[tuple[float, float], ...]:
        """The distinct λ-intervals over which noise is drawn, in order of first use."""
        found = dict.fromkeys((draw.start, draw.end) for row in self.rows for draw in row.noise)
        return tuple(found)

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """The coefficients that are tensors, row by row."""
        found: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        for row in self.rows:
            row.each_tensor(note)
        return tuple(found)

    @cached_property
    def fused(self) -> Plan:
        r"""The plan with the same result, to rounding, in fewer combinations.

        A predictor–corrector method makes two states of the anchor x_i after each evaluation:

            x_{i+1} = a x_i + Σ b_j F_{−j}              the corrector, which commits
            y       = c x_{i+1} + Σ d_j F_{−j}          the next predictor, where the next evaluation is made

        Nothing is evaluated between them, so y = c a x_i + Σ (c b_j + d_j) F_{−j}; and rows that start from x_{i+1},
        the next corrector among them, may start from y as well, x_{i+1} being (y − Σ d_j F_{−j})/c. Predictor and
        corrector of a step share their factor, so what divides by c multiplies by it again. x_{i+1} is what the row
        shows, to whom looks. Rows with noise or with coefficients of the data's shape stay as they are.

        >>> from sdekit.process import VP
        >>> from sdekit.solvers import get
        >>> plan = get("unipc-2").plan(VP(), nfe=10, final="none")
        >>> len(plan.rows), len(plan.fused.rows)
        (19, 11)
        """
        rows = list(self.rows)
        for i in range(len(rows)):
            end = next((j + 1 for j in range(i + 1, len(rows)) if rows[j].commit), i)
            if _can_fuse(rows[i:end]):
                rows[i:end] = _fuse(*rows[i:end])
        return self if len(rows) == len(self.rows) else replace(self, rows=tuple(rows))

    def to(self, device: torch.device, dtype: torch.dtype, event: Sequence[int]) -> Plan:
        """The plan for states [n, *event] on that device: its tensors are moved there and cast.

        Raises ValueError where a coefficient is a tensor of another shape than ``event``.

        >>> Plan(DATA, (Row(to=DATA, anchor=torch.ones(3)),), "eps").to(torch.device("cpu"), torch.float32, [2])
        Traceback (most recent call last):
        ValueError: the data has shape [2], but the solver was fitted to data of shape [3]: they must be equal
        """
        for tensor in self.tensors:
            if tensor.shape != torch.Size(event):
                raise ValueError(
                    f"the data has shape {list(event)}, but the solver was fitted to data of shape"
                    f" {list(tensor.shape)}: they must be equal"
                )
        if all(tensor.device == device and tensor.dtype == dtype for tensor in self.tensors):
            return self
        moved = iter(torch.stack(self.tensors).to(dtype).to(device, non_blocking=True).unbind())  # one copy for all
        return replace(self, rows=tuple(row.each_tensor(lambda _: next(moved)) for row in self.rows))

    def __str__(self) -> str:
        lines = [f"x at t={self.start.t:.6g}; F = {self.predicts}; NFE {self.nfe}"]
        lines.append(f"{'to t':>10}  {'evaluate':8}  {'commit':6}  {'anchor':>12}  history (newest first); noise")
        for row in self.rows:
            history = "  ".join(_number(b) for b in row.history)
            noise = "".join(f"  {_number(d.coefficient)} z[{d.start:.4g}, {d.end:.4g}]" for d in row.noise)
            flags = f"{'yes' if row.evaluate else '':8}  {'yes' if row.commit else '':6}"
            fitted = "" if row.shift is None else f"; shift {_number(row.shift).strip()}"
            fitted += "" if row.linear is None else f"; F less {_number(row.linear).strip()}·x"
            noise = f"{';' if noise else ''}{noise}{fitted}"
            lines.append(f"{row.to.t:>10.6g}  {flags}  {_number(row.anchor)}  {history}{noise}")
        return "\n".join(line.rstrip() for line in lines)


def _can_fuse(rows: Sequence[Row]) -> bool:
    """A row that commits, one that predicts from it without an evaluation, and the others that start from it."""
    if len(rows) < 3 or not rows[0].commit or rows[1].evaluate:
        return False
    # no division by a smaller number than what multiplies: it would magnify y's rounding
    return all(map(_plain, rows)) and all(0 <= row.anchor <= rows[1].anchor > 0 for row in rows[2:])


def _plain(row: Row) -> bool:
    numbers = (row.anchor, *row.history)
    return (
        not row.noise and row.shift is None and row.linear is None and not any(isinstance(n, Tensor) for n in numbers)
    )


def _fuse(corrector: Row, predictor: Row, *others: Row) -> list[Row]:
    c = predictor.anchor
    history = _sum(predictor.history, corrector.history, c)
    shown = replace(corrector, evaluate=False)
    fused = [replace(corrector, to=predictor.to, anchor=c * corrector.anchor, history=history, shown=shown)]
    behind = predictor.history
    for row in others:
        behind = (0.0,) * row.evaluate + behind
        part = row.anchor / c
        fused.append(replace(row, anchor=part, history=_sum(row.history, behind, -part)))
    return fused


def _sum(ours: Sequence[Coefficient], others: Sequence[Coefficient], factor: Coefficient) -> tuple[Coefficient, ...]:
    return tuple(a + factor * b for a, b in zip_longest(ours, others, fillvalue=0.0))


def _number(value: Coefficient) -> str:
    return f"tensor{list(value.shape)}" if isinstance(value, Tensor) else f"{value:>12.6g}"


@door
def phi(order: Annotated[int, Between(0, 100)], h: Annotated[float, Between(-700, 700)]) -> float:
    """φ_k(h) = ∫_0^1 e^{(1−u)h} u^{k−1}/(k−1)! du: φ_0 = e^h, φ_{k+1} = (φ_k − 1/k!)/h.

    The functions of exponential integrators (Hochbruck & Ostermann 2010, eq. 2.10), to rounding at any h.

    >>> phi(1, 0.0), phi(2, 0.0), round(phi(1, 1.0) - math.expm1(1.0), 15)
    (1.0, 0.5, 0.0)
    """
    if abs(h) < 1:
        term, total, n = 1 / math.factorial(order), 0.0, order
        while total + term != total:
            total += term
            n += 1
            term *= h / n
        return total
    value = math.exp(h)
    for k in range(order):
        value = (value - 1 / math.factorial(k)) / h
    return value


@door
def exponential(
    kind: Annotated[str, OneOf("eps", "x0")], s: Knot, t: Knot, count: Annotated[int, Between(0, 100)]
) -> tuple[float, list[float]]:
    """The exact step of the probability-flow ODE, for a prediction that is a polynomial in λ between s and t.

    With u = (λ − λ_s)/h, h = λ_t − λ_s (Lu et al. 2022, DPM-Solver proposition 3.1, DPM-Solver++ proposition 4.1):
        eps   x_t = (α_t/α_s) x_s − σ_t h ∫_0^1 e^{(1−u)h} ε(u) du
        x0    x_t = (σ_t/σ_s) x_s + α_t h ∫_0^1 e^{−(1−u)h} x_0(u) du

    Returns the factor of x_s and what the second term is for the predictions u^0 … u^{count − 1}.

    >>> s, t = Knot(1.0, 1.0, 2.0, -math.log(2)), Knot(0.5, 1.0, 1.0, 0.0)
    >>> anchor, (constant,) = exponential("eps", s, t, 1)
    >>> anchor, round(constant, 12)
    (1.0, -1.0)
    """
    h = t.half_log_snr - s.half_log_snr
    anchor, scale, z = {"eps": (t.alpha / s.alpha, -t.sigma, h), "x0": (t.sigma / s.sigma, t.alpha, -h)}[kind]
    return anchor, [scale * h * math.factorial(k) * phi(k + 1, z) for k in range(count)]


@door
def quadrature(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Weights w with Σ_j w_j u_j^k = moments[k]: a linear functional of the polynomial through values at ``nodes``.

    >>> [round(w, 12) for w in quadrature([0.0, -1.0], [1.0, 0.5])]  # Adams-Bashforth
    [1.5, -0.5]
    """
    if len(nodes) != len(moments):
        raise ValueError(f"nodes, moments: {len(nodes)} and {len(moments)} given: there must be as many of each")
    try:
        return np.linalg.solve(np.vander(nodes, increasing=True).T, np.array(moments)).tolist()
    except np.linalg.LinAlgError:
        raise ValueError(f"nodes={list(nodes)}: they must differ") from None
