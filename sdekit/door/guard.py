"""``door``: a function whose arguments are read before it runs."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, TypeVar, cast, get_type_hints

from sdekit.door.kinds import REFUSED, Kind, kind_of, shown

Target = TypeVar("Target", bound=Callable[..., Any])


def door(target: Target) -> Target:
    """``target`` with its arguments read at the door; a class's are those of its ``__init__``. Its signature stays.

    Annotations are read at the first call, when all that they name is defined. Raises ValueError at a call. A
    ValueError from inside that names no argument is told what the call was given.

    >>> @door
    ... def half(value: float) -> float:
    ...     return value / 2
    >>> half("x")
    Traceback (most recent call last):
    ValueError: value='x': it must be a finite number
    """
    return _behind(target, computes=True)


def record(target: Target) -> Target:
    """As ``door``, for a class that keeps what a run found: NaN and infinity are among its numbers.

    >>> @record
    ... @dataclasses.dataclass
    ... class Found:
    ...     value: float
    >>> Found(float("nan"))
    Found(value=nan)
    """
    return _behind(target, computes=False)


def bare(target: Target) -> Target:
    """The function behind the door, for the package's own loops, whose arguments were read before them.

    >>> bare(door(abs)) is abs
    True
    """
    return cast(Any, target).__wrapped__


def _behind(target: Target, computes: bool) -> Target:
    thing: Any = target
    called: str = thing.__name__
    if not inspect.isclass(thing):
        hints = functools.partial(get_type_hints, thing, include_extras=True)
        return cast(Target, _guarded(thing, called, hints, computes))
    new: Any = thing
    fields = dataclasses.is_dataclass(thing)  # whose __init__ is made, and has the annotations of the class
    hints = functools.partial(get_type_hints, new if fields else new.__init__, include_extras=True)
    new.__init__ = _guarded(new.__init__, called, hints, computes)
    return target


def _guarded(
    function: Callable[..., Any], called: str, hints: Callable[[], dict[str, Any]], computes: bool
) -> Callable[..., Any]:
    @functools.cache
    def kinds() -> tuple[tuple[tuple[str, Kind], ...], dict[str, Kind]]:
        return _kinds(inspect.signature(function), hints(), computes)

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
        try:
            return function(*(args if changed is None else changed), **kwargs)
        except ValueError as error:
            if type(error) is ValueError and error.args:
                given = {**{name: value for (name, _), value in zip(places, args)}, **kwargs}
                error.args = (_with_call(str(error.args[0]), called, given), *error.args[1:])
            raise

    return enter


def _with_call(text: str, called: str, given: dict[str, Any]) -> str:
    """The text of an error from inside, with the call behind it where it names none of what was given."""
    given = {name: value for name, value in given.items() if name not in ("self", "cls")}
    if not given or re.search(rf"(?<![\w.])({'|'.join(map(re.escape, given))})(?!\w)", text):
        return text
    return f"{text} (in {called}({', '.join(f'{name}={shown(value)}' for name, value in given.items())}))"


def _kinds(
    signature: inspect.Signature, hints: dict[str, Any], computes: bool
) -> tuple[tuple[tuple[str, Kind], ...], dict[str, Kind]]:
    """The kind of each argument that may be given by its place, in order, and of each that may be given by its name."""
    places, named = list[tuple[str, Kind]](), dict[str, Kind]()
    for name, parameter in signature.parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        kind = kind_of(hints.get(name, Any), computes)
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
