"""Networks and models in files: weights by safetensors, all else as JSON.

``save_network`` writes one file, the architecture and the recipe in its metadata. ``save`` writes a model as a folder:
``weights.safetensors`` and ``model.json``, which names the network's class and arguments, the process, what the network
predicts and how it is told the time. Only classes of ``NETWORKS`` and ``process.description.PROCESSES`` and times of
``model.TIMES`` can be named: reading a file imports nothing and runs no code from it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdekit.door import Device, FileName, door
from sdekit.files import read_tensors, write_tensors, write_whole
from sdekit.identity.networks import bare
from sdekit.model import TIMES, ScoreModel
from sdekit.names import lookup
from sdekit.nn.classifier import Classifier
from sdekit.nn.dit import DiT
from sdekit.nn.mlp import MLP
from sdekit.nn.unet import UNet
from sdekit.process.description import PROCESSES, build_process, describe_process

NETWORKS: dict[str, Callable[..., nn.Module]] = {"unet": UNet, "dit": DiT, "mlp": MLP, "classifier": Classifier}
MODEL, WEIGHTS = "model.json", "weights.safetensors"
_FORMAT = "sdekit model 1"
_DTYPES = {str(dtype).removeprefix("torch."): dtype
           for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)}  # fmt: skip


@door
def save_network(path: FileName, net: nn.Module, metadata: Mapping[str, Any]) -> None:
    """Write a network of ``NETWORKS`` to a .safetensors file, whole or not at all.

    ``metadata`` is anything JSON can hold; ``net.config`` is stored with it. Raises ValueError for a
    network of another kind.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_network(f"{folder}/net.safetensors", MLP(2, width=8), {"note": "mine"})
    ...     load_network(f"{folder}/net.safetensors")[1]
    {'note': 'mine'}
    """
    kind = _name_of(net, NETWORKS, "net")
    header = {"network": kind, "config": json.dumps(net.config), "metadata": json.dumps(dict(metadata))}
    write_tensors(path, net.state_dict(), header)


@door
def load_network(path: FileName, device: Device = "cpu") -> tuple[nn.Module, dict[str, Any]]:
    """The network that ``save_network`` wrote, in evaluation mode, and its metadata.

    Raises ValueError for a file that is missing, damaged or not written by ``save_network``.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_network(f"{folder}/net.safetensors", MLP(2, width=8), {})
    ...     net, _ = load_network(f"{folder}/net.safetensors")
    >>> net.size, net.training
    (2, False)
    """
    tensors, header = read_tensors(path)
    if not {"network", "config", "metadata"} <= header.keys():
        raise ValueError(f"path={os.fspath(path)!r}: its header lacks the architecture; save_network writes it")
    net = _network(os.fspath(path), header["network"], json.loads(header["config"]), tensors)
    return net.to(device), json.loads(header["metadata"])


@door
def save(model: ScoreModel, folder: FileName) -> None:
    """Write a model to ``folder``, as ``load`` and ``sdekit sample --model folder`` read it.

    ``model.json`` is written last, with the digest of the weights: an old one does not fit new weights.

    Raises ValueError for a network or process of another class than this package's, a time that is a function of one's
    own, and what wraps a model: such a model is Python, to be named as ``package.module:function``.

    >>> import tempfile
    >>> from sdekit.process import VE
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(ScoreModel(UNet(widths=(8, 8), embedding=8, groups=2), VE(), "x0", "half-log-snr"), folder)
    ...     load(folder)
    ScoreModel(UNet, VE(sigma_min=0.01, sigma_max=50.0, t_min=0.0, t_max=1.0), predicts='x0', nfe=0)
    """
    if type(model) is not ScoreModel:
        raise ValueError(f"model is of type {type(model).__name__}: only a bare ScoreModel can be saved")
    net: Any = bare(model.net)
    kind = _name_of(net, NETWORKS, "model.net")
    _name_of(model.process, PROCESSES, "model.process")
    time = next((name for name, known in TIMES.items() if known is model.time), None)
    if time is None:
        raise ValueError(f"model.time is a function of its own; of those in a file the known are {', '.join(TIMES)}")
    folder = Path(folder)
    write_tensors(folder / WEIGHTS, net.state_dict(), {"format": "pt"})
    about = {
        "format": _FORMAT, "network": kind, "arguments": net.config, "process": describe_process(model.process),
        "predicts": model.predicts, "time": time, "dtype": str(model.dtype).removeprefix("torch."),
        "weights_sha256": _digest(folder / WEIGHTS),
    }  # fmt: skip
    write_whole(folder / MODEL, (json.dumps(about, indent=1, allow_nan=False) + "\n").encode())


@door
def load(folder: FileName, device: Device = "cpu") -> ScoreModel:
    """The model that ``save`` wrote, its network in evaluation mode. ``weights_sha256`` may be left out of the file.

    Raises ValueError for a file that is missing, damaged or of another format, names that are not known, and weights
    that are not those of ``model.json``.

    >>> import tempfile
    >>> from sdekit.process import VP
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(ScoreModel(MLP(2, width=8), VP(), "v", "half-log-snr"), folder)
    ...     load(folder).predicts
    'v'
    """
    folder = Path(folder)
    about = _read_model(folder / MODEL)
    weights = folder / WEIGHTS
    tensors, _ = read_tensors(weights)
    if about.get("weights_sha256") not in (None, _digest(weights)):
        raise ValueError(f"{weights} holds other weights than {MODEL} was written for: save the model again")
    net = _network(str(folder), about["network"], about["arguments"], tensors).to(device)
    try:
        process, dtype = build_process(about["process"]), lookup("dtype", about["dtype"], _DTYPES)
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{folder / MODEL}: its process or dtype cannot be read ({error})") from None
    lookup("time", about["time"], TIMES)
    return ScoreModel(net, process, about["predicts"], about["time"], dtype)


def _read_model(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: it cannot be read ({error})") from None
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        raise ValueError(f"{path}: its format is not {_FORMAT!r}, which sdekit.nn.save writes")
    kinds = {"network": str, "arguments": dict, "process": dict, "predicts": str, "time": str, "dtype": str}
    for name, kind in kinds.items():
        if not isinstance(about.get(name), kind):
            raise ValueError(f"{path}: {name}={about.get(name)!r}: a {kind.__name__} is needed")
    return about


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _name_of(thing: object, known: Mapping[str, Callable[..., Any]], what: str) -> str:
    name = next((name for name, cls in known.items() if type(thing) is cls), None)
    if name is None:
        raise ValueError(f"{what}: {type(thing).__name__} cannot be stored; known: {', '.join(sorted(known))}")
    return name


def _network(path: str, kind: str, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network with these weights, in their dtype, in evaluation mode and without gradients."""
    make = lookup("network", kind, NETWORKS)
    try:
        net = make(**arguments)
        # assigned, so that each keeps its dtype; copied, so that none stays in the mapped file
        net.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
    except (TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"path={path!r}: its weights and arguments make no {kind} ({reason})") from None
    return net.eval().requires_grad_(False)


@door
def load_model(path: FileName, device: Device = "cpu") -> ScoreModel:
    """The stored network as a ``ScoreModel`` of the process, prediction and time it was trained with.

    Raises ValueError as ``load_network``, and for a network that is not a denoiser.

    >>> with resources.as_file(resources.files("sdekit") / "weights" / "digits.safetensors") as path:
    ...     load_model(path).predicts
    'v'
    """
    net, metadata = load_network(path, device)
    if not {"process", "predicts", "time"} <= metadata.keys():
        raise ValueError(f"path={os.fspath(path)!r}: its metadata names no process, prediction and time")
    return ScoreModel(net, build_process(metadata["process"]), metadata["predicts"], metadata["time"])


@door
def digits_model(device: Device = "cpu") -> ScoreModel:
    """The shipped network of 8×8 digits; ``label`` (0 … 9, 10 for none) is optional.

    ``sdekit train digits`` made it; its recipe and losses are in ``sdekit/weights/digits.json``.

    >>> digits_model().x0(torch.zeros(2, 1, 8, 8), 0.5, label=torch.tensor([3, 10])).shape
    torch.Size([2, 1, 8, 8])
    """
    with resources.as_file(resources.files("sdekit") / "weights" / "digits.safetensors") as path:
        return load_model(path, device)


@door
def digits_few_model(device: Device = "cpu") -> ScoreModel:
    """The shipped consistency model of the digits, without labels: for ``solver="consistency"`` in 1 or 2 evaluations.

    ``sdekit train digits-few`` made it of ``digits_model``; its recipe is in ``sdekit/weights/digits-few.json``.

    >>> from sdekit.sampling import sample
    >>> model = digits_few_model()
    >>> sample(model, (2, 1, 8, 8), solver="consistency", nfe=1, seed=0).nfe
    1
    """
    with resources.as_file(resources.files("sdekit") / "weights" / "digits-few.safetensors") as path:
        return load_model(path, device)


@door
def digits_features(device: Device = "cpu") -> nn.Module:
    """The shipped map of digits [n, 1, 8, 8] in [−1, 1] to features [n, 32] of a digit classifier.

    >>> digits_features()(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 32])
    """
    with resources.as_file(resources.files("sdekit") / "weights" / "digits-features.safetensors") as path:
        net, _ = load_network(path, device)
    return net.get_submodule("features")
