"""Models and feature maps by the names that a user types: ``package.module:name``, a folder, a file.

A model is Python that the user names; from a file come weights and settings alone.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdekit import features
from sdekit.model import evaluating, networks
from sdekit.names import lookup
from sdekit.nn import store
from sdekit.process import Process
from sdekit.readers import PICKLES
from sdekit.sampling import Model

_DIFFUSERS = ("model_index.json", "config.json")


def model_of(spec: str, device: torch.device | str = "cpu") -> Model:
    """The model that ``spec`` names, its networks on ``device``.

    Args:
        spec: ``package.module:name`` of a model or of a function without arguments that returns one, found as
            ``python -m`` finds it, the current folder first; a folder that ``nn.save`` wrote or that diffusers'
            ``save_pretrained`` wrote; or a .safetensors file of ``nn.save_network``.

    Raises ValueError for a name or path that leads nowhere, for what is no model, and for whatever the user's code
    raises.

    >>> model_of("sdekit.nn:digits_model").predicts
    'v'
    """
    found: Any = _from_path(Path(spec)) if Path(spec).exists() else _made(spec, named(spec, "model"))
    _check_model(spec, found)
    for net in networks(found):
        net.to(device)
    return found


def check_runs(model: Model, event: Sequence[int], conditions: Mapping[str, Any]) -> None:
    """One call of the network on two samples at t_max, so that what it cannot take is said before the run.

    Of a condition with a row for each sample the smallest and the largest are tried.

    Raises ValueError where the network fails, with its error.
    """
    x = torch.zeros(2, *event, device=model.device)
    few = {name: torch.stack([c.min(), c.max()]) if isinstance(c, Tensor) and c.ndim == 1 else c
           for name, c in conditions.items()}  # fmt: skip
    told = "".join(f", {name}={c.tolist() if isinstance(c, Tensor) else c}" for name, c in few.items())
    with torch.no_grad(), evaluating(model):
        try:
            model.predict("x0", x, model.process.t_max, **few)
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(f"the model fails on x of shape {list(x.shape)}{told}: {_where(error)}") from None


def features_of(spec: str, x: Tensor, device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
    """The feature map that ``spec`` names: ``package.module:function`` or ``kind:path``, kinds in ``features.KINDS``.

    It is tried on the first samples of x, and must give [n, k] for x [n, *event].

    Raises ValueError as ``model_of``, and where it gives something else.

    >>> features_of("torch:tanh", torch.zeros(2, 3))(torch.zeros(1, 3))
    tensor([[0., 0., 0.]])
    """
    kind, _, path = spec.partition(":")
    found: Any = features.KINDS[kind](path) if kind in features.KINDS else named(spec, "features")
    _check_features(spec, found, x[:2], device)
    return found


def _check_features(spec: str, found: Any, x: Tensor, device: torch.device | str) -> None:
    if not callable(found) or isinstance(found, type):
        raise ValueError(f"features {spec!r} is {_kind(found)}: it must be a function of x [n, *event]")
    if isinstance(found, nn.Module):
        x = x.to(next(found.to(device).parameters(), x))
    with torch.no_grad(), evaluating(found):
        given = _called(f"features {spec!r}", found, x)
    if not isinstance(given, Tensor) or given.ndim != 2 or len(given) != len(x) or not given.is_floating_point():
        what = f"{given.dtype} {list(given.shape)}" if isinstance(given, Tensor) else _kind(given)
        raise ValueError(f"features {spec!r} gave {what} for x {list(x.shape)}: it must give floats [n, k]")


def named(spec: str, kind: str) -> Any:
    """What ``package.module:name`` names; modules are found in the current folder too, first."""
    module, colon, attribute = spec.partition(":")
    if not colon or not all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")]):
        raise ValueError(f"{kind} {spec!r}: there is no such path, and it is no package.module:name")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)  # as python -m does
    found = _imported(f"{kind} {spec!r}", module)
    for part in attribute.split("."):
        if not hasattr(found, part):
            lookup(f"name in {module}", part, {name: None for name in dir(found) if not name.startswith("_")})
        found = getattr(found, part)
    return found


def _imported(what: str, module: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module + ".").startswith(error.name + "."):
            raise ValueError(
                f"{what}: there is no module {error.name!r}, neither in {os.getcwd()} nor installed"
            ) from None
        raise ValueError(f"{what}: importing {module} failed: {_where(error)}") from None
    except Exception as error:
        raise ValueError(f"{what}: importing {module} failed: {_where(error)}") from None


def _made(spec: str, thing: Any) -> Any:
    """A model as it is; what a function returns."""
    if (isinstance(thing, Model) and not isinstance(thing, type)) or isinstance(thing, nn.Module):
        return thing
    return _called(f"model {spec!r}", thing) if callable(thing) else thing


def _called(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception as error:
        raise ValueError(f"{what} failed: {_where(error)}") from None


def _where(error: Exception) -> str:
    """The error and the deepest line of it, without a traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename != __file__ and not frame.filename.startswith("<frozen")]
    place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {error}{place}"


def _check_model(spec: str, found: Any) -> None:
    if isinstance(found, Model) and not isinstance(found, type):
        if isinstance(found.process, Process):
            return
        raise ValueError(f"model {spec!r}: its process is {_kind(found.process)}, not one of sdekit's")
    if isinstance(found, nn.Module):
        raise ValueError(
            f"model {spec!r} is a bare network, {type(found).__name__}: return ScoreModel(net, process,"
            " predicts=...), which says what it predicts and under which process"
        )
    raise ValueError(
        f"model {spec!r} is {_kind(found)}: it must be a ScoreModel, what wraps one (process, device, nfe, predict),"
        " or a function without arguments that returns such"
    )


def _kind(thing: object) -> str:
    return f"the class {thing.__name__}" if isinstance(thing, type) else f"of type {type(thing).__name__}"


def _from_path(path: Path) -> Any:
    if path.is_file():
        if path.suffix.lower() in PICKLES:
            raise ValueError(
                f"model {path}: {path.suffix} files are pickles, which run code when they are read: save the weights"
                " with safetensors, or name a function that returns the model, as in package.module:name"
            )
        return store.load_model(path)
    if (path / store.MODEL).exists():
        return store.load(path)
    if any((path / name).exists() for name in _DIFFUSERS):
        from sdekit.interop import diffusers

        return diffusers.load(path)
    raise ValueError(
        f"model {path}: the folder holds neither {store.MODEL} (of sdekit.nn.save) nor {' or '.join(_DIFFUSERS)} (of"
        " diffusers)"
    )
