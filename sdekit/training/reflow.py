r"""Reflow: a network trained on pairs that an ODE connects, whose paths are straighter, so that few steps follow them.

Liu et al. 2023 (Flow straight and fast, section 2.1) pair each start with where the teacher's probability-flow ODE ends
from it, and train on the pairs as any network is trained on data and independent noise. Paths of the new ODE do not
cross less than they must, and are straight in x/α as a function of κ = σ/α, under any process; DDIM is Euler's method
there, and exact in one step where they are straight. Under ``Flow`` it is their rectified flow.
"""

from __future__ import annotations

from typing import Annotated, Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from sdekit.checkpoint import Checkpoint
from sdekit.door import Count, Evaluations, Rows, Seed, Shape, door
from sdekit.model import ScoreModel
from sdekit.sampling import Model, sample
from sdekit.solvers import Solver
from sdekit.training.denoiser import DROPOUT, Batches, checked_labels, drawing_for, seen, trainable
from sdekit.training.loop import Optimisation, fit
from sdekit.training.objectives import denoising_loss
from sdekit.training.times import time_sampler
from sdekit.training.watching import Watch

_TASK = Batches()
PLAN = Optimisation(steps=2000, lr=3e-4, ema=0.995)


@door
def pairs(
    teacher: Model,
    shape: Shape,
    solver: str | Solver = "dpm-solver-3",
    nfe: Evaluations = 30,
    seed: Seed = 0,
    batch_size: Count | None = None,
    progress: bool = False,
    **conditions: Any,
) -> tuple[Float[Tensor, "n *event"], Float[Tensor, "n *event"]]:
    """(x_0, ε): standard normal numbers, and where the ODE ends from σ(t_max) ε.

    >>> import torch
    >>> from sdekit.process import VE
    >>> from sdekit.targets import Gaussian
    >>> teacher = Gaussian(torch.zeros(2), 4 * torch.eye(2)).model(VE())
    >>> x0, eps = pairs(teacher, (5, 2))
    >>> torch.allclose(x0, 2 * eps, atol=0.05)
    True
    """
    out = sample(teacher, shape, solver=solver, nfe=nfe, seed=seed, keep="all", batch_size=batch_size,
                 progress=progress, **conditions)  # fmt: skip
    assert out.trajectory is not None
    return out.x, out.trajectory[0] / teacher.process.sigma(out.t[0])


@door
def train_reflow(
    model: ScoreModel,
    x0: Annotated[Float[Tensor, "n *event"], Rows()],
    eps: Float[Tensor, "_ *_"],
    labels: Int[Tensor, "n"] | None = None,
    times: str = "uniform",
    task: Batches = _TASK,
    plan: Optimisation = PLAN,
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
    watch: Watch | None = None,
) -> ScoreModel:
    """Tune a copy of ``model`` on ``pairs``: E ‖F(α x_0 + σ ε, t) − F*‖², x_0 and ε of one pair, at ``times``.

    Raises ValueError for x0 and eps of different shapes, a model whose net is no module, and as ``train_denoiser``.

    >>> from sdekit.nn import UNet
    >>> from sdekit.process import Flow
    >>> model = ScoreModel(UNet(widths=(8, 8), embedding=8, groups=2), Flow(), "flow")
    >>> x0, eps = pairs(model, (10, 1, 4, 4), nfe=6)
    >>> train_reflow(model, x0, eps, plan=Optimisation(steps=2, lr=1e-3)).predicts
    'flow'
    """
    if eps.shape != x0.shape:
        raise ValueError(f"eps has shape {list(eps.shape)}: it must be that of x0, {list(x0.shape)}")
    net, draw = trainable(model), time_sampler(times)
    given = checked_labels(labels, len(x0), net)
    x0, eps = x0.to(model.device), eps.to(model.device)
    identity = {**vars(task), "process": model.process, "times": times, "x0": x0, "eps": eps, "labels": given}

    def loss_at(net: nn.Module, step: int) -> Tensor:
        student = ScoreModel(net, model.process, model.predicts, model.time)
        batch = seen(x0, given, task, step)
        t, weights = draw(model.process, batch.u)
        with drawing_for(model.device, task.seed, DROPOUT, step):
            loss = denoising_loss(student, batch.x0, t.to(x0.dtype), eps[batch.rows], **batch.conditions)
        return (weights * loss).mean()

    average = fit(net, loss_at, plan, identity, checkpoint, progress, watch)
    return ScoreModel(average, model.process, model.predicts, model.time)
