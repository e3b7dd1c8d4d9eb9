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
from sdekit.identity.parts import PLAIN, UnidentifiedError
from sdekit.identity.walk import key_of, parts_of
from sdekit.model import ScoreModel
from sdekit.noise import normal
from sdekit.sampling import Model

Behaviour = tuple[float | None, ...]

STATES = 2
_TIMES, _PROBES = 3, 2
_AT_A_TIME = STATES * _PROBES
TOLERANCE = 1e-3  # of the largest number at that time: rounding on another device, TF32's too, moves them less


@torch.no_grad()
def behaviour(model: Model, event: Sequence[int], **conditions: Any) -> Behaviour:
    r"""⟨r, F(x, t)⟩/√d for two x at each of three times and two r, all of them fixed; d is the size of an event.

    F is what the first network in the model predicts, ε where there is none: any other prediction hides F in x, or
    magnifies its rounding, at some times. The times part the range of λ in quarters, x ~ N(0, α² + σ²) and r ~ N(0, 1).
    None stands for NaN and infinity. Conditions with a row a sample have one for each of the two x (``STATES``). The
    model's ``nfe`` stays as it was. Raises what the model raises.

    >>> from sdekit import VP
    >>> model = ScoreModel(lambda x, t: 0.5 * x, VP())
    >>> len(behaviour(model, [3])), model.nfe
    (12, 0)
    """
    things = _reachable(model)
    kind = next((thing.predicts for thing in things if isinstance(thing, ScoreModel)), "eps")
    found, samples = list[float](), torch.arange(STATES, device=model.device)
    with _leaving_counters(things):
        for k, knot in enumerate(Grid.make(model.process, "logsnr", _TIMES + 1).knots[1:-1]):
            x = normal(0, k, samples, event) * math.hypot(knot.alpha, knot.sigma)
            output = model.predict(kind, x, knot.t, **conditions).to(torch.float64)
            probes = normal(1, k, torch.arange(_PROBES, device=x.device), event, torch.float64)
            found += (output.flatten(1) @ probes.flatten(1).T / math.sqrt(math.prod(event))).flatten().tolist()
    return tuple(value if math.isfinite(value) else None for value in found)


def alike(one: Behaviour, other: Behaviour) -> bool:
    """Whether they are equal but for rounding: within a thousandth of the largest number at each time.

    >>> alike((1.0, None), (1.0001, None)), alike((1.0, None), (1.01, None))
    (True, False)
    """
    if [value is None for value in one] != [value is None for value in other]:
        return False
    pairs = [(a or 0.0, b or 0.0) for a, b in zip(one, other)]
    for first in range(0, len(pairs), _AT_A_TIME):
        now = pairs[first : first + _AT_A_TIME]
        largest = max(abs(value) for pair in now for value in pair)
        if any(abs(a - b) > TOLERANCE * largest for a, b in now):
            return False
    return True


@contextmanager
def uncounted(model: Model) -> Generator[None]:
    """Calls of the model that count nowhere.

    >>> from sdekit import VP
    >>> model = ScoreModel(lambda x, t: x, VP())
    >>> with uncounted(model):
    ...     _ = model.eps(torch.zeros(1, 2), 0.5)
    >>> model.nfe
    0
    """
    with _leaving_counters(_reachable(model)):
        yield


@contextmanager
def _leaving_counters(things: list[Any]) -> Generator[None]:
    """Leaves the counters of the models among the things as they were."""
    counters = [(thing, thing.nfe) for thing in things if _counts(thing)]
    try:
        yield
    finally:
        for thing, nfe in counters:
            thing.nfe = nfe


def _counts(thing: Any) -> bool:
    return hasattr(type(thing), "predict") and "nfe" in getattr(thing, "__dict__", {})


def _reachable(thing: object) -> list[Any]:
    """All that a thing consists of, without numbers, as far as it can be read."""
    found, queue = {key_of(thing): thing}, [thing]
    for one in queue:
        with suppress(UnidentifiedError):
            new = [part for _, part in parts_of(bare(one)) if not _is_plain(part) and key_of(part) not in found]
            found.update((key_of(part), part) for part in new)  # kept, so that no other thing gets its id
            queue += new
    return queue


def _is_plain(part: object) -> bool:
    return type(part) in PLAIN or isinstance(part, bytes | Tensor | np.ndarray)
