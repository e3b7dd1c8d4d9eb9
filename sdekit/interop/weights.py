"""Weights of other people's checkpoints, read without unpickling anything but tensors."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sdekit.door import FileName, door
from sdekit.files import read_tensors

Net = TypeVar("Net", bound=nn.Module)


@door
def load(net: Net, path: FileName, *, ema: bool = True) -> Net:
    """Load a checkpoint into ``net``, which comes back in evaluation mode.

    The file is a .safetensors file, or one of ``torch.save`` with nothing but tensors, numbers, text, lists and
    dictionaries in it, read with ``weights_only=True``. It holds a state dict, or score_sde's dictionary: the state
    dict as ``model`` and the moving averages of its parameters, in their order, as ``ema["shadow_params"]``. The
    prefix ``module.`` of ``DataParallel`` is taken off.

    Args:
        net: the network, built by its own code.
        ema: take the averages where the file has them: what score_sde samples with.

    Raises ValueError for a file that is missing, damaged or a pickle of objects, and where names or shapes are not
    the network's.

    >>> import tempfile
    >>> net = nn.Linear(2, 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"module." + name: x for name, x in net.state_dict().items()}, f"{folder}/net.pt")
    ...     copied = load(nn.Linear(2, 2), f"{folder}/net.pt")
    >>> torch.equal(copied.weight, net.weight)
    True
    """
    found = _read(Path(path))
    shadows = _averages(found) if ema else None
    state = found.get("model", found)
    if not isinstance(state, Mapping) or not state or not all(isinstance(x, Tensor) for x in state.values()):
        raise ValueError(f"path={os.fspath(path)!r}: it holds no state dict, neither at its top nor as 'model'")
    state = {str(name).removeprefix("module."): tensor for name, tensor in state.items()}
    _fits(path, {name: x.shape for name, x in state.items()}, {name: x.shape for name, x in net.state_dict().items()})
    net.load_state_dict(state)
    if shadows is not None:
        own = {f"{i}": p for i, p in enumerate(p for p in net.parameters() if p.requires_grad)}
        given = {f"{i}": x for i, x in enumerate(shadows)}
        _fits(path, {i: x.shape for i, x in given.items()}, {i: p.shape for i, p in own.items()}, "shadow_params ")
        with torch.no_grad():
            for i, parameter in own.items():
                parameter.copy_(given[i])
    return net.eval()


def _read(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle's protocol: whatever it is, it is refused below
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"path={os.fspath(path)!r}: it is no file of tensors alone. A pickle of objects can run any code and is"
            " not read: where you trust it, convert it once where its own code is, for EDM by"
            " torch.save(pickle.load(open('net.pkl', 'rb'))['ema'].state_dict(), 'net.pt'), and give net.pt"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"path={os.fspath(path)!r}: no readable checkpoint ({error})") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"path={os.fspath(path)!r}: it holds a {type(found).__name__}, not a dictionary of tensors")
    return found


def _averages(found: Mapping[str, Any]) -> list[Tensor] | None:
    kept = found.get("ema")
    shadows = kept.get("shadow_params") if isinstance(kept, Mapping) else None
    return list(shadows) if shadows is not None else None


def _fits(path: str | os.PathLike[str], given: Mapping[str, Any], own: Mapping[str, Any], what: str = "") -> None:
    """Raise ValueError where the shapes that a file gives are not the network's own, by name."""
    lacking, spare = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if lacking or spare:
        parts = [
            f"{what}{word} {', '.join(names[:3])}" for word, names in (("lacks", lacking), ("has", spare)) if names
        ]
        raise ValueError(
            f"path={os.fspath(path)!r}: it {' and '.join(parts)}, unlike the network ({len(given)} tensors for its"
            f" {len(own)}): build the network with the settings it was trained with"
        )
    for name, shape in own.items():
        if given[name] != shape:
            raise ValueError(
                f"path={os.fspath(path)!r}: {what}{name} has shape {list(given[name])}, the network's {list(shape)}"
            )
