"""An adaptive method and its tolerances as one value, which a name says: ``"dpm-solver-23(rtol=0.01)"``."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, fields
from typing import Annotated

from sdekit.adaptive.methods import CONTROLS, METHODS, Method
from sdekit.door import door
from sdekit.names import Between, OneOf, check_options, lookup, options_of, parse


@door
@dataclass(frozen=True)
class Adaptive:
    """What ``sample_adaptive`` is told of a method: its name in ``METHODS``, tolerances and step control.

    >>> named("dpm-solver-23(rtol=0.01)") == Adaptive("dpm-solver-23", rtol=0.01)
    True
    """

    method: str
    _: KW_ONLY
    rtol: Annotated[float, Between(0, math.inf)] = 0.05
    atol: Annotated[float, Between(0, math.inf)] = 0.0078
    control: Annotated[str, OneOf(*CONTROLS)] = "pi"

    def __post_init__(self) -> None:
        lookup("method", self.method, METHODS)
        check_options(self.method, options_of(Adaptive), self.settings)

    @property
    def rule(self) -> Method:
        """The method itself."""
        return METHODS[self.method]

    @property
    def settings(self) -> dict[str, float | str]:
        """The options of ``sample_adaptive``.

        >>> Adaptive("sde", control="i").settings
        {'rtol': 0.05, 'atol': 0.0078, 'control': 'i'}
        """
        return {name: getattr(self, name) for name in options_of(Adaptive)}

    @property
    def label(self) -> str:
        """The name with the settings that are not the defaults, as ``named`` takes it.

        >>> Adaptive("dpm-solver-12", rtol=0.001).label
        'dpm-solver-12(rtol=0.001)'
        """
        defaults = {field.name: field.default for field in fields(self)}
        chosen = [f"{name}={value!r}" for name, value in self.settings.items() if value != defaults[name]]
        return f"{self.method}({', '.join(chosen)})" if chosen else self.method


def named(spec: str) -> Adaptive | None:
    """The adaptive method of that name and settings; None where the name is none of ``METHODS``.

    Raises ValueError for a text that cannot be read, and for an unknown setting or value.

    >>> named("ddim") is None
    True
    """
    name, options = parse(spec)
    if name not in METHODS:
        return None
    check_options(name, options_of(Adaptive), options)
    return Adaptive(name, **options)
