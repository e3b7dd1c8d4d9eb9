"""The adaptive loop: each sample with its own steps, until all have arrived."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor

from sdekit.adaptive.methods import Control, Field, Knots, Method, Step
from sdekit.adaptive.noise import Noise
from sdekit.elementwise import clock
from sdekit.process import match
from sdekit.sampling import Model

Tally = tuple[int, int]
"""Steps accepted, steps rejected."""

_TINY = 1e-13  # of the largest |u|: a rejected step shorter than this cannot shrink
_ACCEPTED, _ARRIVED, _STUCK = 1, 2, 4


@dataclass(frozen=True)
class Run:
    """What stays the same for all samples and steps; u goes from ``begin`` to ``end``."""

    model: Model
    method: Method
    control: Control
    field: Field
    noise: Noise
    rtol: float
    atol: float
    max_nfe: int
    final: str
    begin: float
    end: float
    shared: Mapping[str, Any]

    def predict(self, kind: str, x: Tensor, t: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        return self.model.predict(kind, x, t, **self.shared, **conditions)

    def nfe(self, accepted: Any, rejected: Any) -> Any:
        """Evaluations of so many steps and of the denoising: a rejected step is tried again from the same ε."""
        steps = accepted * self.method.evaluations + rejected * (self.method.evaluations - 1)
        return steps + (self.final == "denoise")


@dataclass(frozen=True)
class _Active:
    """The samples under way, one row each.

    Their numbers, the state, ε there, x' of the step before, u and t, the step to try next, E of the step before,
    what the noise remembers of here, and their conditions.
    """

    samples: Tensor
    x: Tensor
    F: Tensor
    previous: Tensor
    u: Tensor
    t: Tensor
    h: Tensor
    error: Tensor
    memory: Tensor
    conditions: dict[str, Tensor]

    def rows(self, pick: Tensor) -> _Active:
        tensors = {field.name: getattr(self, field.name)[pick] for field in fields(self)[:-1]}
        return _Active(**tensors, conditions={name: value[pick] for name, value in self.conditions.items()})

    def moved(self, accept: Tensor, **new: Tensor) -> _Active:
        """These values where accepted, the old ones elsewhere."""
        column = {name: accept.reshape(-1, *[1] * (value.ndim - 1)) for name, value in new.items()}
        chosen = {name: torch.where(column[name], value, getattr(self, name)) for name, value in new.items()}
        return replace(self, **chosen)


def solve(
    run: Run, x: Tensor, samples: Tensor, conditions: dict[str, Tensor], advance: Callable[[], object]
) -> tuple[Tensor, list[Tally]]:
    """x at t_min, or denoised there, of a batch of samples at t_max, and the steps of each.

    A round is one step tried by every sample under way; the host reads the device once in each. Indices are sent to
    the device after rounds in which samples arrived, or some steps were accepted and others not.
    """
    active, ids, tallies = _begin(run, x, samples, conditions), list(range(len(x))), [(0, 0)] * len(x)
    new: list[int] = ids  # the rows whose ε is not known yet
    arrived: list[tuple[list[int], Tensor]] = []
    for number in count(1):
        active = _refresh(run, active, new)
        active, codes = _try(run, active, number)
        for i, code in zip(ids, codes):
            won = code & _ACCEPTED
            tallies[i] = (tallies[i][0] + won, tallies[i][1] + 1 - won)
        here, live = ([row for row, code in enumerate(codes) if bool(code & _ARRIVED) is end] for end in (True, False))
        for row in live:
            _check_progress(run, active, row, codes[row], tallies[ids[row]])
        if here:
            arrived.append(([ids[row] for row in here], _arrive(run, active.rows(_index(here, x)))))
            for _ in here:
                advance()
            if not live:
                break
            active, ids = active.rows(_index(live, x)), [ids[row] for row in live]
        new = [place for place, row in enumerate(live) if codes[row] & _ACCEPTED]
    order = [i for numbers, _ in arrived for i in numbers]
    x = torch.cat([part for _, part in arrived])[_index(sorted(range(len(x)), key=order.__getitem__), x)]
    return (_denoise(run, x, conditions) if run.final == "denoise" else x), tallies


def _begin(run: Run, x: Tensor, samples: Tensor, conditions: dict[str, Tensor]) -> _Active:
    u = torch.full((len(x),), run.begin, dtype=clock(x), device=x.device)
    h = torch.full_like(u, run.method.first_step)
    (knots,) = run.field.at(u)
    memory = run.noise.recall(knots.half_log_snr, samples, 0)
    return _Active(samples, x, torch.empty_like(x), x, u, knots.t, h, torch.ones_like(u), memory, conditions)


def _arrive(run: Run, active: _Active) -> Tensor:
    """x at the end, less the noise left there by the last ε, if that is to be reused."""
    if run.final != "reuse":
        return active.x
    (knots,) = run.field.at(active.u)
    noise = match(knots.sigma.to(active.x), active.x) * active.F
    return (active.x - noise) / match(knots.log_alpha.exp().to(active.x), active.x)


def _denoise(run: Run, x: Tensor, conditions: dict[str, Tensor]) -> Tensor:
    t = torch.full((len(x),), run.field.low, dtype=clock(x), device=x.device)
    return run.predict("x0", x, t, conditions)


def _index(rows: Sequence[int], x: Tensor) -> Tensor:
    return torch.tensor(rows, device=x.device)


def _refresh(run: Run, active: _Active, new: list[int]) -> _Active:
    """Evaluate ε where a step was accepted; a rejected step is tried again from the same ε."""
    if not new:
        return active
    if len(new) == len(active.x):
        return replace(active, F=run.predict("eps", active.x, active.t, active.conditions))
    pick = _index(new, active.x)
    part = active.rows(pick)
    return replace(active, F=active.F.index_copy(0, pick, run.predict("eps", part.x, part.t, part.conditions)))


def _try(run: Run, active: _Active, number: int) -> tuple[_Active, list[int]]:
    """One step tried by every sample under way, and what came of it: the one read by the host."""
    a = active
    last = a.h >= run.end - a.u
    end = torch.where(last, run.end, a.u + a.h)
    h = end - a.u
    knots = run.field.at(a.u, *(a.u + node * h for node in run.method.nodes), end)
    z, memory = _draw(run, a, knots, number)

    def evaluate(x: Tensor, t: Tensor) -> Tensor:
        return run.predict("eps", x, t, a.conditions)

    low, high = run.method.attempt(Step(a.x, a.F, h, z, knots), evaluate)
    error = error_norm(low, high, a.previous, run.rtol, run.atol).to(h.dtype)
    accept, next_h = error <= 1, h * run.control.factor(error, a.error, run.method.exponent)
    stuck = ~accept & (next_h < _TINY * max(abs(run.begin), abs(run.end)))
    moved = a.moved(accept, x=high, previous=low, u=end, t=knots[-1].t, error=error, memory=memory)
    codes = (_ACCEPTED * accept + _ARRIVED * (accept & last) + _STUCK * stuck).tolist()
    return replace(moved, h=next_h), codes


def _draw(run: Run, active: _Active, knots: Sequence[Knots], number: int) -> tuple[Tensor, Tensor]:
    start, end = knots[0].half_log_snr, knots[-1].half_log_snr
    memory = run.noise.recall(end, active.samples, number)
    return run.noise.z(active.memory, memory, end - start), memory


def error_norm(low: Tensor, high: Tensor, previous: Tensor, rtol: float, atol: float) -> Tensor:
    """E = √mean(((x' − x'')/δ)²) of each sample [batch], δ = max(atol, rtol max(|x'|, |x'_before|)).

    What is not finite counts as 1000 tolerances.

    >>> error_norm(torch.tensor([[3.0, 0.1]]), torch.tensor([[0.0, 0.1]]), torch.zeros(1, 2), 0.5, 0.1)
    tensor([1.4142])
    """
    tolerance = (torch.maximum(low.abs(), previous.abs()) * rtol).clamp(min=max(atol, torch.finfo(low.dtype).tiny))
    squares = ((low - high) / tolerance).flatten(1).square()
    error = (_row_sums(squares) / squares.shape[1]).sqrt()
    return torch.where(error.isfinite(), error, 1000.0)


def _row_sums(values: Tensor) -> Tensor:
    """Sum over each row by halving: the order of the additions depends on the row's length alone."""
    while values.shape[1] > 1:
        half = values.shape[1] // 2
        rest = values[:, 2 * half :]
        values = values[:, :half] + values[:, half : 2 * half]
        if rest.shape[1]:
            values = torch.cat([values, rest], 1)
    return values[:, 0]


def _check_progress(run: Run, active: _Active, row: int, code: int, tally: Tally) -> None:
    over = run.nfe(*tally) + run.method.evaluations > run.max_nfe
    if not (over or code & _STUCK):
        return
    why = "no smaller step is accepted; is the network finite there, and the tolerance within the dtype's reach?"
    if over:
        why = f"max_nfe={run.max_nfe} does not suffice for rtol={run.rtol}, atol={run.atol}"
    sample, t, h = (value[row].item() for value in (active.samples, active.t, active.h))
    unit = run.method.variable.name
    raise ValueError(f"sample {sample} got no further than t={t:.6g} with a next step of {h:.3g} in {unit}: {why}")
