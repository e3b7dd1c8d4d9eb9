"""Names that people type: looked up with a suggestion, parsed with options.

>>> parse("ddim(eta=0.5)")
('ddim', {'eta': 0.5})
"""

from __future__ import annotations

import ast
import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, get_type_hints

Entry = TypeVar("Entry")
_LARGEST = 3.5e38  # what is larger is infinite in float32


def unknown(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """The error for a name that is not known: it suggests the nearest and lists all.

    >>> str(unknown("solver", "dimm", ["ddim", "heun"]))
    "unknown solver 'dimm': did you mean 'ddim'? known: ddim, heun"
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ValueError(f"unknown {kind} {name!r}: {hint}known: {', '.join(names) or 'none'}")


def lookup(kind: str, name: str, table: Mapping[str, Entry]) -> Entry:
    """``table[name]``, or a ValueError that suggests the nearest name.

    >>> lookup("digit", "one", {"one": 1})
    1
    """
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Split ``name(option=value, …)`` into the name and its options; values are Python literals.

    Raises ValueError where the text has another form. Nothing is evaluated.

    >>> parse("dpmpp-2m"), parse("karras(rho=5)")
    (('dpmpp-2m', {}), ('karras', {'rho': 5}))
    """
    name, bracket, rest = text.strip().partition("(")
    if not bracket:
        return name, {}
    try:
        call = ast.parse(f"_({rest}", mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)) or call.args:
            raise SyntaxError
        options = {word.arg: _value(word.value) for word in call.keywords if word.arg}
        if len(options) < len(call.keywords):  # a repeated option, or **
            raise SyntaxError
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise ValueError(f"cannot read {text!r}: write it as name(option=value, ...)") from None
    return name.strip(), options


def _value(node: ast.expr) -> Any:
    """A Python literal, or ``inf``, as a number without bound prints itself."""
    return math.inf if isinstance(node, ast.Name) and node.id == "inf" else ast.literal_eval(node)


@dataclass(frozen=True)
class Between:
    """An option's rule: a number from ``low`` to ``high``.

    >>> Between(0, 1).allows(0.5), Between(0, 1).allows(2), str(Between(0, 1))
    (True, False, 'a number from 0 to 1')
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (isinstance(self.low, int | float) and isinstance(self.high, int | float) and self.low <= self.high):
            raise ValueError(f"low={self.low!r}, high={self.high!r}: they must be numbers, low not above high")

    def allows(self, value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def after(self, words: str) -> str:
        """``words``, which say what kind of number, with the range behind."""
        return f"{words} from {self.low} to {self.high}"

    def __str__(self) -> str:
        return f"a number from {self.low} to {self.high}"


@dataclass(frozen=True)
class Above:
    """An option's rule: a finite number above ``low``, or equal to it where ``equal``.

    >>> Above(0).allows(0), Above(0, equal=True).allows(0), str(Above(0))
    (False, True, 'a finite number above 0')
    """

    low: float
    equal: bool = False

    def allows(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.low < value < _LARGEST or (self.equal and value == self.low)

    def after(self, words: str) -> str:
        """``words``, which say what kind of number, with the range behind."""
        finite = words.replace("a number", "a finite number")
        return f"{finite} {'of at least' if self.equal else 'above'} {self.low}"

    def __str__(self) -> str:
        return self.after("a number")


@dataclass(frozen=True)
class OneOf:
    """An option's rule: one of these values.

    >>> OneOf("small", "large").allows("large"), str(OneOf("small", "large"))
    (True, "one of 'small', 'large'")
    """

    values: tuple[object, ...]

    def __init__(self, *values: object) -> None:
        object.__setattr__(self, "values", values)

    def allows(self, value: object) -> bool:
        return any(type(value) is type(known) and value == known for known in self.values)

    def after(self, words: str) -> str:
        """The values, which say all that ``words`` would."""
        return str(self)

    def __str__(self) -> str:
        return "one of " + ", ".join(repr(value) for value in self.values)


@dataclass(frozen=True)
class Option:
    """What a solver or a grid lets the user choose: its default and the rule for its values."""

    default: Any
    rule: Between | Above | OneOf


@cache
def options_of(function: Callable[..., Any]) -> dict[str, Option]:
    """A function's options: its keyword-only parameters, each annotated with its rule.

    >>> from typing import Annotated
    >>> def grid(steps, *, rho: Annotated[float, Between(1, 20)] = 7.0): ...
    >>> options_of(grid)["rho"].default
    7.0
    """
    hints = get_type_hints(function, include_extras=True)
    found: dict[str, Option] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            rules = [
                rule
                for rule in getattr(hints.get(name), "__metadata__", ())
                if isinstance(rule, Between | Above | OneOf)
            ]
            if not rules or parameter.default is inspect.Parameter.empty:
                raise ValueError(f"option {name!r} of {function.__name__} needs a default and Annotated[..., rule]")
            found[name] = Option(parameter.default, rules[0])
    return found


def check_options(owner: str, known: Mapping[str, Option], given: Mapping[str, Any]) -> None:
    """Raise ValueError where an option is unknown or its value breaks the option's rule.

    >>> check_options("ddim", {"eta": Option(0.0, Between(0, 1))}, {"eta": 2})
    Traceback (most recent call last):
    ValueError: ddim: eta=2 is not a number from 0 to 1
    """
    for name, value in given.items():
        option = lookup(f"option of {owner}", name, known)
        if not option.rule.allows(value):
            raise ValueError(f"{owner}: {name}={value!r} is not {option.rule}")
