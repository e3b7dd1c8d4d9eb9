r"""The door: what a public function or class is given is held against its annotations, once for each call.

``@door`` reads the annotations that are there and makes of each a ``Kind``: a value of a plain type passes, what means
the same is converted (numpy's and other numbers to ``int`` and ``float``, 0-d tensors to numbers, arrays to tensors),
anything else is refused by one sentence that names the argument, the value and what is allowed. Ranges are rules of
``sdekit.names`` inside ``Annotated``; those that many functions share have names (``Count``, ``Seed``, …).

Numbers and tensors that something is computed with must be finite, unless a rule says otherwise; ``@record`` is for
classes that keep what a run found, NaN too. Tensors on the CPU are looked through, once, before any loop. On an
accelerator they are not, since the host would wait there for all that is queued: a start with NaN gives samples of NaN.

>>> import numpy as np
>>> from typing import Annotated
>>> from sdekit.names import Between
>>> @door
... def grid(steps: Count, *, rho: Annotated[float, Between(1, 20)] = 7.0) -> object:
...     return steps, rho
>>> grid(np.int64(3), rho=2)
(3, 2.0)
>>> grid(2.5)
Traceback (most recent call last):
ValueError: steps=2.5: it must be a whole number from 1 to 100000000
"""

from sdekit.door.guard import bare, door, record
from sdekit.door.kinds import Kind, kind_of, shown
from sdekit.door.rules import (
    Count,
    Device,
    Evaluations,
    FileName,
    FloatDtype,
    Network,
    Place,
    Positive,
    Rows,
    Seed,
    Shape,
    Share,
    Takes,
    Tally,
    Tolerance,
    Width,
)

__all__ = [
    "Count", "Device", "Evaluations", "FileName", "FloatDtype", "Kind", "Network", "Place", "Positive", "Rows", "Seed",
    "Shape", "Share", "Takes", "Tally", "Tolerance", "Width", "bare", "door", "kind_of", "record", "shown",
]  # fmt: skip
