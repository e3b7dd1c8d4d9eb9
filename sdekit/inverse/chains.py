"""What the methods that alternate between the prior and the likelihood share: runs of parts, and Gaussian draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.inverse.conditioned import check_linear, noise_std
from sdekit.inverse.registry import Posterior, Run
from sdekit.inverse.spectrum import Spectrum
from sdekit.noise import SOURCES, key, normal
from sdekit.process import Knot, Process
from sdekit.sampling import as_rows, conditions_of, march
from sdekit.solvers import Solver

_STREAM = 0xC4A1


@dataclass(frozen=True, eq=False)
class Chain:
    """One batch of a run: its samples' numbers, measurements and conditions, and what all batches share."""

    run: Run
    spectrum: Spectrum
    samples: Tensor
    y: Tensor
    conditions: Mapping[str, Any]

    def normal(self, draw: int, *event: int) -> Tensor:
        """Standard normals for each sample, [batch, *event]."""
        return normal(key(self.run.seed, _STREAM), draw, self.samples, event or self.run.shape[1:], self.run.dtype)

    def given(self, x: Tensor, variance: float, draw: int) -> Tensor:
        """A draw of N(·; x, c I) p(y | ·), c = ``variance``: exactly, by x' + K (y + σ_y n − A x'), x' = x + √c n'."""
        measurement = self.run.measurement
        std, start = noise_std(measurement), x + variance**0.5 * self.normal(draw)
        y = self.y + std * self.normal(draw + 1, *self.y.shape[1:]) if self.y[0].numel() else self.y
        residual = y - measurement.operator.apply(start)
        return start + self.spectrum.gain(residual, variance, std**2, x.shape[1:])

    def solve(self, x: Tensor, solver: Solver, times: tuple[float, ...], draw: int) -> Tensor:
        """x_0 from x at times[0], one evaluation at each of the times, the last to denoise."""
        model = self.run.model
        plan = solver.plan(model.process, grid=times, final="denoise")
        seed = key(self.run.seed, _STREAM, draw)
        source = SOURCES["independent"](seed, plan.intervals, self.samples, x.shape[1:], x.dtype)
        return [state for _, state in march(plan, model, x, source, look=False, **self.conditions)][-1]


def times_from(process: Process, start: Knot, count: int) -> tuple[float, ...]:
    """``count`` times from ``start`` to t_min, equally spaced in λ; t_min alone where only one is asked for.

    >>> from sdekit.process import VE
    >>> [round(t, 3) for t in times_from(VE(sigma_min=0.1, sigma_max=10.0), VE(0.1, 10.0).knot(1.0), 3)]
    [1.0, 0.5, 0.0]
    """
    last = process.half_log_snr(process.t_min)
    gap = (last - start.half_log_snr) / max(1, count - 1)
    inner = [process.t_of_half_log_snr(start.half_log_snr + i * gap) for i in range(1, count - 1)]
    return (start.t, *inner, process.t_min)[:count] if count > 1 else (start.t,)


def chains(run: Run, name: str, go: Callable[[Chain], Tensor]) -> Posterior:
    """``go`` of each batch. Raises ValueError for a measurement that is not linear with Gaussian noise."""
    check_linear(name, run.measurement)
    with torch.no_grad():
        before, parts = run.model.nfe, list(_parts(run, Spectrum.of(run.measurement.operator, run.model.device)))
        x = torch.cat([go(part) for part in parts])
    return Posterior(x, (run.model.nfe - before) // len(parts), 0, run.seed)


def _parts(run: Run, spectrum: Spectrum) -> Iterator[Chain]:
    n, size = run.shape[0], run.batch_size or run.shape[0]
    conditions = as_rows(run.model, run.conditions, n)
    every = torch.arange(n, device=run.model.device)
    like = torch.zeros(n, 1, dtype=run.dtype, device=run.model.device)
    y = run.measurement.rows(like, run.measured)
    for first in range(0, n, size):
        part = slice(first, first + size)
        yield Chain(run, spectrum, every[part], y[part], conditions_of(conditions, n, first, size))
