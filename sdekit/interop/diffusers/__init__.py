"""Networks of diffusers as models here, and solvers of this package as schedulers of diffusers' pipelines.

``wrap``, ``load`` and ``load_pipeline`` take networks in; ``Scheduler`` drives pipelines. diffusers is imported by the
first use of one of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdekit.interop.diffusers.config import Trained, read
    from sdekit.interop.diffusers.loading import Pipeline, load, load_pipeline, wrap
    from sdekit.interop.diffusers.scheduler import Scheduler

_HOMES = {
    "Pipeline": "loading",
    "Scheduler": "scheduler",
    "Trained": "config",
    "load": "loading",
    "load_pipeline": "loading",
    "read": "config",
    "wrap": "loading",
}

__all__ = ["Pipeline", "Scheduler", "Trained", "load", "load_pipeline", "read", "wrap"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; there are {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
