r"""Langevin corrections between a solver's steps, with sizes that are measured as the run goes.

The table of the solver ``pc`` has Langevin steps of a size known beforehand. The published corrector scales each step
by the norms of the score and of the noise at that moment, which no table can hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit.door import door
from sdekit.grid import GridSpec
from sdekit.names import Between, OneOf
from sdekit.noise import key, normal
from sdekit.process import Knot, Process
from sdekit.solvers import Plan, Solver
from sdekit.solvers.registry import check_count

Score = Callable[[Tensor, float], Tensor]
Correct = Callable[[Knot, Knot, Tensor], Tensor]

_STREAM = 0x1A9
_NORMS = OneOf("sample", "batch")


@door
@dataclass(frozen=True)
class Langevin:
    r"""``steps`` Langevin steps at each knot: x ← x + ε s + √(2ε) z, ε = 2 a² (r ‖z‖/‖s‖)².

    r is ``snr``, s the score there, z new normal numbers, a = α_before/α_here, so that a² = 1 − β for a table and 1 for
    VE (Song et al. 2021, algorithms 4 and 5). Given to ``sample`` as ``corrector=`` it makes a predictor–corrector of
    any solver with one evaluation a step. As a step of finite size it leaves a bias that does not fall with the number
    of knots: the smaller the ``snr``, the less of it, and the less is corrected.

    Args:
        snr: r; score_sde has 0.16 for images of 32 × 32 under VE, 0.01 for its VP networks.
        steps: corrections at each knot, each one evaluation. Where ``nfe`` does not divide, the last knots get fewer.
        norms: of each ``"sample"``, so that it does not depend on its batch, or their means over the ``"batch"``, as in
            the published code.

    Raises ValueError for an option out of range.

    >>> from sdekit import ScoreModel, VP, sample
    >>> model = ScoreModel(lambda x, t: x, VP())
    >>> sample(model, (2, 3), solver="reverse-diffusion", nfe=11, corrector=Langevin(snr=0.1), seed=0).nfe
    11
    """

    snr: float = 0.16
    steps: int = 1
    norms: str = "sample"

    def __post_init__(self) -> None:
        for name, value, rule in (("snr", self.snr, Between(1e-4, 1)), ("norms", self.norms, _NORMS)):
            if not rule.allows(value):
                raise ValueError(f"Langevin: {name}={value!r} is not {rule}")
        check_count("steps", self.steps, 1, "it counts the corrections at each knot")

    def plan(
        self, solver: Solver, process: Process, nfe: int | None, steps: int | None, grid: GridSpec, final: str
    ) -> tuple[Plan, list[int]]:
        """The predictor's table for this budget, and the corrections at each of its knots.

        The end is denoised by an evaluation. Raises ValueError for a solver with several evaluations a step, a budget
        too small, and ``final="reuse"``.
        """
        if final == "reuse":
            raise ValueError("final='reuse': a corrector moves x away from where predictions were made; use 'denoise'")
        final = "denoise" if final == "auto" else final
        last = int(final == "denoise")
        if nfe is not None:
            check_count("nfe", nfe, 2 + last, "a step and its correction are two" + ", the denoising is one" * last)
        predictor = None if nfe is None else -(-(nfe - last) // (1 + self.steps)) + last
        plan = solver.plan(process, nfe=predictor, steps=steps, grid=grid, final=final)
        knots = sum(row.commit for row in plan.rows) - last
        if plan.nfe - last != knots:
            raise ValueError(
                f"corrector: solver {solver.name!r} takes {plan.nfe - last} evaluations for {knots} steps; it needs one"
                " with one evaluation for each step, such as 'reverse-diffusion', 'ddim' or 'dpmpp-2m'"
            )
        left = self.steps * knots if nfe is None else nfe - plan.nfe
        return plan, [max(0, min(self.steps, left - self.steps * knot)) for knot in range(knots)]

    def correct(self, counts: Sequence[int], score: Score, seed: int, samples: Tensor) -> Correct:
        """What ``march`` calls after each step of one batch; no host read."""
        at_knot: Iterator[int] = iter(counts)
        draws = iter(range(sum(counts)))

        def correct(before: Knot, here: Knot, x: Tensor) -> Tensor:
            shrink = 2 * (self.snr * before.alpha / here.alpha) ** 2
            for _ in range(next(at_knot)):
                s = score(x, here.t)
                z = normal(key(seed, _STREAM), next(draws), samples, x.shape[1:], x.dtype)
                size = (shrink * self._ratio(z, s) ** 2).reshape(-1, *[1] * (x.ndim - 1))
                x = x + size * s + (2 * size).sqrt() * z
            return x

        return correct

    def _ratio(self, z: Tensor, s: Tensor) -> Tensor:
        """‖z‖/‖s‖ [batch]; 0 where the score is 0, which then needs no correction."""
        above, below = (torch.linalg.vector_norm(value.reshape(len(value), -1), dim=1) for value in (z, s))
        if self.norms == "batch":
            above, below = above.mean().expand(len(z)), below.mean().expand(len(z))
        return torch.where(below > 0, above / below, torch.zeros_like(below))
