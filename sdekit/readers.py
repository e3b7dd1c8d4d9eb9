"""Data in files as samples [n, *event]: a folder of images, .npy, .npz, .safetensors. Nothing is unpickled."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sdekit.data import BYTES, Quantization
from sdekit.names import unknown

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin", ".joblib")
_CHANNELS = {"L": 1, "RGB": 3}


@dataclass(frozen=True)
class DataSet:
    """What ``read`` returns.

    Attributes:
        x: float32 [n, *event].
        total: how many samples the file has; n where no ``limit`` was set.
        quantization: how levels 0 … 255 became x; None where the file holds floats.
        note: what was done to the values, in words; empty where nothing was.
    """

    x: Float[Tensor, "n *event"]
    total: int
    quantization: Quantization | None = None
    note: str = ""


def read(path: str | os.PathLike[str], limit: int | None = None) -> DataSet:
    """Read data from a folder of images, or from a file .npy, .npz or .safetensors.

    Images and arrays of uint8 are scaled as u/127.5 − 1, into [−1, 1], and come as [n, channels, height, width]: arrays
    [n, height, width] get one channel, and [n, height, width, 1 or 3] have it moved. Floats stay as they are, in
    float32. Images in a folder, and in those within, are read in the order of their paths.

    Args:
        path: of a file with several arrays the one is named after a colon: ``"file.npz:images"``.
        limit: read at most so many samples, evenly spaced over all.

    Raises ValueError for a path that is missing or of another kind, for arrays that are not [n, *event], empty, neither
    uint8 nor floating-point, or not finite; for images of several sizes, of colour and grey mixed, with
    transparency, a palette, several frames or more than 8 bits a channel; each with the file's name.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/x.npy", np.full((5, 8, 8, 3), 255, dtype=np.uint8))
    ...     data = read(f"{folder}/x.npy", limit=2)
    >>> data.x.shape, data.total, data.x.max().item()
    (torch.Size([2, 3, 8, 8]), 5, 1.0)
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: at least 1 sample must be read")
    whole, key = _split(os.fspath(path))
    if whole.is_dir():
        return _of_folder(whole, limit)
    suffix = whole.suffix.lower()
    if suffix in PICKLES:
        raise ValueError(
            f"{whole}: {suffix} files are pickles, which run code when they are read: save the data with numpy.save"
            " (.npy) or safetensors"
        )
    if suffix not in _READERS:
        known = ", ".join(_READERS)
        raise ValueError(
            f"{whole}: data are a folder of images or a file {known}, not {suffix or 'one without suffix'}"
        )
    array = _READERS[suffix](whole, key)
    return _checked(f"{whole}:{key}" if key else str(whole), array, limit)


def _split(path: str) -> tuple[Path, str]:
    """The file and, after a colon, which of its arrays."""
    whole, key = Path(path), ""
    if not whole.exists() and ":" in path:
        head, _, key = path.rpartition(":")
        whole = Path(head)
    if not whole.exists():
        raise ValueError(f"{path}: there is no such file or folder")
    return whole, key


def _npy(path: Path, key: str) -> np.ndarray:
    if key:
        raise ValueError(f"{path}:{key}: a .npy file holds one array, without a name")
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError) as error:
        raise _unreadable(path, error) from None
    if not isinstance(found, np.ndarray):
        found.close()
        raise ValueError(f"{path}: it is a .npz file, whatever its name says")
    return found


def _npz(path: Path, key: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it is no .npz file")
            found = file[_choose(path, key, file.files)]
    except Exception as error:  # zipfile and zlib have errors of their own
        raise _unreadable(path, error) from None
    return found


def _safetensors(path: Path, key: str) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(_choose(path, key, list(file.keys())))
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from None


_READERS: Mapping[str, Callable[[Path, str], Any]] = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors}


class _ChoiceError(ValueError):
    pass


def _choose(path: Path, key: str, names: list[str]) -> str:
    if key:
        if key not in names:
            raise _ChoiceError(f"{path}: {unknown('array', key, names)}")
        return key
    if len(names) != 1:
        raise _ChoiceError(f"{path} holds {len(names)} arrays: name one, as in {path}:{(*names, 'name')[0]}; it has"
                           f" {', '.join(sorted(names)) or 'none'}")  # fmt: skip
    return names[0]


def _unreadable(path: Path, error: Exception) -> ValueError:
    if isinstance(error, _ChoiceError):
        return error
    if "allow_pickle" in str(error) or "pickled" in str(error):
        return ValueError(f"{path}: it holds Python objects, as a pickle, which is not read: save an array of numbers")
    return ValueError(f"{path}: it cannot be read ({' '.join(str(error).split()) or type(error).__name__})")


def _rows(total: int, limit: int | None) -> list[int]:
    """Which of ``total`` rows are read, evenly spaced.

    >>> _rows(10, 4), _rows(3, 5)
    ([0, 2, 5, 7], [0, 1, 2])
    """
    return list(range(total)) if limit is None or limit >= total else [i * total // limit for i in range(limit)]


def _checked(name: str, found: Any, limit: int | None) -> DataSet:
    if not isinstance(found, np.ndarray | Tensor):
        raise ValueError(f"{name}: it is no array")
    shape, total = list(found.shape), len(found) if found.ndim else 0
    if found.ndim < 2:
        raise ValueError(f"{name} has shape {shape}: samples are [n, *event], and n numbers [n, 1]")
    if 0 in shape:
        raise ValueError(f"{name} has shape {shape}: it is empty")
    rows = _rows(total, limit)
    part = found if len(rows) == total else found[rows]
    x = part if isinstance(part, Tensor) else _as_tensor(name, part)
    if x.dtype == torch.uint8:
        return DataSet(*_of_bytes(x, total))
    if not x.is_floating_point():
        raise ValueError(f"{name} holds {x.dtype}: give floats, or images in uint8, which are scaled to [−1, 1]")
    x = x.float()
    if lost := int((~x.isfinite()).sum()):
        raise ValueError(f"{name} holds {lost} values that are NaN, infinite or beyond float32: mend them first")
    return DataSet(x, total)


def _as_tensor(name: str, array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "fu" or array.dtype.itemsize > 8 or (array.dtype.kind == "u" and array.itemsize > 1):
        raise ValueError(f"{name} holds {array.dtype}: give floats, or images in uint8, which are scaled to [−1, 1]")
    native = array.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(array, dtype=native, order="C"))  # a copy: a mapped file is read-only


def _of_bytes(u: Tensor, total: int) -> tuple[Tensor, int, Quantization, str]:
    note = "uint8 scaled to [−1, 1]"
    if u.ndim == 3:
        u, note = u[:, None], note + ", one channel added"
    elif u.ndim == 4 and u.shape[3] in (1, 3) and u.shape[1] not in (1, 3):
        u, note = u.permute(0, 3, 1, 2), note + ", channels moved to the front"
    return u.float().div_(127.5).sub_(1).contiguous(), total, BYTES, note


def _of_folder(folder: Path, limit: int | None) -> DataSet:
    files = sorted(_images_in(folder))
    if not files:
        raise ValueError(f"{folder}: the folder holds no images ({', '.join(IMAGES)})")
    chosen = [files[row] for row in _rows(len(files), limit)]
    first = _image(chosen[0])
    images = np.empty((len(chosen), *first.shape), dtype=np.uint8)
    for i, file in enumerate(chosen):
        image = _image(file)
        if image.shape != first.shape:
            raise ValueError(
                f"{file}: {_size(image)}, but {chosen[0].name} is {_size(first)}: all images must be of one size and"
                " one number of channels"
            )
        images[i] = image
    return DataSet(*_of_bytes(torch.from_numpy(images).permute(0, 3, 1, 2), len(files)))


def _images_in(folder: Path) -> Iterable[Path]:
    for file in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file.suffix.lower() in IMAGES and not hidden and file.is_file():
            yield file


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}×{image.shape[0]} of {'colour' if image.shape[2] == 3 else 'grey'}"


def _image(file: Path) -> np.ndarray:
    """Its pixels [height, width, channels], uint8, turned as its camera says."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings(), Image.open(file) as image:
            warnings.simplefilter("ignore")  # of Pillow's, about metadata that are not read
            _check_image(file, image)
            pixels = np.asarray(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file}: it is no image that can be read ({' '.join(str(error).split())})") from None
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _check_image(file: Path, image: Any) -> None:
    if getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"{file}: it has {image.n_frames} frames, and an image must have one")
    if image.mode.endswith("A") or "transparency" in image.info:
        raise ValueError(f"{file}: it has transparency (mode {image.mode}): put it on a background and save it as RGB")
    if image.mode not in _CHANNELS:
        raise ValueError(
            f"{file}: it is of mode {image.mode}, and images are RGB or L (grey) of 8 bits: convert and save it anew"
        )
