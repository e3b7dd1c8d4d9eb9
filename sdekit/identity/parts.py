"""What values and objects consist of: numbers, tensors, containers, attributes, and what pickle takes apart."""

from __future__ import annotations

import copyreg
import logging
import struct
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from enum import Enum
from functools import cached_property, lru_cache, singledispatch
from pathlib import PurePath
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

Parts = Iterable[tuple[str, object]]

PLAIN = frozenset({int, float, complex, bool, str, range, type(None), type(...), type(NotImplemented)})


class UnidentifiedError(ValueError):
    """What was asked for holds something whose state cannot be read; the message says where."""

    def __init__(self, what: str, *path: str) -> None:
        super().__init__(f"{'.'.join(path) + ' is ' if path else ''}{what}, whose state cannot be read")
        self.what, self.path = what, path


@singledispatch
def parts(thing: Any) -> Parts:
    """What a thing consists of, each part with a label; here of an object of any class."""
    if isinstance(thing, Iterator | Random | torch.Generator | np.random.Generator | np.random.RandomState):
        raise UnidentifiedError(f"a {type(thing).__name__}")
    hidden = layout(type(thing))[2]
    return [("", type(thing)), *(reduced(thing) if hidden else [*contents(thing), *sorted(state(thing).items())])]


@lru_cache(256)
def layout(cls: type) -> tuple[dict[str, Any], set[str], bool]:
    """Of a class: its slots, the names of what it caches, and whether it holds what Python cannot see."""
    word = struct.calcsize("P")
    slots, cached, hidden = dict[str, Any](), set[str](), False
    for one in cls.__mro__[:-1]:
        own = {name: slot for name, slot in vars(one).items() if isinstance(slot, types.MemberDescriptorType)}
        known = word * (len(own) + sum(name in vars(one) for name in ("__dict__", "__weakref__")))
        base = one.__base__ or object
        hidden |= one not in _SEEN_THROUGH and one.__basicsize__ > base.__basicsize__ + known
        slots.update(own)
        cached |= {name for name, value in vars(one).items() if isinstance(value, cached_property)}
    return slots, cached, hidden


_SEEN_THROUGH = {int, float, complex, str, list, tuple, dict, set, frozenset, deque, OrderedDict, defaultdict}


def state(thing: Any) -> dict[str, object]:
    """The attributes that an object itself holds, without what it caches and without a model's counter."""
    slots, cached, _ = layout(type(thing))
    found = {str(name): value for name, value in getattr(thing, "__dict__", {}).items() if name not in cached}
    for name, slot in slots.items():
        with suppress(AttributeError):
            found[name] = slot.__get__(thing)
    if hasattr(type(thing), "predict"):
        found.pop("nfe", None)
    return found


def contents(thing: Any) -> Parts:
    """What an object holds as a container or a number."""
    if isinstance(thing, dict):
        return [pair for key, value in thing.items() for pair in (("", key), (_label(key), value))]
    if isinstance(thing, (list, tuple, set, frozenset, deque)):
        return [("maxlen", getattr(thing, "maxlen", None)), *(("", part) for part in thing)]
    numbers: tuple[Any, ...] = (int, float, complex, str)
    return [("", base.__repr__(thing)) for base in numbers if isinstance(thing, base)]


def _label(key: object) -> str:
    return key if isinstance(key, str) else repr(key) if type(key) in PLAIN else ""


def reduced(thing: Any) -> Parts:
    """As pickle takes it apart."""
    try:
        reduce = copyreg.dispatch_table.get(type(thing))
        form = reduce(thing) if reduce else thing.__reduce_ex__(4)
    except Exception as error:
        raise UnidentifiedError(f"a {type(thing).__name__}") from error
    return [(form, None)] if isinstance(form, str) else [
        ("", list(part) if isinstance(part, Iterator) else part) for part in form
    ]  # fmt: skip


def register(*kinds: Any) -> Callable[[Callable[[Any], Parts]], Callable[[Any], Parts]]:
    def add(function: Callable[[Any], Parts]) -> Callable[[Any], Parts]:
        for one in kinds:
            parts.register(one, function)
        return function

    return add


@register(list, tuple, dict, set, frozenset)
def _container(thing: Any) -> Parts:
    exact = type(thing) in (list, tuple, dict, set, frozenset)
    return contents(thing) if exact else [("", type(thing)), *contents(thing), *sorted(state(thing).items())]


@register(types.MappingProxyType)
def _mapping(thing: Any) -> Parts:
    return contents(dict(thing))


@register(Tensor)
def _tensor(thing: Tensor) -> Parts:
    hidden = thing.is_meta or thing.is_quantized or thing.layout != torch.strided
    values = thing.detach() if hidden else thing.detach().cpu()
    if hidden or type(values) is not Tensor:
        raise UnidentifiedError(f"a {type(thing).__name__} of {thing.layout} on {thing.device}")
    plain = values.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
    return [(f"{values.dtype} {list(values.shape)}", plain.numpy().tobytes())]


@register(np.ndarray, np.generic)
def _array(thing: Any) -> Parts:
    values = thing.tolist() if thing.dtype.hasobject else thing.tobytes()
    more = {} if isinstance(thing, np.memmap) else state(thing)  # a file's place decides nothing
    return [(f"{thing.dtype.descr} {list(thing.shape)}", values), ("", type(thing)), *sorted(more.items())]


@register(Enum)
def _member(thing: Enum) -> Parts:
    return [("", type(thing)), (str(thing.name), thing.value)]


@register(torch.dtype, torch.layout, torch.memory_format, np.dtype, PurePath)
def _by_repr(thing: object) -> Parts:
    return [(repr(thing), None)]


@register(slice)
def _slice(thing: slice) -> Parts:
    return [("", (thing.start, thing.stop, thing.step))]


@register(torch.device)
def _nothing(thing: object) -> Parts:
    return []


@register(logging.Logger, np.ufunc)
def _by_name(thing: Any) -> Parts:
    return [(getattr(thing, "name", "") or thing.__name__, None)]
