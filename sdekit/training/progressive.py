r"""Progressive distillation: a student whose DDIM step is two steps of its teacher's, so that each round halves them.

From x_t two DDIM steps of the teacher lead over the knot between to x_s; the x_0 from which one step leads there is
x̃ = (x_s − (σ_s/σ_t) x_t)/(α_s − (σ_s/σ_t) α_t) (Salimans & Ho 2022, algorithm 2, appendix G), and the student learns
what its network predicts for it. x̃ is a function of x_t alone: a student that learns it makes the teacher's steps
exactly, which no denoiser does. A round is one call; its result is the next round's teacher:

    for steps in (16, 8, 4):
        model = train_progressive(model, data, grid="logsnr", steps=steps)
    sk.sample(model, shape, solver="ddim", grid="logsnr", steps=4)
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sdekit.checkpoint import Checkpoint
from sdekit.door import Evaluations, Rows, door
from sdekit.grid import Grid, GridSpec
from sdekit.model import ScoreModel
from sdekit.prediction import PREDICTIONS
from sdekit.process import Process, match
from sdekit.process import State as Samples
from sdekit.sampling import Model
from sdekit.training.denoiser import (
    DROPOUT,
    Batches,
    checked_data,
    checked_labels,
    drawing_for,
    seen,
    trainable,
)
from sdekit.training.loop import Optimisation, fit
from sdekit.training.objectives import check_rows
from sdekit.training.watching import Watch

Times = Float[Tensor, "batch"]
_TASK = Batches()
PLAN = Optimisation(steps=1000, lr=3e-4, ema=0.99)


def ddim_step(model: Model, x: Samples, t: Times, s: Times, **conditions: Any) -> Samples:
    """α_s x_0 + σ_s ε with the model's predictions at x_t (Song et al. 2021, DDIM, eq. 12, η = 0)."""
    process = model.process
    eps = model.predict("eps", x, t, **conditions)
    x0 = (x - match(process.sigma(t), x) * eps) / match(process.alpha(t), x)
    return match(process.alpha(s), x) * x0 + match(process.sigma(s), x) * eps


@door
def two_steps(
    teacher: Model, x: Annotated[Samples, Rows()], t: Times, between: Times, s: Times, **conditions: Any
) -> Samples:
    """x̃: the x_0 from which one DDIM step from x_t ends where two of the teacher's do, over ``between``, at s.

    >>> from sdekit.process import VE
    >>> t, u, s = torch.tensor([[0.6], [0.5], [0.4]])
    >>> sure = ScoreModel(lambda x, t: torch.full_like(x, 2.0), VE(), predicts="x0")  # of data at 2
    >>> two_steps(sure, torch.ones(1, 2), t, u, s)
    tensor([[2.0000, 2.0000]])
    """
    check_rows(x, x, t=t, between=between, s=s)
    process = teacher.process
    end = ddim_step(teacher, ddim_step(teacher, x, t, between, **conditions), between, s, **conditions)
    ratio = process.sigma(s) / process.sigma(t)
    return (end - match(ratio, x) * x) / match(process.alpha(s) - ratio * process.alpha(t), x)


@door
def train_progressive(
    teacher: ScoreModel,
    data: Float[Tensor, "n *event"] | Float[np.ndarray, "n *event"],
    labels: Int[Tensor, "n"] | Int[np.ndarray, "n"] | None = None,
    steps: Evaluations = 4,
    grid: GridSpec = "logsnr",
    task: Batches = _TASK,
    plan: Optimisation = PLAN,
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
    watch: Watch | None = None,
) -> ScoreModel:
    """One round: a student of ``steps`` DDIM steps on ``grid``, which does what the teacher does in twice as many.

    It begins with the teacher's weights; the loss is on what the network predicts, unweighted: SNR + 1 on x_0 for v
    (their eq. 10). Sample it with ``solver="ddim"``, the same grid and number of steps: it has learned no other times.

    Raises ValueError as ``train_denoiser``, and for a teacher whose net is no module.

    >>> from sdekit.nn import UNet
    >>> from sdekit.process import VP
    >>> model = ScoreModel(UNet(widths=(8, 8), embedding=8, groups=2), VP(), "v", "half-log-snr")
    >>> plan = Optimisation(steps=2, lr=1e-3)
    >>> train_progressive(model, torch.zeros(10, 1, 4, 4), steps=4, plan=plan).predicts
    'v'
    """
    process = teacher.process
    net, x0 = trainable(teacher), checked_data(data).to(teacher.device)
    given = checked_labels(labels, len(data), net)
    knots = _times(process, grid, 2 * steps).to(x0)
    identity = {**vars(task), "process": process, "data": x0, "labels": given, "teacher": teacher, "knots": knots}

    def loss_at(net: nn.Module, step: int) -> Tensor:
        student = ScoreModel(net, process, teacher.predicts, teacher.time)
        batch = seen(x0, given, task, step)
        first = 2 * (steps * batch.u).long().clamp(max=steps - 1)
        t, between, s = (knots[first + i] for i in range(3))
        x = process.perturb(batch.x0, t, batch.eps)
        with torch.no_grad():
            target = two_steps(teacher, x, t, between, s, **batch.conditions)
        with drawing_for(teacher.device, task.seed, DROPOUT, step):
            return prediction_loss(student, x, t, target, **batch.conditions).mean()

    average = fit(net, loss_at, plan, identity, checkpoint, progress, watch)
    return ScoreModel(average, process, teacher.predicts, teacher.time)


def prediction_loss(model: ScoreModel, x: Samples, t: Times, x0: Samples, **conditions: Any) -> Times:
    """‖F(x_t, t) − F*‖²/d, F* what the network should predict where the data of x_t is x0."""
    process = model.process
    eps = (x - match(process.alpha(t), x) * x0) / match(process.sigma(t), x)
    a, b = PREDICTIONS[model.predicts](process, t)
    target = match(a, x) * x0 + match(b, x) * eps
    return (model.predict(model.predicts, x, t, **conditions) - target).square().flatten(1).mean(1)


def _times(process: Process, grid: GridSpec, steps: int) -> Tensor:
    return torch.tensor([knot.t for knot in Grid.make(process, grid, [1] * steps).knots], dtype=torch.float64)
