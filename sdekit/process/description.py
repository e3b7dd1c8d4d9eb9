"""A process as JSON can hold it, for files that depend on one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from sdekit.names import lookup
from sdekit.process.base import Process
from sdekit.process.cosine import CosineVP
from sdekit.process.discrete import DiscreteVP
from sdekit.process.edm import EDM
from sdekit.process.flow import Flow
from sdekit.process.laplace import LaplaceVP
from sdekit.process.sigmoid import SigmoidVP
from sdekit.process.ve import VE
from sdekit.process.vp import VP, SubVP

PROCESSES: dict[str, Callable[..., Process]] = {
    process.__name__: process for process in (VP, SubVP, VE, CosineVP, SigmoidVP, LaplaceVP, DiscreteVP, Flow, EDM)
}


def describe_process(process: Process) -> dict[str, Any]:
    """The process as JSON can hold it: its name and its arguments.

    >>> describe_process(VP(t_min=0.01))
    {'name': 'VP', 'beta_min': 0.1, 'beta_max': 20.0, 't_min': 0.01, 't_max': 1.0}
    """
    arguments = {f.name: getattr(process, f.name) for f in fields(process) if f.init}  # type: ignore[arg-type]
    return {"name": type(process).__name__, **arguments}


def build_process(description: Mapping[str, Any]) -> Process:
    """The process that ``describe_process`` described. Raises ValueError for an unknown name."""
    arguments = dict(description)
    return lookup("process", arguments.pop("name"), PROCESSES)(**arguments)
