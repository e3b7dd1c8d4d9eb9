"""What code consists of: functions, methods, classes, modules, and the wrappers of them."""

from __future__ import annotations

import dis
import hashlib
import importlib
import sys
import sysconfig
import types
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, lru_cache, partial
from importlib import metadata, util
from pathlib import Path
from typing import Any

from sdekit.identity.parts import Parts, UnidentifiedError, register


@lru_cache(1024)
def _edition(module: str) -> str | None:
    """Under what an installed module is known: its version and its file. None for code of the user's own."""
    top = module.partition(".")[0]
    file = next((file for name in (module, top) if (file := getattr(sys.modules.get(name), "__file__", None))), "")
    path = Path(file)
    installed = bool({"site-packages", "dist-packages"} & {*path.parts})
    if top in sys.stdlib_module_names and (not file or path.is_relative_to(_STDLIB)) and not installed:
        return f"Python {sys.version_info[0]}.{sys.version_info[1]}"
    if not installed and top != __name__.partition(".")[0]:
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
    if not (isinstance(module, str) and isinstance(name, str)) or (version := _edition(module)) is None:
        return None
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}.{name}, {version}" if found is thing else None


@dataclass(frozen=True)
class Attributes:
    """Those attributes of a module that code may read: all that it names."""

    module: types.ModuleType
    names: frozenset[str]


@register(Attributes)
def _attributes(thing: Attributes) -> Parts:
    found = vars(thing.module)
    return [(name, _seen(found[name], thing.names)) for name in sorted(thing.names & found.keys())]


def _seen(value: object, names: frozenset[str]) -> object:
    if isinstance(value, types.ModuleType) and _edition(value.__name__) is None:
        return Attributes(value, names)
    return value


@register(types.ModuleType)
def _module(thing: types.ModuleType) -> Parts:
    if (version := _edition(thing.__name__)) is None:
        raise UnidentifiedError(f"the module {thing.__name__}")
    return [(f"{thing.__name__}, {version}", None)]


@register(types.FunctionType)
def _function(thing: types.FunctionType) -> Parts:
    if name := _named(thing):
        return [(name, None)]
    code, home = thing.__code__, str(thing.__globals__.get("__name__", ""))
    closure = zip(code.co_freevars, thing.__closure__ or ())
    made_of = [("", code), ("defaults", thing.__defaults__), ("defaults", thing.__kwdefaults__), *closure]
    version = _edition(home)
    known = _globals(thing) if version is None else [(version, None)]
    return [*made_of, *sorted(vars(thing).items()), *known]


@register(types.CodeType)
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


@register(type)
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


# of a class: where it was written, what is said about it, and what Python and torch derive from the rest
_NO_CODE = frozenset(
    {
        "__module__", "__doc__", "__qualname__", "__annotations__", "__annotate__", "__annotate_func__",
        "__annotations_cache__", "__firstlineno__", "__static_attributes__", "__abstractmethods__", "_abc_impl",
        "__dataclass_fields__", "__dataclass_params__", "__match_args__", "__parameters__", "__orig_bases__",
        "_backward_cls",
    }
)  # fmt: skip


@register(types.BuiltinFunctionType, types.MethodWrapperType)
def _builtin(thing: Any) -> Parts:
    return [(thing.__qualname__, thing.__self__)]


@register(types.MethodDescriptorType, types.WrapperDescriptorType, types.ClassMethodDescriptorType)
def _descriptor(thing: Any) -> Parts:
    return [(thing.__name__, thing.__objclass__)]


@register(types.MethodType)
def _method(thing: types.MethodType) -> Parts:
    return [("", thing.__func__), ("", thing.__self__)]


@register(partial)
def _partial(thing: partial[Any]) -> Parts:
    return [("", thing.func), ("", thing.args), ("", thing.keywords)]


@register(property)
def _property(thing: property) -> Parts:
    return [("", thing.fget), ("", thing.fset), ("", thing.fdel)]


@register(classmethod, staticmethod, cached_property, type(_edition))
def _wrapper(thing: Any) -> Parts:
    return [("", thing.func if isinstance(thing, cached_property) else thing.__wrapped__)]


@register(types.CellType)
def _cell(thing: types.CellType) -> Parts:
    try:
        return [("", thing.cell_contents)]
    except ValueError:  # not bound yet
        return []
