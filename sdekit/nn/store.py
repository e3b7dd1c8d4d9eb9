"""Networks in files: weights by safetensors, the architecture and the recipe as JSON in its metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

import torch
from torch import nn

from sdekit.files import read_tensors, write_tensors
from sdekit.model import ScoreModel
from sdekit.names import lookup
from sdekit.nn.classifier import Classifier
from sdekit.nn.unet import UNet
from sdekit.process.description import build_process

NETWORKS: dict[str, Callable[..., nn.Module]] = {"unet": UNet, "classifier": Classifier}


def save_network(path: str | os.PathLike[str], net: nn.Module, metadata: Mapping[str, Any]) -> None:
    """Write a network of ``NETWORKS`` to a .safetensors file, whole or not at all.

    ``metadata`` is anything JSON can hold; ``net.config`` is stored with it. Raises ValueError for a
    network of another kind.
    """
    kind = next((name for name, cls in NETWORKS.items() if type(net) is cls), None)
    if kind is None:
        raise ValueError(f"net: {type(net).__name__} cannot be stored; known: {', '.join(sorted(NETWORKS))}")
    header = {"network": kind, "config": json.dumps(net.config), "metadata": json.dumps(dict(metadata))}
    write_tensors(path, net.state_dict(), header)


def load_network(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> tuple[nn.Module, dict[str, Any]]:
    """The network that ``save_network`` wrote, in evaluation mode, and its metadata.

    Raises ValueError for a file that is missing, damaged or not written by ``save_network``.
    """
    tensors, header = read_tensors(path)
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
