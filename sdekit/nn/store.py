"""Networks in files: weights by safetensors, the architecture and the recipe as JSON in its metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from sdekit.model import ScoreModel
from sdekit.names import lookup
from sdekit.nn.classifier import Classifier
from sdekit.nn.unet import UNet
from sdekit.process import VE, VP, CosineVP, DiscreteVP, Flow, Process, SubVP

NETWORKS: dict[str, Callable[..., nn.Module]] = {"unet": UNet, "classifier": Classifier}
PROCESSES: dict[str, Callable[..., Process]] = {
    process.__name__: process for process in (VP, SubVP, VE, CosineVP, DiscreteVP, Flow)
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


def save_network(path: str | os.PathLike[str], net: nn.Module, metadata: Mapping[str, Any]) -> None:
    """Write a network of ``NETWORKS`` to a .safetensors file, whole or not at all.

    ``metadata`` is anything JSON can hold; ``net.config`` is stored with it. Raises ValueError for a
    network of another kind.
    """
    kind = next((name for name, cls in NETWORKS.items() if type(net) is cls), None)
    if kind is None:
        raise ValueError(f"net: {type(net).__name__} cannot be stored; known: {', '.join(sorted(NETWORKS))}")
    header = {"network": kind, "config": json.dumps(net.config), "metadata": json.dumps(dict(metadata))}
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in net.state_dict().items()}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(save(tensors, metadata=header))
    os.replace(temporary, path)


def load_network(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> tuple[nn.Module, dict[str, Any]]:
    """The network that ``save_network`` wrote, in evaluation mode, and its metadata.

    Raises ValueError for a file that is missing, damaged or not written by ``save_network``.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
    except (OSError, SafetensorError) as error:
        raise ValueError(f"path={os.fspath(path)!r}: no readable safetensors file ({error})") from error
    if not {"network", "config", "metadata"} <= header.keys():
        raise ValueError(f"path={os.fspath(path)!r}: its header lacks the architecture; save_network writes it")
    net = lookup("network", header["network"], NETWORKS)(**json.loads(header["config"]))
    net.load_state_dict(tensors)
    return net.to(device).eval().requires_grad_(False), json.loads(header["metadata"])


def load_model(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> ScoreModel:
    """The stored network as a ``ScoreModel`` of the process, prediction and time it was trained with.

    Raises ValueError as ``load_network``, and for a network that is not a denoiser.
    """
    net, metadata = load_network(path, device)
    if not {"process", "predicts", "time"} <= metadata.keys():
        raise ValueError(f"path={os.fspath(path)!r}: its metadata names no process, prediction and time")
    return ScoreModel(net, build_process(metadata["process"]), metadata["predicts"], metadata["time"])


def digits_model(device: str | torch.device = "cpu") -> ScoreModel:
    """The shipped network of 8×8 digits; ``label`` (0 … 9, 10 for none) is optional.

    ``sdekit train digits`` made it; its recipe and losses are in ``sdekit/weights/digits.json``.

    >>> digits_model().x0(torch.zeros(2, 1, 8, 8), 0.5, label=torch.tensor([3, 10])).shape
    torch.Size([2, 1, 8, 8])
    """
    with resources.as_file(resources.files("sdekit") / "weights" / "digits.safetensors") as path:
        return load_model(path, device)


def digits_features(device: str | torch.device = "cpu") -> nn.Module:
    """The shipped map of digits [n, 1, 8, 8] in [−1, 1] to features [n, 32] of a digit classifier.

    >>> digits_features()(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 32])
    """
    with resources.as_file(resources.files("sdekit") / "weights" / "digits-features.safetensors") as path:
        net, _ = load_network(path, device)
    return net.get_submodule("features")
