"""The state of a training run in a file, and whether a file is of the run at hand.

A run is what decides its result: the plan, the network's architecture and code, and what its caller names (data,
process, task). Each part is kept by name, so that a refusal can say which differs. What a run computes is kept too,
the loss of step 0 with the weights of the file: it tells runs apart that no name does.

The weights that a network starts from decide the result as well, but a run that goes on takes the file's: whoever
built the network anew, without a seed, gets the run that wrote the file. So other initial weights are a warning.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from sdekit.door import FileName, door
from sdekit.identity import UnidentifiedError, identify
from sdekit.names import Between


@door
@dataclass(frozen=True)
class Checkpoint:
    """Where and how often (seconds) the loop writes its state; ``every=0`` writes it after each step.

    With ``log`` it also writes a line of JSON every ``loop.LOOK`` steps: the step, the mean loss since the line before,
    the learning rate and the seconds since the run began or went on.

    >>> Checkpoint("run.ckpt").every
    20.0
    """

    path: FileName
    every: Annotated[float, Between(0, math.inf)] = 20.0
    log: FileName | None = None


def describe(parts: Mapping[str, Any]) -> dict[str, str]:
    """Each part in a few words that are equal only for equal parts: plain values as they are, others by a digest.

    Raises ValueError for a part whose contents cannot be read: it would look like any other of its kind.

    >>> describe({"batch": 3, "data": torch.zeros(2, 2)})["batch"]
    '3'
    """
    return {name: _words(name, part) for name, part in parts.items()}


def architecture(net: nn.Module) -> str:
    """The network without the numbers that a checkpoint brings: its layers, their sizes and settings, its code.

    >>> architecture(nn.Linear(2, 3)) == architecture(nn.Linear(2, 3)), architecture(nn.Linear(2, 4))[:20]
    (True, 'Linear of 12 numbers')
    """
    blank = copy.deepcopy(net)
    tensors = [tensor for tensor in blank.state_dict().values() if isinstance(tensor, Tensor)]
    for tensor in tensors:
        tensor.zero_()
    return f"{type(net).__name__} of {sum(map(Tensor.numel, tensors)):,} numbers {_identified('the network', blank)}"


@dataclass(frozen=True)
class State:
    """What a training run changes as it goes."""

    net: nn.Module
    average: nn.Module
    adam: torch.optim.Optimizer
    best: dict[str, Any] = field(default_factory=dict[str, Any])  # what ``training.Watch`` has seen

    def parts(self) -> dict[str, Any]:
        return {
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "adam": self.adam.state_dict(),
            "best": self.best,
        }


class Keeper:
    """Writes a run's state to its checkpoint, and takes it from there.

    Args:
        parts: what decides the result beside the network, for ``describe``.
        probe: the loss of step 0 of a network in evaluation mode.
    """

    def __init__(
        self, checkpoint: Checkpoint, state: State, parts: Mapping[str, Any], probe: Callable[[nn.Module], float]
    ) -> None:
        self.path, self.every = Path(checkpoint.path), checkpoint.every
        self.state, self.probe = state, probe
        self.identity = {**describe(parts), "the network's architecture": architecture(state.net)}
        self.initial = _identified("the network", state.net)
        self.saved = time.monotonic()

    def resume(self) -> int:
        """The step to go on with, 0 where there is no file.

        ValueError for a damaged file and for one of another run; the network is then as it was.
        """
        if not self.path.exists():
            return 0
        stored = _read(self.path)
        differences = _differences(json.loads(stored["identity"]), self.identity)
        if differences:
            raise ValueError(_refusal(self.path, "; ".join(differences)))
        state = self.state
        state.average.load_state_dict(stored["average"])
        then, now = stored["loss"], self.probe(state.average)
        if not torch.tensor(then).isclose(torch.tensor(now), rtol=1e-3, atol=0, equal_nan=True):
            raise ValueError(_refusal(self.path, f"with its weights the loss of step 0 was {then:g}, is {now:g}"))
        self._compare_weights(stored)
        state.net.load_state_dict(stored["net"])
        state.adam.load_state_dict(stored["adam"])
        state.best.update(stored.get("best", {}))  # older files have none
        self.initial = stored["initial"]
        return stored["step"]

    def due(self) -> bool:
        """Whether as much time has passed since the last writing as the checkpoint says."""
        return time.monotonic() - self.saved >= self.every

    def save(self, step: int) -> None:
        """Write the state before step ``step``."""
        record = {"identity": json.dumps(self.identity), "initial": self.initial, "step": step}
        loss = self.probe(self.state.average)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(self.path.name + ".tmp")
        with open(temporary, "wb") as file:
            torch.save({**record, "loss": loss, **self.state.parts()}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)  # a kill leaves the old file or the new one, never half of one
        self.saved = time.monotonic()

    def _compare_weights(self, stored: Mapping[str, Any]) -> None:
        own = {name: part.cpu() for name, part in self.state.net.state_dict().items() if isinstance(part, Tensor)}
        if stored["initial"] == self.initial or all(torch.equal(own[name], stored["net"][name]) for name in own):
            return
        warnings.warn(
            f"checkpoint {str(self.path)!r} began from other initial weights than the network has: its own are taken, "
            "and the result is that of the run that wrote it; name another path for a run from these",
            stacklevel=4,
        )


def _words(name: str, part: Any) -> str:
    if part is None or isinstance(part, (str, int, float)):
        return repr(part)
    kind = f"{part.dtype} {list(part.shape)}" if isinstance(part, Tensor) else type(part).__name__
    kind = shorten(repr(part), 100) if is_dataclass(part) else kind
    return f"{kind} {_identified(name, part)}"


def _identified(name: str, part: Any) -> str:
    try:
        return identify(part)
    except UnidentifiedError as error:
        raise ValueError(
            f"{name} cannot be told from another, so that no checkpoint is known to be of its run: {error}; make it of "
            "numbers, tensors and functions, or train without a checkpoint"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        stored = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise ValueError(f"checkpoint {str(path)!r} is damaged or none at all: delete it to start over") from error
    missing = {"identity", "initial", "loss", "step", "net", "average", "adam"} - set(stored)
    if missing:
        raise ValueError(f"checkpoint {str(path)!r} lacks {', '.join(sorted(missing))}: delete it to start over")
    return stored


def _differences(theirs: Mapping[str, str], own: Mapping[str, str]) -> list[str]:
    names = [name for name in {**own, **theirs} if theirs.get(name) != own.get(name)]
    return [f"{name} was {theirs.get(name, 'not given')}, is {own.get(name, 'not given')}" for name in names]


def _refusal(path: Path, differences: str) -> str:
    return f"checkpoint {str(path)!r} is of another run: {differences}; delete it to start over, or name another path"
