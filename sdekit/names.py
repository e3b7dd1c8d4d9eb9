"""Names that people type: looked up with a suggestion, parsed with options.

>>> parse("ddim(eta=0.5)")
('ddim', {'eta': 0.5})
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

Entry = TypeVar("Entry")


def unknown(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """The error for a name that is not known: it suggests the nearest and lists all.

    >>> str(unknown("solver", "dimm", ["ddim", "heun"]))
    "unknown solver 'dimm': did you mean 'ddim'? known: ddim, heun"
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ValueError(f"unknown {kind} {name!r}: {hint}known: {', '.join(names)}")


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
        if not isinstance(call, ast.Call) or call.args:
            raise SyntaxError
        options = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords if word.arg}
    except (SyntaxError, ValueError):
        raise ValueError(f"cannot read {text!r}: write it as name(option=value, ...)") from None
    return name.strip(), options
