"""Training a denoiser: what it is trained for, and which rows, labels and dropout a step sees."""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sdekit import noise
from sdekit.checkpoint import Checkpoint
from sdekit.data import as_tensor
from sdekit.distributed import share, world
from sdekit.door import Count, Place, Seed, Share, door
from sdekit.misfit import warn_of_data
from sdekit.model import ScoreModel, TimeMap
from sdekit.process import Process
from sdekit.training.couplings import coupling
from sdekit.training.loop import Optimisation, fit
from sdekit.training.objectives import risk_at
from sdekit.training.times import stratified, time_sampler
from sdekit.training.watching import Watch
from sdekit.training.weightings import weighting

PLAN = Optimisation(steps=5000, lr=2e-3)
_ORDER, _LABELS, DROPOUT, _PAIRS, _HELD_OUT = 1, 3, 4, 5, 6  # streams of one seed; 2 is ``times``'s


def _generator(*parts: int) -> torch.Generator:
    return torch.Generator().manual_seed(noise.key(*parts))


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


@runtime_checkable
class Batching(Protocol):
    """What a task says of its batches; see ``Denoising``."""

    @property
    def batch(self) -> int: ...
    @property
    def label_dropout(self) -> float: ...
    @property
    def null_label(self) -> int: ...
    @property
    def seed(self) -> int: ...


@door
@dataclass(frozen=True)
class Batches:
    """What a step of a student's training sees: see ``Denoising``."""

    batch: Count = 128
    label_dropout: Share = 0.0
    null_label: int = 0
    seed: Seed = 0


@door
@dataclass(frozen=True)
class Denoising:
    """What a denoiser is trained for; every name is one that the package knows.

    ``predicts="x0"`` was never far from the best on 5 small problems under 4 processes (``benchmarks/training.py``):
    its samples lay at most 1.44 times as far from held-out data as the best prediction's; v's 3.6 times, eps's 52 (the
    best on two moons, hopeless for a network too small to pass the noise through); flow diverged under VE.

    ``time`` may be f(process, t), as for ``ScoreModel``. ``times`` and ``weights`` name entries of ``TIME_SAMPLERS``
    and ``WEIGHTINGS``, with options; without ``weights`` the loss is on what the network predicts, unweighted.

    ``coupling`` names an entry of ``COUPLINGS``: which noise of the batch goes with which data.

    ``null_label`` is the label that stands for none: it replaces a label with probability ``label_dropout``, so that
    one network learns both (Ho & Salimans 2022, algorithm 1).
    """

    predicts: str = "x0"
    time: str | TimeMap = "half-log-snr"
    times: str = "importance"
    weights: str | None = None
    coupling: str = "independent"
    batch: int = 128
    label_dropout: float = 0.0
    null_label: int = 0
    seed: int = 0


@door
def train_denoiser(
    net: nn.Module,
    process: Process,
    data: Float[Tensor, "n *event"] | Float[np.ndarray, "n *event"],
    labels: Int[Tensor, "n"] | Int[np.ndarray, "n"] | None = None,
    task: Denoising = Denoising(),
    plan: Optimisation = PLAN,
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
    watch: Watch | None = None,
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
    time_sampler(task.times)
    pair = coupling(task.coupling)
    if task.weights is not None:
        weighting(task.weights)
    device = ScoreModel(net, process, task.predicts, task.time).device
    x0, given = checked_data(data).to(device), checked_labels(labels, len(data), net)
    warn_of_data(process, x0, "data")
    identity = {**vars(task), "process": process, "data": x0, "labels": given}

    def loss_at(net: nn.Module, step: int) -> Tensor:
        model = ScoreModel(net, process, task.predicts, task.time)
        batch = seen(x0, given, task, step)
        with drawing_for(device, task.seed, DROPOUT, step):
            eps = batch.eps[pair(batch.x0, batch.eps, noise.key(task.seed, _PAIRS, step))]
            return risk_at(model, batch.x0, batch.u, eps, task.times, task.weights, **batch.conditions)

    average = fit(net, loss_at, plan, identity, checkpoint, progress, watch)
    return ScoreModel(average, process, task.predicts, task.time)


@door
@dataclass(frozen=True)
class HeldOut:
    """For ``Watch``: f(network, steps) -> what ``train_denoiser`` minimises, on data that it is not given.

    Every row is seen at ``draws`` times spread over all, with noise that is the same at each look: two looks differ by
    the weights alone. Labels are as they are, without dropout. Raises ValueError for data and labels as
    ``train_denoiser``.

    >>> from sdekit.process import VP
    >>> class Zero(nn.Module):
    ...     def forward(self, x, t):
    ...         return torch.zeros_like(x)
    >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    >>> look = HeldOut(VP(), x, task=Denoising("eps", times="uniform"))  # E|0 - eps|² = 1
    >>> round(look(Zero(), 0), 1)
    1.0
    """

    process: Process
    data: Float[Tensor, "n *event"] | Float[np.ndarray, "n *event"]
    labels: Int[Tensor, "n"] | Int[np.ndarray, "n"] | None = None
    task: Denoising = Denoising()
    draws: Count = 8

    def __post_init__(self) -> None:
        checked_labels(self.labels, len(checked_data(self.data)), nn.Module())

    @torch.no_grad()
    def __call__(self, net: nn.Module, steps: int) -> float:
        x0, task = checked_data(self.data), self.task
        model = ScoreModel(net, self.process, task.predicts, task.time)
        labels = checked_labels(self.labels, len(x0), net)
        order = torch.randperm(len(x0), generator=_generator(task.seed, _HELD_OUT))
        first, pair, total = stratified(len(x0), task.seed, 0)[order], coupling(task.coupling), 0.0
        for draw in range(self.draws):
            for rows in torch.arange(len(x0)).split(task.batch):
                x, u = x0[rows].to(model.device), (first[rows] + draw / self.draws) % 1
                eps = noise.normal(noise.key(task.seed, _HELD_OUT), draw, rows.to(x.device), x.shape[1:], x.dtype)
                eps = eps[pair(x, eps, noise.key(task.seed, _HELD_OUT, draw))]
                told = {} if labels is None else {"label": labels[rows].to(x.device)}
                risk = risk_at(model, x, u.to(x.device), eps, task.times, task.weights, **told)
                total = total + risk * len(rows) / (self.draws * len(x0))
        return float(total)


@dataclass(frozen=True)
class Seen:
    """This process's share of a step's batch: places in it, rows of the data, quantiles of times, and noise."""

    places: Int[Tensor, "share"]
    rows: Int[Tensor, "share"]
    x0: Tensor
    conditions: Mapping[str, Any]
    u: Float[Tensor, "share"]
    eps: Tensor


def seen(x0: Tensor, labels: Tensor | None, task: Batching, step: int) -> Seen:
    """The batch of step number ``step``, its labels dropped as the task says, or this process's part of it.

    Raises ValueError where the batch cannot be shared out equally.
    """
    (_, processes), mine, device = world(), share(task.batch), x0.device
    if task.batch % processes:
        raise ValueError(f"batch={task.batch}: {processes} processes share it out: it must be a multiple of that")
    rows, part = batch_rows(len(x0), task.batch, task.seed, step), slice(mine.start, mine.stop)
    given = {} if labels is None else {"label": drop_labels(labels[rows], task, step)[part].to(device)}
    rows, places = rows[part].to(device), torch.arange(mine.start, mine.stop, device=device)
    u = stratified(task.batch, task.seed, step, device)[part]
    eps = noise.normal(task.seed, step, places, x0.shape[1:], x0.dtype)
    return Seen(places, rows, x0[rows], given, u, eps)


def checked_data(data: Any) -> Tensor:
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


def checked_labels(labels: Any, count: int, net: nn.Module) -> Tensor | None:
    """As a tensor on the CPU, one for each row of the data, and of the network's ``classes`` where it states them."""
    if labels is None:
        return None
    tensor = as_tensor(labels).cpu()
    if tensor.shape != (count,):
        raise ValueError(f"labels has shape {list(tensor.shape)}: it must be [{count}], one for each row of data")
    classes = getattr(net, "classes", None)
    if isinstance(classes, int) and not 0 <= int(tensor.min()) <= int(tensor.max()) <= classes:
        raise ValueError(
            f"labels run from {int(tensor.min())} to {int(tensor.max())}: the network takes 0 … {classes}, of which the"
            " last stands for none"
        )
    return tensor


def drop_labels(labels: Tensor, task: Batching, step: int) -> Tensor:
    dropped = torch.rand(len(labels), generator=_generator(task.seed, _LABELS, step)) < task.label_dropout
    return labels.masked_fill(dropped.to(labels.device), task.null_label)


def trainable(model: ScoreModel) -> nn.Module:
    """A copy of the model's network, all of whose parameters train."""
    if not isinstance(model.net, nn.Module):
        raise ValueError(f"model: its net is a {type(model.net).__name__}; only an nn.Module can be trained")
    return copy.deepcopy(model.net).requires_grad_()


@contextmanager
def drawing_for(device: torch.device, *parts: int) -> Generator[None, None, None]:
    """torch's own generators, which dropout draws from, seeded by ``parts``, and then as they were."""
    cuda, seed = device.type == "cuda", noise.key(*parts)
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
