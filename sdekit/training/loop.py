"""The loop: Adam, the average of the weights, and a run that survives a kill."""

from __future__ import annotations

import copy
import math
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from sdekit.checkpoint import Checkpoint, Keeper, State
from sdekit.door import door

Steps = Iterator[tuple[int, Callable[[Tensor], None]]]


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
