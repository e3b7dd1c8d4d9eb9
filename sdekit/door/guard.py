"""``door``: a function whose arguments are read before it runs."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast, get_type_hints

from sdekit.door.kinds import REFUSED, Kind, kind_of, shown

Target = TypeVar("Target", bound=Callable[..., Any])


def door(target: Target) -> Target:
    """``target`` with its arguments read at the door; a class's are those of its ``__init__``. Its signature stays.

    Annotations are read at the first call, when all that they name is defined. Raises ValueError at a call.

    >>> @door
    ... def half(value: float) -> float:
    ...     return value / 2
    >>> half("x")
    Traceback (most recent call last):
    ValueError: value='x': it must be a finite number
    """
    thing: Any = target
    if not isinstance(target, type):
        return cast(Target, _guarded(thing, lambda: get_type_hints(thing, include_extras=True), finite=True))
    init = thing.__init__
    fields = dataclasses.is_dataclass(thing)
    thing.__init__ = _guarded(
        init, lambda: get_type_hints(thing if fields else init, include_extras=True), finite=False
    )
    return target


def _guarded(function: Callable[..., Any], hints: Callable[[], dict[str, Any]], finite: bool) -> Callable[..., Any]:
    @functools.cache
    def kinds() -> tuple[tuple[tuple[str, Kind], ...], dict[str, Kind]]:
        return _kinds(inspect.signature(function), hints(), finite)

    @functools.wraps(function)
    def enter(*args: Any, **kwargs: Any) -> Any:
        places, named = kinds()
        changed: list[Any] | None = None
        for index, ((name, kind), value) in enumerate(zip(places, args)):
            if type(value) not in kind.plain and (read := _read(name, kind, value)) is not value:
                changed = list(args) if changed is None else changed
                changed[index] = read
        for name, value in kwargs.items():
            kind = named.get(name)
            if kind is not None and type(value) not in kind.plain:
                kwargs[name] = _read(name, kind, value)
        return function(*(args if changed is None else changed), **kwargs)

    return enter


def _kinds(
    signature: inspect.Signature, hints: dict[str, Any], finite: bool
) -> tuple[tuple[tuple[str, Kind], ...], dict[str, Kind]]:
    """The kind of each argument that may be given by its place, in order, and of each that may be given by its name."""
    places, named = list[tuple[str, Kind]](), dict[str, Kind]()
    for name, parameter in signature.parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        kind = kind_of(hints.get(name, Any), finite)
        if parameter.kind is not parameter.KEYWORD_ONLY:
            places.append((name, kind))
        if parameter.kind is not parameter.POSITIONAL_ONLY:
            named[name] = kind
    return tuple(places), named


def _read(name: str, kind: Kind, value: Any) -> Any:
    read = kind.read(value)
    if read is REFUSED:
        raise ValueError(f"{name}={shown(value)}: it must be {kind.words()}")
    return read
