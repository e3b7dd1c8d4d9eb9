"""Files written whole or not at all, and tensors in safetensors files, read with an error that names the file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


def write_whole(path: str | os.PathLike[str], contents: bytes) -> None:
    """Write the file, whole or not at all: what was there is lost only once the new one stands.

    Raises ValueError where it cannot be written.
    """
    temporary = Path(path).with_name(Path(path).name + ".tmp")
    try:
        temporary.write_bytes(contents)
        os.replace(temporary, path)
    except OSError as error:
        raise ValueError(f"path={os.fspath(path)!r}: it cannot be written ({error})") from error


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write the tensors and the header to a .safetensors file, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    write_whole(path, save(contents, metadata=dict(header)))


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the header of a .safetensors file. Raises ValueError where it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
            return tensors, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"path={os.fspath(path)!r}: no readable safetensors file ({error})") from error
