"""Networks, samplers and pipelines of other libraries, one module a library; none is imported before it is used.

Each module beside this one is there after ``import sdekit as sk``: ``sk.interop.diffusers``.
"""

import pkgutil
from importlib import import_module
from typing import Any

__all__ = sorted(module.name for module in pkgutil.iter_modules(__path__))  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; there are {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
