"""The loop: Adam, the average of the weights, and a run that survives a kill."""

from __future__ import annotations

import copy
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from sdekit.checkpoint import Checkpoint, Keeper, State
from sdekit.distributed import world
from sdekit.door import Count, Positive, bare, door
from sdekit.names import OneOf
from sdekit.training.watching import Watch

Look = Callable[[int, Tensor, bool], None]
LOOK = 20
"""Steps from one look at the losses to the next: it waits for the device."""


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

    Attributes:
        steps: updates of the weights.
        lr: the largest learning rate.
        warmup: steps until it is reached.
        ema: the average's decay in the end.
        clip: the largest norm of the whole gradient; longer ones are shortened to it. None: as it comes.
        accumulate: batches whose gradients an update averages: update k sees those of steps k n … k n + n − 1.
        precision: ``"bfloat16"`` computes the loss under ``torch.autocast``; the weights stay as they are.
    """

    steps: int
    lr: float
    warmup: int = 100
    ema: float = 0.999
    clip: Positive | None = None
    accumulate: Count = 1
    precision: Annotated[str, OneOf("float32", "bfloat16")] = "float32"

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
    watch: Watch | None = None,
) -> nn.Module:
    """Minimise ``loss_at(net, step)`` from the weights that ``net`` has; returns the averaged network.

    ``net`` is trained in place, in training mode, and left in the mode it had; the average is in evaluation mode, with
    ``net``'s buffers (batch norm's moments) as they are.

    Where the checkpoint exists the run goes on from it, and ends with the same bits where ``loss_at`` is a function of
    its arguments alone. It must be of the same run: equal in the plan, the network's architecture and code, every part
    of ``identity`` (what the loss depends on: numbers and names, or whole tensors, processes, functions, which are told
    by their contents), and in the loss of step 0 with the checkpoint's weights. Other initial weights are warned about.

    ``watch`` looks at the average now and then, and may stop the run before its last step; see ``Watch``.

    Ctrl-C finishes the step in hand, writes the checkpoint and raises KeyboardInterrupt.

    Under ``torchrun``, where the processes have joined, gradients are averaged over them; ``loss_at`` is then the loss
    of a process's own share of the batch, and the first process's weights are everybody's. It alone writes files.

    Raises ValueError for a network without parameters to train, for a checkpoint of another run, for a loss that is not
    finite (the checkpoint stays as it was before), and, with a checkpoint, for a part that cannot be identified.

    >>> net = nn.Linear(1, 1)
    >>> def loss_at(net, step):
    ...     return (net(torch.ones(4, 1)) - 3).square().mean()
    >>> average = fit(net, loss_at, Optimisation(steps=300, lr=0.1, warmup=10, ema=0.9), identity={})
    >>> round(average(torch.ones(1)).item(), 2)
    3.0
    """
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise ValueError("net: none of its parameters requires a gradient; net.requires_grad_() lets them train")
    with _training_mode(net):
        _same_weights(net)
        average = copy.deepcopy(net).requires_grad_(False).eval()
        state = State(net, average, torch.optim.Adam(net.parameters(), lr=plan.lr, betas=(0.9, 0.99)))
        parts = {**identity, **{f"plan.{name}": value for name, value in asdict(plan).items()}}
        parts |= watch.identity() if watch else {}
        keeper = checkpoint and Keeper(checkpoint, state, parts, lambda net: loss_at(net, 0).item())
        first = keeper.resume() if keeper else 0
        log = None if checkpoint is None or checkpoint.log is None or not _leads() else Path(checkpoint.log)
        with _looking(first, plan, log, progress) as look, _deferred_interrupt() as interrupted:
            for step in range(first, plan.steps):
                if watch and watch.over(step, state.best):
                    break
                loss = _update(state, loss_at, plan, step)
                stop = interrupted.is_set()  # once: whoever is interrupted later than here makes one more step
                due = keeper is not None and _leads() and (stop or keeper.due())
                look(step, loss, due)
                if watch and (value := watch.see(average, step + 1, plan.steps, state.best)) is not None:
                    _write(log, {"step": step + 1, "watched": value})
                if keeper and due:
                    keeper.save(step + 1)
                if stop:
                    raise KeyboardInterrupt
        if watch:
            watch.settle(average, state.best)
    return average


def _update(state: State, loss_at: Callable[[nn.Module, int], Tensor], plan: Optimisation, step: int) -> Tensor:
    """One step of Adam and of the average; the mean loss before it, still on the device."""
    for group in state.adam.param_groups:
        group["lr"] = plan.lr_at(step)
    state.adam.zero_grad()
    weights = list(state.net.parameters())
    loss = torch.zeros((), device=weights[0].device)
    for part in range(plan.accumulate):
        with torch.autocast(loss.device.type, torch.bfloat16, enabled=plan.precision == "bfloat16"):
            one = loss_at(state.net, step * plan.accumulate + part) / plan.accumulate
        one.backward()
        loss = loss + one.detach()
    _averaged([loss, *(weight.grad for weight in weights if weight.grad is not None)])
    if plan.clip is not None:
        nn.utils.clip_grad_norm_(weights, plan.clip)
    state.adam.step()
    bare(lerp_weights)(list(state.average.parameters()), [weight.detach() for weight in weights], plan.ema_at(step))
    for kept, buffer in zip(state.average.buffers(), state.net.buffers()):
        kept.copy_(buffer)
    return loss


def _leads() -> bool:
    """Whether this process writes the files of the run."""
    return world()[0] == 0


def _same_weights(net: nn.Module) -> None:
    if world()[1] > 1:
        for tensor in net.state_dict().values():
            dist.broadcast(tensor, 0)


def _averaged(tensors: Sequence[Tensor]) -> None:
    """Each one's mean over the processes, in place."""
    _, size = world()
    if size > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor.div_(size)


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
def _looking(first: int, plan: Optimisation, log: Path | None, progress: bool) -> Generator[Look]:
    """A function (step, loss, now) that reads the losses every ``LOOK`` steps, and where ``now``: that waits for the
    device. It shows and logs their mean, and raises ValueError for one that is not finite, before it is saved."""
    recent, began = list[Tensor](), time.monotonic()
    if log is not None:
        _keep_until(log, first)
    with _bar(first, plan.steps, progress and _leads()) as show:

        def look(step: int, loss: Tensor, now: bool) -> None:
            recent.append(loss)
            if not now and (step + 1) % LOOK and step + 1 < plan.steps:
                return
            losses = torch.stack(recent).tolist()
            recent.clear()
            for place, value in enumerate(losses, step + 1 - len(losses)):
                if not math.isfinite(value):
                    raise ValueError(f"the loss of step {place} is {value}: a checkpoint holds an earlier step, if any")
            mean = sum(losses) / len(losses)
            show(step + 1, mean)
            seconds = time.monotonic() - began
            _write(log, {"step": step + 1, "loss": mean, "lr": plan.lr_at(step), "seconds": seconds})

        yield look


def _write(log: Path | None, line: Mapping[str, float]) -> None:
    if log is not None:
        with log.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _keep_until(log: Path, step: int) -> None:
    """The lines of a run that goes on from ``step``: what was done after the last checkpoint is done again."""
    log.parent.mkdir(parents=True, exist_ok=True)
    lines = log.read_text().splitlines() if log.exists() and step else []
    log.write_text("".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= step))


@contextmanager
def _bar(first: int, last: int, show: bool) -> Generator[Callable[[int, float], None]]:
    """A function that moves a progress bar to a step and a loss, if wanted."""
    if not show:
        yield lambda step, loss: None
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.4f}")) as bar:
        task = bar.add_task("train", total=last, completed=first, loss=math.nan)
        yield lambda step, loss: bar.update(task, completed=step, loss=loss)


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
