"""Rules and their names: what many functions ask of a count, a seed, a device, readable in ``help()``."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from sdekit.door.kinds import takes
from sdekit.names import Above, Between

LARGEST = 10**11
"""The most numbers that a state holds: 400 GB in float32."""


@dataclass(frozen=True)
class Sizes:
    """[n, *event]: whole numbers of at least 1."""

    def allows(self, value: Sequence[int]) -> bool:
        return len(value) > 0 and min(value) >= 1 and math.prod(value) <= LARGEST

    def after(self, words: str) -> str:
        return f"[n, *event], whole numbers from 1 on, no more than {LARGEST:.0e} together"


@dataclass(frozen=True)
class Rows:
    """One sample in each row; ``least`` dimensions with that of the rows."""

    least: int = 2

    def allows(self, value: Any) -> bool:
        return getattr(value, "x", value).ndim >= self.least  # of what a run returned, its samples

    def after(self, words: str) -> str:
        return f"{words}: [batch, *event] of at least {self.least} dimensions"


@dataclass(frozen=True)
class Here:
    """A device of this machine that computes."""

    def allows(self, value: torch.device | str) -> bool:
        try:
            device = torch.device(value)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError):  # each backend has its own way to say no
            return False
        return device.type != "meta" and (device.type != "cpu" or not device.index)

    def after(self, words: str) -> str:
        count, kind = torch.accelerator.device_count(), torch.accelerator.current_accelerator()
        return f"a device that is here: {', '.join(['cpu', *(f'{kind}:{i}' for i in range(count) if kind)])}"


@dataclass(frozen=True)
class Floating:
    """A dtype of floating-point numbers."""

    def allows(self, value: torch.dtype) -> bool:
        return value.is_floating_point

    def after(self, words: str) -> str:
        return "a dtype of floating-point numbers, such as torch.float32"


@dataclass(frozen=True)
class Takes:
    """A function that can be called with so many arguments; ``example`` shows one."""

    count: int
    example: str

    def allows(self, value: object) -> bool:
        return takes(value, self.count)

    def after(self, words: str) -> str:
        return f"a function, or a module, of {self.count} arguments, as {self.example}"


@dataclass(frozen=True)
class Named:
    """Where a file or a folder is: not empty, and without the character that ends a name."""

    def allows(self, value: str | os.PathLike[str]) -> bool:
        name = os.fspath(value)
        return bool(name) and "\0" not in name

    def after(self, words: str) -> str:
        return "the path of a file or a folder"


Count = Annotated[int, Between(1, 10**8)]
"""How many samples, or how many at once."""
Tally = Annotated[int, Between(0, 10**8)]
"""How many of what there may be none of."""
Width = Annotated[int, Between(1, 10**5)]
"""A size of a network's layers."""
Evaluations = Annotated[int, Between(1, 10**5)]
"""Network evaluations or steps of a run, whose table is made as a whole before it begins."""
Seed = int
"""What numbers the noise."""
Place = Annotated[int, Between(0, 2**62)]
"""The number of a sample, or of a step."""
Tolerance = Annotated[float, Above(0, equal=True)]
"""An error that is allowed."""
Positive = Annotated[float, Above(0)]
"""A length, a scale, a standard deviation."""
Share = Annotated[float, Between(0, 1)]
"""A part of a whole."""
Shape = Annotated[Sequence[int], Sizes()]
"""[n, *event]: the number of samples and the shape of one."""
Device = Annotated[torch.device | str, Here()]
"""A device of this machine, or its name."""
FloatDtype = Annotated[torch.dtype, Floating()]
"""The dtype of a state."""
Network = Annotated[Callable[..., Tensor], Takes(2, "net(x, t)")]
"""What predicts."""
FileName = Annotated[str | os.PathLike[str], Named()]
"""The name of a file or a folder."""
