r"""What decides a result, as a digest: stores of finished work ask by it whether a result is still the one asked for.

``identify`` takes a thing apart down to numbers, names and code, and hashes them: tensors by dtype, shape and bytes, a
module by its class, attributes, buffers and hooks, a function by its bytecode, defaults, closure and the globals it
reads, an object by its class and attributes. Code of Python, of installed packages and of this one counts by its name,
its version and the file it is in; all other code by what it does. The digest is the same in every process.

Left out, since they decide nothing: where tensors lie, ``requires_grad``, properties and cached properties, the counter
``nfe`` of a model, and whether a network is compiled. What has a state that cannot be read (a generator,
an open file, a lock) or draws from one (a random generator) has no digest: ``identify`` raises ``UnidentifiedError``.
"""

from __future__ import annotations

import copyreg
import dis
import hashlib
import importlib
import logging
import struct
import sys
import sysconfig
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, lru_cache, partial, singledispatch
from importlib import metadata, util
from pathlib import Path, PurePath
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sdekit.model import ScoreModel
from sdekit.prediction import PREDICTIONS

Parts = Iterable[tuple[str, object]]


class UnidentifiedError(ValueError):
    """What was asked for holds something whose state cannot be read; the message says where."""

    def __init__(self, what: str, *path: str) -> None:
        super().__init__(f"{'.'.join(path) + ' is ' if path else ''}{what}, whose state cannot be read")
        self.what, self.path = what, path


def identify(thing: object) -> str:
    """16 hexadecimal digits of all that decides what ``thing`` computes, the same in every process.

    Raises ``UnidentifiedError`` (a ValueError) for what has a state that cannot be read; then no stored result is known
    to be of it.

    >>> def scaled(scale):
    ...     return lambda x, t: scale * x
    >>> identify(scaled(1.0)) == identify(scaled(1.0)) != identify(scaled(6.0))
    True
    >>> identify({"values": iter([])})
    Traceback (most recent call last):
    sdekit.identity.UnidentifiedError: values is a list_iterator, whose state cannot be read
    """
    try:
        return _Walk()(thing).hex()[:16]
    except RecursionError:
        raise UnidentifiedError(f"a {type(thing).__name__} nested too deeply") from None


class _Walk:
    """The digest of each thing met, from the digests of its parts."""

    def __init__(self) -> None:
        self.done: dict[object, tuple[bytes, object]] = {}  # the thing too: while it lives, its id is its own
        self.open: dict[object, int] = {}

    def __call__(self, thing: object) -> bytes:
        if type(thing) in _PLAIN:
            return repr(thing).encode()
        thing = _bare(thing)
        key = thing if isinstance(thing, _Attributes) else id(thing)
        if key in self.open:
            return b"above: %d" % self.open[key]
        if key not in self.done:
            self.open[key] = len(self.open)
            self.done[key] = self._of_parts(thing), thing
            del self.open[key]
        return self.done[key][0]

    def _of_parts(self, thing: object) -> bytes:
        if isinstance(thing, bytes):
            return hashlib.sha256(thing).digest()
        parts = [self._part(label, part) for label, part in _parts(thing)]
        whole = hashlib.sha256(repr(type(thing).__name__).encode())
        for part in sorted(parts) if isinstance(thing, (set, frozenset)) else parts:
            whole.update(part)
        return whole.digest()

    def _part(self, label: str, part: object) -> bytes:
        try:
            found = self(part)
        except UnidentifiedError as error:
            raise UnidentifiedError(error.what, *filter(None, (label, *error.path))) from None
        name = label.encode("utf-8", "surrogatepass")
        return b"%d %d " % (len(name), len(found)) + name + found


_PLAIN = frozenset({int, float, complex, bool, str, range, type(None), type(...), type(NotImplemented)})


def _bare(thing: Any) -> object:
    """What torch.compile was given: compiled, it computes the same."""
    while True:
        if isinstance(thing, types.FunctionType) and "_torchdynamo_orig_callable" in vars(thing):
            thing = vars(thing)["_torchdynamo_orig_callable"]
        elif isinstance(thing, nn.Module) and isinstance(inner := vars(thing)["_modules"].get("_orig_mod"), nn.Module):
            thing = inner
        else:
            return thing


@lru_cache(1024)
def _version(module: str) -> str | None:
    """Under what an installed module is known: its version and its file. None for code of the user's own."""
    top = module.partition(".")[0]
    file = next((file for name in (module, top) if (file := getattr(sys.modules.get(name), "__file__", None))), "")
    path = Path(file)
    installed = bool({"site-packages", "dist-packages"} & {*path.parts})
    if top in sys.stdlib_module_names and (not file or path.is_relative_to(_STDLIB)) and not installed:
        return f"Python {sys.version_info[0]}.{sys.version_info[1]}"
    if not installed and top != __package__:
        return None
    version = str(getattr(sys.modules.get(top), "__version__", ""))
    with suppress(metadata.PackageNotFoundError):
        version = metadata.version(top)
    contents = path.read_bytes() if path.suffix == ".py" and path.exists() else b""
    return f"{version.partition('+')[0]} {hashlib.sha256(contents).hexdigest()}"  # a build for a GPU is the same


_STDLIB = sysconfig.get_path("stdlib")


def _named(thing: Any) -> str | None:
    """Module, name and version of what is found under its name in code that has a version."""
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not (isinstance(module, str) and isinstance(name, str)) or (version := _version(module)) is None:
        return None
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}.{name}, {version}" if found is thing else None


@singledispatch
def _parts(thing: Any) -> Parts:
    """What a thing consists of, each part with a label; here of an object of any class."""
    if isinstance(thing, Iterator | Random | torch.Generator | np.random.Generator | np.random.RandomState):
        raise UnidentifiedError(f"a {type(thing).__name__}")
    hidden = _layout(type(thing))[2]
    return [("", type(thing)), *(_reduced(thing) if hidden else [*_contents(thing), *sorted(_state(thing).items())])]


@lru_cache(256)
def _layout(cls: type) -> tuple[dict[str, Any], set[str], bool]:
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


def _state(thing: Any) -> dict[str, object]:
    """The attributes that an object itself holds, without what it caches and without a model's counter."""
    slots, cached, _ = _layout(type(thing))
    found = {str(name): value for name, value in getattr(thing, "__dict__", {}).items() if name not in cached}
    for name, slot in slots.items():
        with suppress(AttributeError):
            found[name] = slot.__get__(thing)
    if hasattr(type(thing), "predict"):
        found.pop("nfe", None)
    return found


def _contents(thing: Any) -> Parts:
    """What an object holds as a container or a number."""
    if isinstance(thing, dict):
        return [pair for key, value in thing.items() for pair in (("", key), (_label(key), value))]
    if isinstance(thing, (list, tuple, set, frozenset, deque)):
        return [("maxlen", getattr(thing, "maxlen", None)), *(("", part) for part in thing)]
    numbers: tuple[Any, ...] = (int, float, complex, str)
    return [("", base.__repr__(thing)) for base in numbers if isinstance(thing, base)]


def _label(key: object) -> str:
    return key if isinstance(key, str) else repr(key) if type(key) in _PLAIN else ""


def _reduced(thing: Any) -> Parts:
    """As pickle takes it apart."""
    try:
        reduce = copyreg.dispatch_table.get(type(thing))
        form = reduce(thing) if reduce else thing.__reduce_ex__(4)
    except Exception as error:
        raise UnidentifiedError(f"a {type(thing).__name__}") from error
    return [(form, None)] if isinstance(form, str) else [
        ("", list(part) if isinstance(part, Iterator) else part) for part in form
    ]  # fmt: skip


def _register(*kinds: Any) -> Callable[[Callable[[Any], Parts]], Callable[[Any], Parts]]:
    def add(function: Callable[[Any], Parts]) -> Callable[[Any], Parts]:
        for one in kinds:
            _parts.register(one, function)
        return function

    return add


# -- values ----------------------------------------------------------------------------------------


@_register(list, tuple, dict, set, frozenset)
def _container(thing: Any) -> Parts:
    exact = type(thing) in (list, tuple, dict, set, frozenset)
    return _contents(thing) if exact else [("", type(thing)), *_contents(thing), *sorted(_state(thing).items())]


@_register(types.MappingProxyType)
def _mapping(thing: Any) -> Parts:
    return _contents(dict(thing))


@_register(Tensor)
def _tensor(thing: Tensor) -> Parts:
    values = thing.detach().cpu()
    if type(values) is not Tensor or values.layout != torch.strided or values.is_quantized or values.is_meta:
        raise UnidentifiedError(f"a {type(thing).__name__} of {thing.layout} on {thing.device}")
    plain = values.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
    return [(f"{values.dtype} {list(values.shape)}", plain.numpy().tobytes())]


@_register(np.ndarray, np.generic)
def _array(thing: Any) -> Parts:
    values = thing.tolist() if thing.dtype.hasobject else thing.tobytes()
    more = {} if isinstance(thing, np.memmap) else _state(thing)  # a file's place decides nothing
    return [(f"{thing.dtype.descr} {list(thing.shape)}", values), ("", type(thing)), *sorted(more.items())]


@_register(Enum)
def _member(thing: Enum) -> Parts:
    return [("", type(thing)), (str(thing.name), thing.value)]


@_register(torch.dtype, torch.layout, torch.memory_format, np.dtype, PurePath)
def _by_repr(thing: object) -> Parts:
    return [(repr(thing), None)]


@_register(slice)
def _slice(thing: slice) -> Parts:
    return [("", (thing.start, thing.stop, thing.step))]


@_register(torch.device)
def _nothing(thing: object) -> Parts:
    return []


@_register(logging.Logger, np.ufunc)
def _by_name(thing: Any) -> Parts:
    return [(getattr(thing, "name", "") or thing.__name__, None)]


# -- code ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Attributes:
    """Those attributes of a module that code may read: all that it names."""

    module: types.ModuleType
    names: frozenset[str]


@_register(_Attributes)
def _attributes(thing: _Attributes) -> Parts:
    found = vars(thing.module)
    return [(name, _seen(found[name], thing.names)) for name in sorted(thing.names & found.keys())]


def _seen(value: object, names: frozenset[str]) -> object:
    if isinstance(value, types.ModuleType) and _version(value.__name__) is None:
        return _Attributes(value, names)
    return value


@_register(types.ModuleType)
def _module(thing: types.ModuleType) -> Parts:
    if (version := _version(thing.__name__)) is None:
        raise UnidentifiedError(f"the module {thing.__name__}")
    return [(f"{thing.__name__}, {version}", None)]


@_register(types.FunctionType)
def _function(thing: types.FunctionType) -> Parts:
    if name := _named(thing):
        return [(name, None)]
    code, home = thing.__code__, str(thing.__globals__.get("__name__", ""))
    closure = zip(code.co_freevars, thing.__closure__ or ())
    parts = [("", code), ("defaults", thing.__defaults__), ("defaults", thing.__kwdefaults__), *closure]
    version = _version(home)
    known = _globals(thing) if version is None else [(version, None)]
    return [*parts, *sorted(vars(thing).items()), *known]


@_register(types.CodeType)
def _code(thing: types.CodeType) -> Parts:
    counts = (thing.co_argcount, thing.co_posonlyargcount, thing.co_kwonlyargcount, thing.co_flags)
    names = (thing.co_names, thing.co_varnames, thing.co_freevars, thing.co_cellvars)
    handlers = getattr(thing, "co_exceptiontable", b"")
    return [("", counts), ("", names), ("", thing.co_code), ("", handlers), ("", thing.co_consts)]


def _globals(function: types.FunctionType) -> Parts:
    """The globals that a function reads, and what it imports."""
    scope, codes = function.__globals__, [function.__code__]
    for code in codes:
        codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]
    steps = [step for code in codes for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    names = frozenset(name for code in codes for name in code.co_names)
    read = {step.argval for step in steps if step.opname in _READS}
    yield from [(name, _seen(scope[name], names)) for name in sorted(read & scope.keys())]
    for i, step in enumerate(steps):
        if step.opname == "IMPORT_NAME":  # before it, the level and the names imported
            relative = "." * steps[i - 2].argval + step.argval
            try:
                module = importlib.import_module(util.resolve_name(relative, scope.get("__package__") or ""))
            except ImportError:  # nor can the function
                continue
            yield module.__name__, _seen(module, names)


_READS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})


@_register(type)
def _class(thing: type) -> Parts:
    if name := _named(thing):
        return [(name, None)]
    if issubclass(thing, Enum):
        own = {**{name: one.value for name, one in thing.__members__.items()}, **_methods(thing)}
    else:
        own = {name: value for name, value in vars(thing).items() if name not in _NO_CODE}
    hidden = (types.GetSetDescriptorType, types.MemberDescriptorType)
    own = {name: value for name, value in own.items() if not isinstance(value, hidden)}
    return [(thing.__qualname__, type(thing)), ("", thing.__bases__), *sorted(own.items())]


def _methods(thing: type) -> dict[str, object]:
    kinds = (types.FunctionType, property, classmethod, staticmethod)
    return {name: value for name, value in vars(thing).items() if isinstance(value, kinds)}


# of a class: where it was written, what is said about it, and what Python derives from the rest
_NO_CODE = frozenset(
    {
        "__module__", "__doc__", "__qualname__", "__annotations__", "__annotate__", "__annotate_func__",
        "__annotations_cache__", "__firstlineno__", "__static_attributes__", "__abstractmethods__", "_abc_impl",
        "__dataclass_fields__", "__dataclass_params__", "__match_args__", "__parameters__", "__orig_bases__",
    }
)  # fmt: skip


@_register(types.BuiltinFunctionType, types.MethodWrapperType)
def _builtin(thing: Any) -> Parts:
    return [(thing.__qualname__, thing.__self__)]


@_register(types.MethodDescriptorType, types.WrapperDescriptorType, types.ClassMethodDescriptorType)
def _descriptor(thing: Any) -> Parts:
    return [(thing.__name__, thing.__objclass__)]


@_register(types.MethodType)
def _method(thing: types.MethodType) -> Parts:
    return [("", thing.__func__), ("", thing.__self__)]


@_register(partial)
def _partial(thing: partial[Any]) -> Parts:
    return [("", thing.func), ("", thing.args), ("", thing.keywords)]


@_register(property)
def _property(thing: property) -> Parts:
    return [("", thing.fget), ("", thing.fset), ("", thing.fdel)]


@_register(classmethod, staticmethod, cached_property, type(_version))
def _wrapper(thing: Any) -> Parts:
    return [("", thing.func if isinstance(thing, cached_property) else thing.__wrapped__)]


@_register(types.CellType)
def _cell(thing: types.CellType) -> Parts:
    try:
        return [("", thing.cell_contents)]
    except ValueError:  # not bound yet
        return []


# -- networks --------------------------------------------------------------------------------------


@_register(nn.Module)
def _network(thing: nn.Module) -> Parts:
    state = _state(thing)
    if _layout(type(thing))[2]:
        return _reduced(thing)
    for name in [name for name in state if "_hooks" in name or name == "_compiled_call_impl"]:
        value = state.pop(name)
        if name.endswith("_hooks") and "state_dict" not in name and isinstance(value, dict) and value:
            state[name] = _hooks(thing, name, value)
    return [("", type(thing)), *sorted(state.items())]


def _hooks(network: nn.Module, name: str, hooks: dict[int, Any]) -> list[object]:
    """Each hook with how it is called. The keys count the hooks of the process: they say nothing."""
    ways = [getattr(network, f"{name}_{way}", {}) for way in ("with_kwargs", "always_called")]
    return [(hook, *(key in way for way in ways)) for key, hook in hooks.items()]


@_register(ScoreModel)
def _score_model(thing: ScoreModel) -> Parts:
    return [("", type(thing)), ("", PREDICTIONS.get(thing.predicts)), *sorted(_state(thing).items())]
