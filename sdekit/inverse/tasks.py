"""Operators by the names of the usual tasks, for data of any shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from sdekit.door import Width, door
from sdekit.inverse.operators import Blur, Downsample, Mask, Operator, Projection
from sdekit.names import lookup


def _inpaint(event: tuple[int, ...]) -> Operator:
    """The upper half of a picture is seen, or the first half of a row."""
    keep = torch.zeros(event, dtype=torch.bool)
    rows = keep if len(event) > 1 else keep[:, None]
    rows[..., : rows.shape[-2] // 2, :] = True
    return Mask(keep)


TASKS: dict[str, Callable[[tuple[int, ...]], Operator]] = {
    "inpaint": _inpaint,
    "superres": lambda event: Downsample(event, 2),
    "deblur": lambda event: Blur(event, 1.0),
    "compressed": lambda event: Projection(event, max(1, math.prod(event) // 4)),
}


@door
def operator(task: str, event: Sequence[Width]) -> Operator:
    """The operator of a task in ``TASKS`` for samples of shape ``event``.

    ``inpaint`` sees the upper half, ``superres`` means of 2 × 2, ``deblur`` a blur of one pixel, ``compressed`` a
    quarter as many random products as there are elements.

    Raises ValueError for an unknown task, and a shape that the operator does not take.

    >>> operator("superres", (1, 8, 8)).measured
    (1, 4, 4)
    """
    if not event:
        raise ValueError("event is empty: a sample has at least one dimension")
    return lookup("task", task, TASKS)(tuple(event))
