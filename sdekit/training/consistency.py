r"""Consistency models: networks that jump from any point of a path of the probability-flow ODE to its data.

A consistency function f is constant along the ODE's paths and ends in the data: f(x_t, t) = f(x_r, r), f(x, 0) = x
(Song et al. 2023, definition 1). Here f is a model's x_0, so every solver that asks for x_0 can use it: ``consistency``
of the registry is the multistep sampling of the paper's algorithm 1.

Consistency training takes the pair (x_t, x_r) with one noise, x_t = α_t x_0 + σ_t ε and x_r = α_r x_0 + σ_r ε;
distillation takes x_r from x_t by a step of a teacher's ODE. The target f(x_r, r) has no gradient. Below t_min there
is the data: where r would be less, the target is x_0 itself for training, and the teacher's for distillation.

A network that predicts v under a process with α² + σ² = 1 has f = α x − σ v, which is x/α at σ = 0 whatever its
weights: that is the parametrisation of sCM (Lu & Song 2025, with σ_d = 1), and the shipped networks have it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sdekit.checkpoint import Checkpoint
from sdekit.door import Count, Seed, Share, door
from sdekit.misfit import warn_of_data
from sdekit.model import ScoreModel
from sdekit.names import Between
from sdekit.process import Process, match
from sdekit.process import State as Samples
from sdekit.sampling import Model
from sdekit.training.denoiser import DROPOUT, checked_data, checked_labels, drawing_for, seen, trainable
from sdekit.training.loop import Optimisation, fit
from sdekit.training.objectives import check_rows
from sdekit.training.times import time_sampler
from sdekit.training.watching import Watch

Times = Float[Tensor, "batch"]
PLAN = Optimisation(steps=2000, lr=3e-4, ema=0.995)


@door
@dataclass(frozen=True)
class Consistency:
    """What a consistency model is trained for.

    Attributes:
        times: where pairs begin: a name of ``TIME_SAMPLERS``, with options; the default is that of ECT.
        stages: the run's equal parts; in part k = 1, 2, … a time is paired with ``earlier(process, t, k, base)``.
        base: by how much each part narrows the pairs.
        batch, label_dropout, null_label, seed: as in ``Denoising``.
    """

    times: str = "log-normal(mean=-1.1, std=2.0)"
    stages: Annotated[int, Between(1, 64)] = 8
    base: Annotated[float, Between(1.1, 100)] = 2.0
    batch: Count = 128
    label_dropout: Share = 0.0
    null_label: int = 0
    seed: Seed = 0


def earlier(process: Process, t: Times, stage: int, base: float = 2.0) -> Times:
    """The time r that stage k pairs with t: κ_r = κ (1 − n(κ)/base^k), n(κ) = 1 + 8/(1 + e^κ), κ = σ/α.

    Where κ_r is not above that of t_min it is 0, which stands for the data (Geng et al. 2025, Easy Consistency Tuning).

    >>> from sdekit.process import EDM
    >>> earlier(EDM(), torch.tensor([0.5, 50.0]), stage=3)
    tensor([ 0.2487, 43.7500])
    """
    ratio = noise_ratio(process, t)
    before = ratio * (1 - (1 + 8 * torch.sigmoid(-ratio)) / base**stage)
    least = math.exp(-process.half_log_snr(process.t_min))
    r = process.t_of_half_log_snr(-before.clamp(min=least).log())
    return torch.where(before > least, torch.minimum(r, t), torch.zeros_like(t))


def noise_ratio(process: Process, t: Times) -> Times:
    """κ = σ/α."""
    return torch.exp(-process.half_log_snr(t))


@door
def consistency_loss(
    model: ScoreModel,
    x0: Samples,
    t: Times,
    r: Times,
    eps: Samples,
    teacher: Model | None = None,
    **conditions: Any,
) -> Float[Tensor, "batch"]:
    r"""‖f(x_t, t) − f(x_r, r)‖ / (√d (κ_t − κ_r)) per sample, f the model's x_0; f(x_r, r) has no gradient.

    x_r has the noise of x_t (training: Song et al. 2023, algorithm 3), or is one ``ode_step`` of the ``teacher`` from
    x_t (distillation: their algorithm 2). r = 0 is the data: f(x_0, 0) = x_0, or where the teacher's step ends.
    The norm that is not squared, and the weight, are those of Geng et al. 2025 (ECT, with c = 0).

    >>> from sdekit.process import EDM
    >>> model = ScoreModel(lambda x, t: torch.zeros_like(x), EDM(), predicts="x0")
    >>> t, r = torch.tensor([2.0, 2.0]), torch.tensor([1.0, 0.0])
    >>> consistency_loss(model, torch.ones(2, 4), t, r, torch.zeros(2, 4))  # 0 − 0, and 0 − x0
    tensor([0.0000, 0.5000])
    """
    check_rows(x0, eps, t=t, r=r)
    process, inside = model.process, r > 0
    later = torch.where(inside, r, process.t_min)  # what is told at r = 0 does not count
    x = process.perturb(x0, t, eps)
    with torch.no_grad():
        if teacher is None:
            x_r, end = process.perturb(x0, later, eps), x0
        else:
            x_r = end = ode_step(teacher, x, t, later, inside, **conditions)
        target = choose(inside, model.x0(x_r, later, **conditions), end)
    gap = noise_ratio(process, t) - torch.where(inside, noise_ratio(process, later), 0.0)
    norm = torch.linalg.vector_norm((model.x0(x, t, **conditions) - target).flatten(1), dim=1)
    return norm / (math.sqrt(x0[0].numel()) * gap)


def ode_step(teacher: Model, x: Samples, t: Times, r: Times, inside: Tensor, **conditions: Any) -> Samples:
    """Heun's step of the ODE in x/α over κ, from t to r; where not ``inside``, to κ = 0 by the first slope alone.

    dx̂/dκ = ε with x̂ = x/α (Song et al. 2021, DDIM, eq. 14). Two evaluations of the teacher.
    """
    process = teacher.process
    here, there = noise_ratio(process, t), torch.where(inside, noise_ratio(process, r), 0.0)
    start, step = x / match(process.alpha(t), x), match(there - here, x)
    slope = teacher.predict("eps", x, t, **conditions)
    euler = start + step * slope
    alpha = match(torch.where(inside, process.alpha(r), 1.0), x)
    mean = 0.5 * (slope + teacher.predict("eps", alpha * euler, r, **conditions))
    return choose(inside, alpha * (start + step * mean), euler)


@door
def train_consistency(
    model: ScoreModel,
    data: Float[Tensor, "n *event"] | Float[np.ndarray, "n *event"],
    labels: Int[Tensor, "n"] | Int[np.ndarray, "n"] | None = None,
    task: Consistency = Consistency(),
    plan: Optimisation = PLAN,
    teacher: Model | None = None,
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
    watch: Watch | None = None,
) -> ScoreModel:
    """Tune a copy of ``model`` into a consistency model of ``data``; returns its average, told times as ``model`` is.

    ``model`` may be trained already (tuning, ECT), or new. With a ``teacher`` it is distilled.

    Raises ValueError as ``train_denoiser``, and for a model whose net is no module.

    >>> from sdekit.nn import UNet
    >>> from sdekit.process import VP
    >>> model = ScoreModel(UNet(widths=(8, 8), embedding=8, groups=2), VP(), "v", "half-log-snr")
    >>> tuned = train_consistency(model, torch.zeros(10, 1, 4, 4), plan=Optimisation(steps=2, lr=1e-3))
    >>> from sdekit.sampling import sample
    >>> sample(tuned, (3, 1, 4, 4), solver="consistency", nfe=2, grid="logsnr", seed=0).nfe
    2
    """
    net = trainable(model)
    draw = time_sampler(task.times)
    x0, given = checked_data(data).to(model.device), checked_labels(labels, len(data), net)
    warn_of_data(model.process, x0, "data")
    identity = {**vars(task), "process": model.process, "predicts": model.predicts, "data": x0, "labels": given,
                "teacher": teacher}  # fmt: skip

    def loss_at(net: nn.Module, step: int) -> Tensor:
        student = ScoreModel(net, model.process, model.predicts, model.time)
        batch = seen(x0, given, task, step)
        t, weights = draw(model.process, batch.u)
        t = t.to(x0.dtype)
        r = earlier(model.process, t, 1 + step * task.stages // (plan.steps * plan.accumulate), task.base)
        with drawing_for(model.device, task.seed, DROPOUT, step):
            loss = consistency_loss(student, batch.x0, t, r, batch.eps, teacher, **batch.conditions)
        return (weights * loss).mean()

    average = fit(net, loss_at, plan, identity, checkpoint, progress, watch)
    return ScoreModel(average, model.process, model.predicts, model.time)


def choose(inside: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """x for the samples that are ``inside`` [batch], y for the others."""
    return torch.where(inside.reshape(-1, *[1] * (x.ndim - 1)), x, y)
