"""What a model computes at a few fixed points: numbers that differ where its samples would."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdekit.grid import Grid
from sdekit.identity.networks import bare
from sdekit.identity.parts import PLAIN, UnidentifiedError, parts
from sdekit.identity.walk import key_of
from sdekit.noise import normal
from sdekit.sampling import Model

Behaviour = tuple[float | None, ...]

_TIMES, _STATES, _PROBES = 3, 2, 2
TOLERANCE = 1e-3  # of the largest number: rounding of float32 on another device moves them less, TF32's too


@torch.no_grad()
def behaviour(model: Model, event: Sequence[int]) -> Behaviour:
    r"""⟨r, ε(x, t)⟩/√d for two x at each of three times and two r, all of them fixed; d is the size of an event.

    The times part the range of λ in quarters, x ~ N(0, α² + σ²) and r ~ N(0, 1). None stands for NaN and infinity. The
    model's ``nfe`` stays as it was. Raises what the model raises.

    >>> from sdekit import VP, ScoreModel
    >>> model = ScoreModel(lambda x, t: 0.5 * x, VP())
    >>> len(behaviour(model, [3])), model.nfe
    (12, 0)
    """
    found, samples = list[float](), torch.arange(_STATES, device=model.device)
    with _uncounted(model):
        for k, knot in enumerate(Grid.make(model.process, "logsnr", _TIMES + 1).knots[1:-1]):
            x = normal(0, k, samples, event) * math.hypot(knot.alpha, knot.sigma)
            output = model.predict("eps", x, knot.t).to(torch.float64)
            probes = normal(1, k, torch.arange(_PROBES, device=x.device), event, torch.float64)
            found += (output.flatten(1) @ probes.flatten(1).T / math.sqrt(math.prod(event))).flatten().tolist()
    return tuple(value if math.isfinite(value) else None for value in found)


def alike(one: Behaviour, other: Behaviour) -> bool:
    """Whether they are equal but for rounding: within a thousandth of the largest number.

    >>> alike((1.0, None), (1.0001, None)), alike((1.0, None), (1.01, None))
    (True, False)
    """
    if [value is None for value in one] != [value is None for value in other]:
        return False
    pairs = [(a, b) for a, b in zip(one, other) if a is not None and b is not None]
    largest = max((abs(value) for pair in pairs for value in pair), default=0.0)
    return all(abs(a - b) <= TOLERANCE * largest for a, b in pairs)


@contextmanager
def _uncounted(model: Model) -> Generator[None, None, None]:
    """Leaves the counters of a model, and of the models it wraps, as they were."""
    counters = [(thing, thing.nfe) for thing in _reachable(model) if _counts(thing)]
    try:
        yield
    finally:
        for thing, nfe in counters:
            thing.nfe = nfe


def _counts(thing: Any) -> bool:
    return hasattr(type(thing), "predict") and "nfe" in getattr(thing, "__dict__", {})


def _reachable(thing: object) -> list[Any]:
    """All that a thing consists of, without numbers, as far as it can be read."""
    found = {key_of(thing): thing}
    queue = [thing]
    for one in queue:
        with suppress(UnidentifiedError):
            for _, part in parts(bare(one)):
                plain = type(part) in PLAIN or isinstance(part, bytes | Tensor | np.ndarray)
                if not plain and found.setdefault(key_of(part), part) is part:
                    queue.append(part)
    return queue
