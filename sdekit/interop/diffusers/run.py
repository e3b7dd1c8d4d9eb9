"""One run of a ``Scheduler``: where it stands, and what it remembers."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from sdekit.interop.diffusers.config import Trained
from sdekit.interop.diffusers.stages import Stage, stages
from sdekit.prediction import convert
from sdekit.sampling import combine
from sdekit.solvers import Plan
from sdekit.thresholding import thresholded


def precise(dtype: torch.dtype) -> torch.dtype:
    """In what a state of that dtype is computed."""
    return dtype if dtype == torch.float64 else torch.float32


class Run:
    """A plan's stages from ``first`` on, the evaluations being counted from the whole run's beginning."""

    def __init__(self, trained: Trained, plan: Plan, first: int) -> None:
        self.trained, self.predicts, self.index, self.first = trained, plan.predicts, first, first
        self.stages = stages(plan)
        self.history: deque[Tensor] = deque(maxlen=plan.memory)
        self.anchor: Tensor | None = None
        self.drawn: dict[tuple[float, float], Tensor] = {}
        used = [(row, i) for i, stage in enumerate(self.stages) for row in stage.rows]
        self.last_use = {(draw.start, draw.end): i for row, i in used for draw in row.noise}

    @property
    def stage(self) -> Stage:
        """The stage that is next. Raises ValueError after the last."""
        if self.index - self.first >= len(self.stages):
            raise ValueError("step: the run has ended; set_timesteps begins another")
        return self.stages[self.index - self.first]

    def step(self, output: Tensor, sample: Tensor, generator: Any) -> Tensor:
        """x after the stage's rows, in the sample's dtype."""
        stage, dtype = self.stage, precise(sample.dtype)
        x = sample.to(dtype)
        self.history.appendleft(self._prediction(stage, x, output.to(dtype)))
        anchor = x if stage.fresh or self.anchor is None else self.anchor

        def draw(start: float, end: float) -> Tensor:
            if (start, end) not in self.drawn:
                self.drawn[start, end] = randn_tensor(x.shape, generator=generator, device=x.device, dtype=dtype)
            return self.drawn[start, end]

        for row in stage.rows:
            x = combine(row, anchor, self.history, draw)
            anchor = x if row.commit else anchor
        self.anchor = anchor
        if self.drawn:  # equal intervals are the same noise as long as one is to come
            place = self.index - self.first
            self.drawn = {interval: z for interval, z in self.drawn.items() if self.last_use[interval] > place}
        self.index += 1
        return x.to(sample.dtype)

    def _prediction(self, stage: Stage, x: Tensor, output: Tensor) -> Tensor:
        """What the plan's rows are written for, from what the network returned."""
        trained, t = self.trained, stage.knot.t
        if trained.preconditioning is not None:
            _, c_skip, c_out = trained.preconditioning(stage.knot.sigma)
            output = torch.add(x * c_skip, output, alpha=c_out)
        if trained.rule is not None:
            output = thresholded(trained.rule, trained.predicts, trained.process, t, x, output)
        c_x, c_F = convert(trained.predicts, self.predicts, trained.process, t)  # noqa: N806
        F = x * c_x + output * c_F if c_x else output * c_F  # noqa: N806
        linear = stage.rows[0].linear
        return F if linear is None else F - linear * x
