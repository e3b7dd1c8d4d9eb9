r"""Training: denoising score matching, time sampling, EMA, and a loop that survives a kill.

Everything random in a step (which rows, which times, which noise, what dropout drops) is a pure function of
(seed, step). So a checkpoint is the weights, their average, Adam's moments and a step number, and a run that was killed
and resumed ends with the same bits as one that was not, on the same machine with the same number of threads.
"""

from __future__ import annotations

import copy
import math
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from sdekit import noise
from sdekit.checkpoint import Checkpoint, Keeper, State
from sdekit.data import as_tensor
from sdekit.door import Count, Device, Place, Rows, Seed, door
from sdekit.misfit import warn_of_data
from sdekit.model import ScoreModel, TimeMap
from sdekit.names import lookup
from sdekit.prediction import PREDICTIONS
from sdekit.process import Process, match
from sdekit.process import State as Samples

Steps = Iterator[tuple[int, Callable[[Tensor], None]]]

_ORDER, _OFFSET, _LABELS, _DROPOUT = 1, 2, 3, 4  # streams of one seed


@door
def denoising_loss(
    model: ScoreModel, x0: Samples, t: Float[Tensor, "batch"], eps: Samples, **conditions: Any
) -> Float[Tensor, "batch"]:
    r"""‖F(x_t, t) − F*‖² / d per sample: F is what the network predicts, F* = a x_0 + b ε, x_t = α x_0 + σ ε.

    Its minimiser over F is E[F* | x_t], for eps −σ times the score (Vincent 2011; Ho et al. 2020, eq. 14).

    Args:
        x0: clean data [batch, *event].
        t: times [batch].
        eps: standard normal noise of x0's shape.
        conditions: passed to the network.

    >>> from sdekit.process import VP
    >>> model = ScoreModel(lambda x, t: torch.zeros_like(x), VP(), predicts="eps")
    >>> denoising_loss(model, torch.zeros(2, 4), torch.tensor([0.1, 0.9]), torch.full((2, 4), 2.0))
    tensor([4., 4.])
    """
    if x0.shape != eps.shape or t.shape != x0.shape[:1]:
        raise ValueError(
            f"x0, t, eps: shapes {list(x0.shape)}, {list(t.shape)}, {list(eps.shape)}: t needs one time a row"
        )
    a, b = PREDICTIONS[model.predicts](model.process, t)
    target = match(a, x0) * x0 + match(b, x0) * eps
    output = model.predict(model.predicts, model.process.perturb(x0, t, eps), t, **conditions)
    return (output - target).square().flatten(1).mean(1)


@door
def uniform_times(process: Process, u: Tensor) -> tuple[Tensor, Tensor]:
    """Times and weights at quantiles u: E[w L(t)] is the mean of L over t in [t_min, t_max].

    >>> from sdekit.process import VE
    >>> uniform_times(VE(), torch.tensor([0.25]))
    (tensor([0.2500]), tensor([1.]))
    """
    return process.t_min + (process.t_max - process.t_min) * u, torch.ones_like(u)


@door
def importance_times(process: Process, u: Tensor) -> tuple[Tensor, Tensor]:
    """Times uniform in half-log-SNR: E[w L(t)] = ½ ∫ g²/σ² L(t) dt over [t_min, t_max].

    With L the ε-loss that is the likelihood weighting, and drawing t in proportion to g²/σ² = −2 dλ/dt the importance
    sampling of Song et al. 2021 (Maximum likelihood training, section 5.1); the weight is the constant range of λ.

    >>> from sdekit.process import VE
    >>> t, w = importance_times(VE(0.1, 10.0), torch.tensor([0.5]))
    >>> round(t.item(), 6), round(w.item(), 6) == round(math.log(100), 6)
    (0.5, True)
    """
    high, low = process.half_log_snr(process.t_min), process.half_log_snr(process.t_max)
    t = process.t_of_half_log_snr(high + (low - high) * u)
    return t.clamp(process.t_min, process.t_max), torch.full_like(u, high - low)


TIME_SAMPLERS: dict[str, Callable[[Process, Tensor], tuple[Tensor, Tensor]]] = {
    "uniform": uniform_times,
    "importance": importance_times,
}


def _generator(*parts: int) -> torch.Generator:
    return torch.Generator().manual_seed(noise.key(*parts))


@door
def stratified(count: Count, seed: Seed, step: Place, device: Device = "cpu") -> Float[Tensor, "count"]:
    """(i + U)/count with one U in [0, 1) for each (seed, step): each value alone is uniform, the mean varies little.

    Kingma et al. 2021, appendix I.1.

    >>> u = stratified(4, seed=0, step=0)
    >>> torch.equal((u * 4).floor(), torch.arange(4.0))
    True
    """
    offset = (noise.key(seed, _OFFSET, step) >> 32) * 2.0**-32
    return (torch.arange(count, dtype=torch.float32, device=device) + offset) / count


@door
def batch_rows(count: Count, batch: Count, seed: Seed, step: Place) -> Int[Tensor, "batch"]:
    """Which of ``count`` rows step number ``step`` sees: each epoch is a permutation, batches run on across epochs.

    >>> torch.cat([batch_rows(6, 4, seed=0, step=s) for s in range(3)]).bincount().tolist()
    [2, 2, 2, 2, 2, 2]
    """
    first = step * batch
    epochs = range(first // count, (first + batch - 1) // count + 1)
    order = [torch.randperm(count, generator=_generator(seed, _ORDER, epoch)) for epoch in epochs]
    return torch.cat(order)[first - epochs[0] * count :][:batch]


@door
def lerp_weights(average: Sequence[Tensor], weights: Sequence[Tensor], decay: float) -> None:
    """average ← decay · average + (1 − decay) · weights, in place.

    >>> average = [torch.zeros(2)]
    >>> lerp_weights(average, [torch.ones(2)], 0.75)
    >>> average
    [tensor([0.2500, 0.2500])]
    """
    for mean, weight in zip(average, weights):
        mean.lerp_(weight, 1 - decay)


@door
@dataclass(frozen=True)
class Optimisation:
    """Adam with linear warm-up, a cosine to zero, and an exponential average of the weights.

    The average's decay after n steps is min(ema, (1 + n)/(10 + n)), so that early weights are forgotten.
    """

    steps: int
    lr: float
    warmup: int = 100
    ema: float = 0.999

    def lr_at(self, step: int) -> float:
        """The learning rate of step ``step``, counted from 0."""
        return self.lr * min(1.0, (step + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def ema_at(self, step: int) -> float:
        """The average's decay at step ``step``, counted from 0."""
        return min(self.ema, (1 + step) / (10 + step))


@door
@dataclass(frozen=True)
class Denoising:
    """What a denoiser is trained for; every name is one that ``ScoreModel`` or ``TIME_SAMPLERS`` knows.

    ``predicts="x0"`` was never far from the best on 5 small problems under 4 processes (``benchmarks/training.py``):
    its samples lay at most 1.44 times as far from held-out data as the best prediction's; v's 3.6 times, eps's 52 (the
    best on two moons, hopeless for a network too small to pass the noise through); flow diverged under VE.

    ``time`` may be f(process, t), as for ``ScoreModel``.

    ``null_label`` is the label that stands for none: it replaces a label with probability ``label_dropout``, so that
    one network learns both (Ho & Salimans 2022, algorithm 1).
    """

    predicts: str = "x0"
    time: str | TimeMap = "half-log-snr"
    times: str = "importance"
    batch: int = 128
    label_dropout: float = 0.0
    null_label: int = 0
    seed: int = 0


@door
def fit(
    net: nn.Module,
    loss_at: Callable[[nn.Module, int], Tensor],
    plan: Optimisation,
    identity: Mapping[str, Any],
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
) -> nn.Module:
    """Minimise ``loss_at(net, step)`` from the weights that ``net`` has; returns the averaged network.

    ``net`` is trained in place, in training mode, and left in the mode it had; the average is in evaluation mode, with
    ``net``'s buffers (batch norm's moments) as they are.

    Where the checkpoint exists the run goes on from it, and ends with the same bits where ``loss_at`` is a function of
    its arguments alone. It must be of the same run: equal in the plan, the network's architecture and code, every part
    of ``identity`` (what the loss depends on: numbers and names, or whole tensors, processes, functions, which are told
    by their contents), and in the loss of step 0 with the checkpoint's weights. Other initial weights are warned about.

    Ctrl-C finishes the step in hand, writes the checkpoint and raises KeyboardInterrupt.

    Raises ValueError for a network without parameters to train, for a checkpoint of another run, and, with a
    checkpoint, for a part that cannot be identified.
    """
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise ValueError("net: none of its parameters requires a gradient; net.requires_grad_() lets them train")
    with _training_mode(net):
        average = copy.deepcopy(net).requires_grad_(False).eval()
        state = State(net, average, torch.optim.Adam(net.parameters(), lr=plan.lr, betas=(0.9, 0.99)))
        parts = {**identity, **{f"plan.{name}": value for name, value in asdict(plan).items()}}
        keeper = checkpoint and Keeper(checkpoint, state, parts, lambda net: loss_at(net, 0).item())
        first = keeper.resume() if keeper else 0
        with _steps(first, plan.steps, progress) as steps, _deferred_interrupt() as interrupted:
            for step, show in steps:
                show(_update(state, loss_at, plan, step))
                if keeper:
                    keeper.keep(step + 1, at_once=interrupted.is_set())
                if interrupted.is_set():
                    raise KeyboardInterrupt
    return average


@door
def train_denoiser(
    net: nn.Module,
    process: Process,
    data: Float[Tensor, "n *event"] | Float[np.ndarray, "n *event"],
    labels: Int[Tensor, "n"] | Int[np.ndarray, "n"] | None = None,
    task: Denoising = Denoising(),
    plan: Optimisation = Optimisation(steps=5000, lr=2e-3),
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
) -> ScoreModel:
    """Train ``net`` on ``data`` by denoising score matching; returns the averaged network as a model.

    With ``labels`` the network is called with ``label=``. Dropout draws for (``task.seed``, step) too. See ``fit`` for
    the modes of the network and for what a checkpoint must agree in: here the data, labels, process and task as well.

    Raises ValueError for data that are empty, not floating-point or of one dimension, labels of another number,
    unknown names, and as ``fit``. Warns (``misfit.MisfitWarning``) where data are far from standardised
    (``data.Standardise`` mends it): where the start N(0, σ²) or the noise left at t_min is off by more than a tenth
    of their standard deviation, or a feature's root mean square is above 3.

    >>> from sdekit.nn import UNet
    >>> from sdekit.process import VP
    >>> net = UNet(widths=(8, 8), embedding=8, groups=2)
    >>> train_denoiser(net, VP(), torch.zeros(10, 1, 4, 4), plan=Optimisation(steps=2, lr=1e-3)).predicts
    'x0'
    """
    lookup("time sampler", task.times, TIME_SAMPLERS)
    device = ScoreModel(net, process, task.predicts, task.time).device
    x0, given = _data(data).to(device), _labels(labels, len(data))
    warn_of_data(process, x0, "data")
    identity = {**vars(task), "process": process, "data": x0, "labels": given}

    def loss_at(net: nn.Module, step: int) -> Tensor:
        model = ScoreModel(net, process, task.predicts, task.time)
        rows = batch_rows(len(x0), task.batch, task.seed, step)
        conditions = {} if given is None else {"label": _drop_labels(given[rows], task, step).to(device)}
        with _drawing_for(device, task.seed, _DROPOUT, step):
            return denoising_risk(model, x0[rows.to(device)], task.times, task.seed, step, **conditions)

    average = fit(net, loss_at, plan, identity, checkpoint, progress)
    return ScoreModel(average, process, task.predicts, task.time)


def _data(data: Any) -> Tensor:
    tensor = as_tensor(data)
    if tensor.ndim < 2:
        shape = list(tensor.shape)
        raise ValueError(
            f"data has shape {shape}: it must be [n, *event]; n numbers are n events of one: data[:, None]"
        )
    if len(tensor) == 0:
        raise ValueError("data: the data set is empty")
    if not tensor.is_floating_point():
        raise ValueError(f"data are {tensor.dtype}: they must be floating-point numbers, of about unit variance")
    return tensor


def _labels(labels: Any, count: int) -> Tensor | None:
    if labels is None:
        return None
    tensor = as_tensor(labels).cpu()
    if tensor.shape != (count,):
        raise ValueError(f"labels has shape {list(tensor.shape)}: it must be [{count}], one for each row of data")
    return tensor


@door
def denoising_risk(
    model: ScoreModel, x0: Annotated[Samples, Rows()], times: str, seed: Seed, step: Place, **conditions: Any
) -> Float[Tensor, ""]:
    """Mean of w · ``denoising_loss`` over a batch, its times and noise drawn for (seed, step).

    An estimate of what the time sampler ``times`` states, the same at every call.
    """
    u = stratified(len(x0), seed, step, x0.device)
    t, weights = lookup("time sampler", times, TIME_SAMPLERS)(model.process, u)
    eps = noise.normal(seed, step, torch.arange(len(x0), device=x0.device), x0.shape[1:], x0.dtype)
    return (weights * denoising_loss(model, x0, t.to(x0.dtype), eps, **conditions)).mean()


def _drop_labels(labels: Tensor, task: Denoising, step: int) -> Tensor:
    dropped = torch.rand(len(labels), generator=_generator(task.seed, _LABELS, step)) < task.label_dropout
    return labels.masked_fill(dropped.to(labels.device), task.null_label)


def _update(state: State, loss_at: Callable[[nn.Module, int], Tensor], plan: Optimisation, step: int) -> Tensor:
    for group in state.adam.param_groups:
        group["lr"] = plan.lr_at(step)
    state.adam.zero_grad()
    loss = loss_at(state.net, step)
    loss.backward()
    state.adam.step()
    weights = [parameter.detach() for parameter in state.net.parameters()]
    lerp_weights(list(state.average.parameters()), weights, plan.ema_at(step))
    for kept, buffer in zip(state.average.buffers(), state.net.buffers()):
        kept.copy_(buffer)
    return loss.detach()


@contextmanager
def _training_mode(net: nn.Module) -> Generator[None, None, None]:
    """The network in training mode, and then as it was; frozen parts of one that trains already stay frozen."""
    modes = {part: part.training for part in net.modules()}
    if not net.training:
        net.train()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@contextmanager
def _drawing_for(device: torch.device, *parts: int) -> Generator[None, None, None]:
    """torch's own generators, which dropout draws from, seeded by ``parts``, and then as they were."""
    cuda, seed = device.type == "cuda", noise.key(*parts)
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def _steps(first: int, last: int, progress: bool) -> Generator[Steps, None, None]:
    """The steps still to do, each with a function that shows its loss, under a progress bar if wanted."""
    if not progress:
        yield ((step, lambda loss: None) for step in range(first, last))
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.4f}")) as bar:
        task = bar.add_task("train", total=last, completed=first, loss=math.nan)

        def show(loss: Tensor) -> None:
            bar.advance(task)
            completed = bar.tasks[0].completed
            if completed % 20 == 0:  # reading the loss waits for the device
                bar.update(task, loss=loss.item())

        yield ((step, show) for step in range(first, last))


@contextmanager
def _deferred_interrupt() -> Generator[threading.Event, None, None]:
    """An event that Ctrl-C sets, so that a step is finished before it stops; a second Ctrl-C stops at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.getsignal(signal.SIGINT)

    def once(number: int, frame: Any) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, once)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
