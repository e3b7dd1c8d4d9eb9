"""What an annotation allows: a ``Kind`` reads a value, and says in words what it would have read."""

from __future__ import annotations

import collections.abc
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from sdekit.names import Above, Between, OneOf

REFUSED = object()
"""What ``Kind.read`` returns for a value that is not allowed."""
LARGEST = torch.finfo(torch.float32).max
"""What is larger is no finite number to a state in float32."""
_ARRAYS = (Tensor, np.ndarray)
_BITS = 64


@dataclass(frozen=True)
class Kind:
    """How the values of one annotation are read.

    Attributes:
        read: the value as it goes in, converted where it means the same, or ``REFUSED``.
        words: what is allowed, made when it is needed.
        plain: types of which every value goes in as it is.
        exact: whether ``read`` converts nothing: in a union such kinds are asked first.
    """

    read: Callable[[Any], Any]
    words: Callable[[], str]
    plain: frozenset[type] = frozenset()
    exact: bool = True


def shown(value: object) -> str:
    """A value in a few words, whatever it is.

    >>> shown([5] * 40), shown(torch.zeros(2, 3))
    ('[5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5...', '<tensor [2, 3], torch.float32, on cpu>')
    """
    if isinstance(value, Tensor):
        doubt = f" with {_first_doubt(value)}" if value.device.type == "cpu" and not _is_finite(value) else ""
        return f"<tensor {list(value.shape)}, {value.dtype}, on {value.device}{doubt}>"
    if isinstance(value, np.ndarray):
        return f"<array {list(value.shape)}, {value.dtype}>"
    if isinstance(value, nn.Module):
        return f"<{type(value).__name__}>"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a repr of others may fail, and the sentence is about something else
        return f"<{type(value).__name__}>"
    return text if len(text) <= 60 else text[:60] + "..."


@cache
def kind_of(hint: Any, finite: bool) -> Kind:
    """The kind that an annotation asks for; ``finite`` where numbers without a rule must be finite.

    >>> kind_of(int | None, True).words()
    'a whole number or None'
    """
    origin = typing.get_origin(hint)
    if origin is Annotated:
        base, *rules = typing.get_args(hint)
        return _ruled(base, [rule for rule in rules if hasattr(rule, "allows")], finite)
    if origin in (typing.Union, types.UnionType):
        return _union([kind_of(part, finite) for part in typing.get_args(hint)])
    if origin is typing.Literal:
        return _ruled(Any, [OneOf(*typing.get_args(hint))], finite)
    if hasattr(hint, "array_type"):
        return _array(hint, finite)
    if hint in _NAMED:
        return _NAMED[hint](finite)
    if isinstance(hint, TypeVar) and hint.__bound__ is not None:
        return kind_of(hint.__bound__, finite)
    if isinstance(hint, TypeVar | str) or hint is typing.Any or hint is object:
        return Kind(lambda value: value, lambda: "anything")
    if origin is None:
        return _instance(hint)
    return _generic(origin, typing.get_args(hint), finite)


def _ruled(base: Any, rules: Sequence[Any], finite: bool) -> Kind:
    """A value of ``base`` that every rule allows; a rule of numbers says itself whether they are finite."""
    inner = kind_of(base, finite and not any(isinstance(rule, Between | Above) for rule in rules))

    def read(value: Any) -> Any:
        found = inner.read(value)
        return found if found is not REFUSED and all(rule.allows(found) for rule in rules) else REFUSED

    def words() -> str:
        text = inner.words()
        for rule in rules:
            text = rule.after(text)
        return text

    return Kind(read, words, inner.plain if not rules else frozenset(), inner.exact)


def _union(kinds: Sequence[Kind]) -> Kind:
    ordered = sorted(kinds, key=lambda kind: not kind.exact)

    def read(value: Any) -> Any:
        for kind in ordered:
            if type(value) in kind.plain:
                return value
            found = kind.read(value)
            if found is not REFUSED:
                return found
        return REFUSED

    def words() -> str:
        parts = list(dict.fromkeys(kind.words() for kind in kinds))
        return " or ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))

    plain = frozenset[type]().union(*(kind.plain for kind in kinds))
    return Kind(read, words, plain, all(kind.exact for kind in kinds))


def _instance(hint: Any) -> Kind:
    """An object of a class; of a protocol each class is looked at once, since that takes longer than all else here."""
    known = set[type]()

    def read(value: Any) -> Any:
        if type(value) in known:
            return value
        try:
            if isinstance(value, type) or not isinstance(value, hint):
                return REFUSED
        except Exception:  # a protocol asks for attributes, and theirs may fail
            return REFUSED
        known.add(type(value))
        return value

    return Kind(read, lambda: _CALLED.get(hint, f"a {hint.__name__}"))


_CALLED: dict[Any, str] = {
    type(None): "None",
    str: "text",
    bool: "True or False",
    bytes: "bytes",
    torch.dtype: "a dtype",
}


def _whole(finite: bool) -> Kind:
    def read(value: Any) -> Any:
        if isinstance(value, _ARRAYS):
            kind = getattr(value.dtype, "kind", None) or ("i" if _is_whole(value) else "f")
            value = value.item() if value.ndim == 0 and kind in "iu" else REFUSED
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            return REFUSED
        return int(value) if int(value).bit_length() <= _BITS else REFUSED

    return Kind(read, lambda: "a whole number", exact=False)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Tensor) and not (
        value.is_floating_point() or value.is_complex() or value.dtype == torch.bool
    )


def _real(finite: bool) -> Kind:
    def read(value: Any) -> Any:
        if isinstance(value, _ARRAYS):
            if value.ndim or (isinstance(value, Tensor) and value.requires_grad):  # whose gradient would be lost
                return REFUSED
            value = REFUSED if "meta" in str(getattr(value, "device", "")) else value.item()
        if isinstance(value, bool) or not isinstance(value, numbers.Real | Decimal):
            return REFUSED
        try:
            number = float(value)
        except (OverflowError, ValueError):
            return REFUSED
        return REFUSED if finite and not abs(number) <= LARGEST else number

    return Kind(read, lambda: "a finite number" if finite else "a number", exact=False)


def _flag(finite: bool) -> Kind:
    def read(value: Any) -> Any:
        return bool(value) if isinstance(value, bool | np.bool_) else REFUSED

    return Kind(read, lambda: "True or False", frozenset({bool}))


def _text(finite: bool) -> Kind:
    return Kind(lambda value: value if isinstance(value, str) else REFUSED, lambda: "text", frozenset({str}))


def _none(finite: bool) -> Kind:
    return Kind(lambda value: value if value is None else REFUSED, lambda: "None", frozenset({type(None)}))


def _numpy(finite: bool) -> Kind:
    def read(value: Any) -> Any:
        return value if isinstance(value, np.ndarray) and not (finite and _spoilt(_as_tensor(value))) else REFUSED

    return Kind(read, lambda: "a numpy array" + " of finite numbers, not empty" * finite)


def _tensor(finite: bool) -> Kind:
    def read(value: Any) -> Any:
        value = _as_tensor(value)
        return value if isinstance(value, Tensor) and not (finite and _spoilt(value)) else REFUSED

    return Kind(read, lambda: "a tensor" + " of finite numbers, not empty" * finite, exact=False)


def _array(hint: Any, finite: bool) -> Kind:
    """An annotation of jaxtyping: the array's kind of numbers and its number of dimensions; sizes are the body's."""
    dtypes, least = hint.dtypes, len(hint.dims) - (hint.index_variadic is not None)
    tensor = issubclass(hint.array_type, Tensor)

    def read(value: Any) -> Any:
        found = _as_tensor(value) if tensor else value
        fits = isinstance(found, hint.array_type) and str(found.dtype).removeprefix("torch.") in dtypes
        if not fits or found.ndim < least or (hint.index_variadic is None and found.ndim != least):
            return REFUSED
        return REFUSED if finite and _spoilt(_as_tensor(found)) else found

    def words() -> str:
        numbers = {"Float": "floating-point", "Int": "whole"}.get(hint.dtype.__name__, hint.dtype.__name__)
        name = "a tensor" if tensor else "an array"
        sizes = ", ".join("..." if size in ("_", "*_") else size for size in hint.dim_str.split())
        return f"{name} [{sizes}] of{' finite' * (finite and numbers == 'floating-point')} {numbers} numbers, not empty"

    return Kind(read, words, exact=not tensor)


def _as_tensor(value: Any) -> Any:
    """An array of numbers as a tensor; all else as it is."""
    if not isinstance(value, np.ndarray):
        return value
    try:
        return torch.from_numpy(value if value.flags.writeable else value.copy())
    except (TypeError, ValueError):  # no dtype of torch's, or a negative stride
        return torch.from_numpy(value.copy()) if value.dtype.kind in "fiub" else value


def _spoilt(value: Any) -> bool:
    """Whether a tensor holds nothing, or NaN or infinity where the host can see it without waiting."""
    if not isinstance(value, Tensor):  # an array of text or objects
        return True
    empty = value.numel() == 0 and value.is_floating_point()
    return value.is_meta or empty or (value.device.type == "cpu" and not _is_finite(value))


def _is_finite(value: Tensor) -> bool:
    """One pass over the numbers; a sum that overflows is looked at again."""
    if not (value.is_floating_point() or value.is_complex()) or value.numel() == 0:
        return True
    with torch.no_grad():
        return math.isfinite(abs(value.sum().item())) or bool(value.isfinite().all())


def _first_doubt(value: Tensor) -> str:
    """The first entry that is NaN or infinite, and where it stands.

    >>> _first_doubt(torch.tensor([[1.0, 2.0], [3.0, torch.nan]]))
    'nan at [1, 1]'
    """
    place = (~value.isfinite()).nonzero()[0].tolist()
    return f"{value[tuple(place)].item()} at {place}"


def _generic(origin: Any, arguments: tuple[Any, ...], finite: bool) -> Kind:
    if origin is collections.abc.Callable:
        return _function(arguments[0] if arguments else ...)
    if issubclass(origin, collections.abc.Mapping):
        return _mapping(origin, *(kind_of(part, finite) for part in arguments))
    if origin is tuple and not (len(arguments) == 2 and arguments[1] is ...):
        return _row([kind_of(part, finite) for part in arguments])
    if issubclass(origin, collections.abc.Iterable) and not issubclass(origin, collections.abc.Iterator):
        return _many(origin, kind_of(arguments[0], finite))
    return _instance(origin)


def _many(origin: type, item: Kind) -> Kind:
    """Several of one kind: a list of them where a part was converted, or where an array or an iterator gave them."""
    ordered = issubclass(origin, collections.abc.Sequence)

    def read(value: Any) -> Any:
        if isinstance(value, _ARRAYS) and value.ndim == 1 and item.plain.isdisjoint({str}):
            value = value.tolist()
        wrong = not isinstance(value, Sequence if ordered else Iterable) or isinstance(
            value, str | bytes | type | Tensor
        )
        if wrong or isinstance(value, collections.abc.Mapping | nn.Module) or getattr(value, "ndim", 1) == 0:
            return REFUSED
        given = list(value)
        parts = [part if type(part) in item.plain else item.read(part) for part in given]
        if any(part is REFUSED for part in parts):
            return REFUSED
        same = isinstance(value, origin) and all(one is other for one, other in zip(parts, given))
        if same and not isinstance(value, collections.abc.Iterator):
            return value
        return tuple(parts) if origin is tuple or not ordered or isinstance(value, tuple) else parts

    return Kind(read, lambda: f"several, in a list or tuple, each {item.words()}", exact=False)


def _row(items: Sequence[Kind]) -> Kind:
    def read(value: Any) -> Any:
        if not isinstance(value, tuple | list) or len(value) != len(items):
            return REFUSED
        parts = tuple(item.read(part) for item, part in zip(items, value))
        return REFUSED if any(part is REFUSED for part in parts) else parts

    return Kind(read, lambda: f"a tuple of {', '.join(item.words() for item in items)}", exact=False)


def _mapping(origin: type, name: Kind, item: Kind) -> Kind:
    def read(value: Any) -> Any:
        if not isinstance(value, origin):
            return REFUSED
        if type(value) is not dict:  # one that reads its values from a disk is not read here
            return value
        names = [name.read(key) for key in value]
        parts = [item.read(part) for part in value.values()]
        if any(part is REFUSED for part in (*names, *parts)):
            return REFUSED
        same = all(one is other for one, other in zip(parts, value.values()))
        return value if same else dict(zip(names, parts))

    return Kind(read, lambda: f"a dict from {name.words()} to {item.words()}", exact=False)


def _function(arguments: Any) -> Kind:
    count = len(arguments) if isinstance(arguments, list) else None

    def read(value: Any) -> Any:
        return value if takes(value, count) else REFUSED

    return Kind(read, lambda: "a function" if count is None else f"a function of {_words_of(count)}")


def _words_of(count: int) -> str:
    return {0: "nothing", 1: "one argument"}.get(count, f"{count} arguments")


def takes(value: object, count: int | None) -> bool:
    """Whether it can be called with so many arguments by their places. A class is no function: what it makes may be.

    >>> takes(lambda x, t: x, 2), takes(lambda x: x, 2), takes(int, None)
    (True, False, False)
    """
    if not callable(value) or isinstance(value, type):
        return False
    if count is None:
        return True
    function = value.forward if isinstance(value, nn.Module) else value
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # a builtin that does not say
        return True
    return True


_NAMED: dict[Any, Callable[[bool], Kind]] = {
    int: _whole, float: _real, bool: _flag, str: _text, type(None): _none, None: _none, Tensor: _tensor,
    np.ndarray: _numpy, Callable: lambda finite: _function(...),
    collections.abc.Callable: lambda finite: _function(...),
}  # fmt: skip
