r"""MeanFlow: a network that predicts the mean velocity u(x_t, t, r) between two times, and steps from t to r at once.

u = 1/(t − r) ∫_r^t v dτ along a path of the flow dx/dτ = v, so that x_r = x_t − (t − r) u (Geng et al. 2025, eq. 3 and
12). Differentiating (t − r) u by t gives u = v − (t − r) du/dt, with du/dt = v·∂u/∂x + ∂u/∂t (eqs. 6, 8): the loss puts
ε − x_0 in the place of v, and lets no gradient through the right-hand side. The network is told r as the condition
``end``; at r = 0 its x_0 is the consistency function of the flow, so ``solver="consistency"`` with ``end`` zero samples
it with new noise, and ``mean_flow_steps`` without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sdekit import noise
from sdekit.checkpoint import Checkpoint
from sdekit.divergence import forward_mode
from sdekit.door import Count, Rows, Seed, Share, door
from sdekit.misfit import warn_of_data
from sdekit.model import ScoreModel
from sdekit.names import Between
from sdekit.process import Flow, Process, match
from sdekit.process import State as Samples
from sdekit.sampling import Model
from sdekit.training.denoiser import DROPOUT, Seen, checked_data, checked_labels, drawing_for, seen, trainable
from sdekit.training.loop import Optimisation, fit
from sdekit.training.objectives import check_rows
from sdekit.training.watching import Watch

Times = Float[Tensor, "batch"]
PLAN = Optimisation(steps=5000, lr=1e-3, ema=0.995)
_SECOND = 7  # a stream of the seed for the pairs' other time


@door
@dataclass(frozen=True)
class MeanFlow:
    """What a mean velocity is trained for.

    Attributes:
        mean, std: of the normal law whose logistic gives both times (the paper's best: −0.4, 1).
        instant: the share of pairs with r = t, which are flow matching (the paper's best: 0.75).
        power: p of the weight 1/(‖Δ‖² + 10⁻³)^p, which has no gradient (the paper's best: 1). At 0 the optimum is the
            mean velocity; above, samples count the less the more they differ from it, and it is near the mean only.
        batch, label_dropout, null_label, seed: as in ``Denoising``.
    """

    mean: Annotated[float, Between(-10, 10)] = -0.4
    std: Annotated[float, Between(0.01, 10)] = 1.0
    instant: Share = 0.75
    power: Annotated[float, Between(0, 2)] = 1.0
    batch: Count = 128
    label_dropout: Share = 0.0
    null_label: int = 0
    seed: Seed = 0


@door
def mean_flow_loss(
    model: ScoreModel, x0: Annotated[Samples, Rows()], t: Times, r: Times, eps: Samples, **conditions: Any
) -> Times:
    r"""‖u(x_t, t, r) − (v − (t − r) du/dt)‖²/d at x_t = (1 − t) x_0 + t ε, v = ε − x_0: a forward derivative each.

    The model is one of ``Flow`` that predicts ``"flow"``; r ≤ t. Raises ValueError for another process, and for a
    network with an operation that has no forward-mode derivative.

    >>> model = ScoreModel(lambda x, t, end: torch.zeros_like(x), Flow(), "flow")
    >>> mean_flow_loss(model, torch.zeros(1, 2), torch.tensor([0.5]), torch.tensor([0.0]), torch.ones(1, 2))
    tensor([1.])
    """
    check_rows(x0, eps, t=t, r=r)
    _check(model.process)

    def u(x: Tensor, t: Tensor) -> Tensor:
        return model.predict("flow", x, t, end=r, **conditions)

    x, v = model.process.perturb(x0, t, eps), eps - x0
    with forward_mode("model: its network's {} has no forward-mode derivative, which du/dt needs"):
        products: Any = torch.func.jvp(u, (x, t), (v, torch.ones_like(t)))
    found, rate = products
    return (found - (v - match(t - r, x) * rate).detach()).square().flatten(1).mean(1)


@door
def mean_flow_steps(model: Model, start: Samples, nfe: Count, **conditions: Any) -> Samples:
    """x_r = x_t − (t − r) u(x_t, t, r) over ``nfe`` equal steps from t = 1 to 0: a sampler ``compare`` takes as it is.

    >>> model = ScoreModel(lambda x, t, end: x, Flow(), "flow")
    >>> mean_flow_steps(model, torch.ones(1, 2), 2)
    tensor([[0.2500, 0.2500]])
    """
    _check(model.process)
    x, times = start, [1 - i / nfe for i in range(nfe)] + [0.0]
    for t, r in zip(times, times[1:]):
        here, end = (torch.full((len(x),), time, dtype=x.dtype, device=x.device) for time in (t, r))
        x = x - (t - r) * model.predict("flow", x, here, end=end, **conditions)
    return x


@door
def train_mean_flow(
    model: ScoreModel,
    data: Float[Tensor, "n *event"] | Float[np.ndarray, "n *event"],
    labels: Int[Tensor, "n"] | Int[np.ndarray, "n"] | None = None,
    task: MeanFlow = MeanFlow(),
    plan: Optimisation = PLAN,
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
    watch: Watch | None = None,
) -> ScoreModel:
    """Train a copy of ``model``'s network, which takes ``end=`` [batch], as a mean velocity of ``data``.

    Raises ValueError as ``train_denoiser``, and for a process or prediction other than ``Flow`` and ``"flow"``.

    >>> class Linear(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.gain = nn.Linear(2, 1)
    ...     def forward(self, x, t, end):
    ...         return self.gain(torch.stack([t, end], 1)) * x
    >>> model = ScoreModel(Linear(), Flow(), "flow")
    >>> flown = train_mean_flow(model, torch.randn(20, 3), plan=Optimisation(steps=2, lr=1e-3))
    >>> mean_flow_steps(flown, torch.randn(4, 3), 2).shape
    torch.Size([4, 3])
    """
    _check(model.process)
    net, x0 = trainable(model), checked_data(data).to(model.device)
    given = checked_labels(labels, len(data), net)
    warn_of_data(model.process, x0, "data")
    identity = {**vars(task), "process": model.process, "data": x0, "labels": given}

    def loss_at(net: nn.Module, step: int) -> Tensor:
        student = ScoreModel(net, model.process, model.predicts, model.time)
        batch = seen(x0, given, task, step)
        t, r = _time_pairs(task, batch, step)
        with drawing_for(model.device, task.seed, DROPOUT, step):
            loss = mean_flow_loss(student, batch.x0, t, r, batch.eps, **batch.conditions)
        return (loss / (loss.detach() * x0[0].numel() + 1e-3) ** task.power).mean()

    average = fit(net, loss_at, plan, identity, checkpoint, progress, watch)
    return ScoreModel(average, model.process, model.predicts, model.time)


def _time_pairs(task: MeanFlow, batch: Seen, step: int) -> tuple[Times, Times]:
    """t ≥ r of each row: the larger and the smaller of two draws, equal in the task's share of the rows."""
    stream = noise.key(task.seed, _SECOND, step)
    other = noise.normal(stream, 0, batch.places, (2,), batch.x0.dtype)
    normal = torch.special.ndtri(batch.u.to(other).clamp(2.0**-25, 1 - 2.0**-24))
    t, r = (torch.sigmoid(task.mean + task.std * z) for z in (normal, other[:, 0]))
    t, r = torch.maximum(t, r), torch.minimum(t, r)
    return t, torch.where(torch.special.ndtr(other[:, 1]) < task.instant, t, r)


def _check(process: Process) -> None:
    if not isinstance(process, Flow):
        raise ValueError(f"model.process={process}: a mean velocity is one of Flow(), x_t = (1 − t) x_0 + t ε")
