"""Where the fit's starts come from, and where the flow takes them: an accurate solve, checked by halving its step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.door import Count, Seed, door
from sdekit.names import lookup
from sdekit.noise import key, normal
from sdekit.sampling import Model, batched, sample

STREAMS = {"train": 0x7E41, "validation": 0x7E42, "report": 0x7E43}
"""Each hashed into the seed: no start of one is a start of another, nor of ``sample``, whatever the seeds."""
SOLVER, GRID = "unipc-4", "vp-time(power=4, blend=0.4)"
FIRST, LAST = 60, 480
"""Evaluations of the finer solve: doubled from the first until it has converged, at most to the last."""
TOLERANCE = 2e-3
"""The median over starts of the two solves' RMS difference, in units of the endpoints' RMS."""

Endpoints = Callable[..., Tensor]


@door
def starts(model: Model, event: tuple[Count, ...], stream: str, n: Count, seed: Seed = 0) -> Tensor:
    """n states at t_max [n, *event] of one of ``STREAMS``, float64 where the device has it.

    >>> from sdekit import ScoreModel, VP
    >>> model = ScoreModel(lambda x, t: x, VP())
    >>> starts(model, (2,), "report", 3).shape
    torch.Size([3, 2])
    """
    samples = torch.arange(n, device=model.device)
    dtype = torch.float32 if model.device.type == "mps" else torch.float64
    z = normal(key(seed, lookup("stream", stream, STREAMS)), 0, samples, event, dtype)
    return z * model.process.knot(model.process.t_max).sigma


@dataclass(frozen=True)
class Pairs:
    """Starts and where the flow takes them [n, *event], with the conditions of each and those that all share."""

    start: Tensor
    end: Tensor
    rows: dict[str, Tensor]
    shared: dict[str, Any]

    @classmethod
    def of(cls, start: Tensor, end: Tensor, conditions: dict[str, Any]) -> Pairs:
        rows = batched(conditions, len(start))
        return cls(start, end, rows, {name: value for name, value in conditions.items() if name not in rows})

    @property
    def conditions(self) -> dict[str, Any]:
        return {**self.shared, **self.rows}

    def take(self, chosen: Tensor | slice) -> Pairs:
        """The pairs of these numbers."""
        rows = {name: value[chosen] for name, value in self.rows.items()}
        return Pairs(self.start[chosen], self.end[chosen], rows, self.shared)

    def part(self, first: int, size: int) -> Pairs:
        return self.take(slice(first, first + size))

    def parts(self, size: int | None) -> Iterator[Pairs]:
        """All pairs, ``size`` at a time."""
        n = len(self.start)
        return (self.part(first, size or n) for first in range(0, n, size or n))


def distance(x: Tensor, y: Tensor) -> Tensor:
    """The RMS difference of each sample [n], float64 on the CPU."""
    return (x - y).flatten(1).square().mean(1).sqrt().double().cpu()


def solve(
    model: Model, start: Tensor, conditions: dict[str, Any], batch_size: int | None, tick: Callable[[str, int], None]
) -> tuple[Tensor, float, int]:
    """The ends of the flow, denoised at t_min; their error, and the evaluations of the solve that was good enough.

    Raises ValueError where two solves, one in half as many evaluations, still differ with ``LAST``.
    """
    nfe, coarse = FIRST // 2, None
    while True:
        fine = sample(
            model, start.shape, solver=SOLVER, grid=GRID, nfe=nfe, start=start, final="denoise", batch_size=batch_size,
            **conditions,
        ).x  # fmt: skip
        tick("teacher", nfe * len(start))
        if coarse is not None:
            gap = distance(fine, coarse).median().item() / max(fine.square().mean().sqrt().item(), 1e-12)
            if gap <= TOLERANCE:
                return fine, gap, nfe
            if nfe >= LAST:
                raise ValueError(
                    f"the teacher does not converge: with {nfe // 2} and {nfe} evaluations its ends differ by {gap:.2g}"
                    f" of their RMS in the median, at most {TOLERANCE:g} is needed; give endpoints= of your own"
                )
        coarse, nfe = fine, 2 * nfe
