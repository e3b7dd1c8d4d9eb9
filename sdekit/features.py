"""Feature maps with published weights, from files on disk: DINOv2 and Inception. Nothing is downloaded.

A Fréchet distance in Inception's features is the FID (Heusel et al. 2017), in DINOv2's the FD of Stein et al. 2023. The
libraries that hold the networks are imported where they are used.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sdekit.files import read_tensors

_SIDE = 224  # of the images that DINOv2 is shown, Stein et al. 2023
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, in [0, 1]


def pixels(x: Float[Tensor, "n *event"]) -> UInt8[Tensor, "n 3 h w"]:
    """Images in [−1, 1] as files would hold them: u = 127.5 (x + 1) rounded and clamped to 0 … 255, grey as RGB.

    Raises ValueError for another shape than [n, 1 or 3, height, width].

    >>> pixels(torch.full((1, 1, 2, 2), -1.0)).shape, pixels(torch.full((1, 3, 1, 1), 9.0)).unique().item()
    (torch.Size([1, 3, 2, 2]), 255)
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"x has shape {list(x.shape)}: these features are of images [n, 1 or 3, height, width]")
    return x.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)


class DINOv2(nn.Module):
    """The class token of a DINOv2 network of transformers, after its last norm, for images in [−1, 1].

    Images are resized to 224×224, bicubic, whatever their proportions (Stein et al. 2023).
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_STD)[:, None, None], persistent=False)

    def forward(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n k"]:
        rgb = pixels(x).to(x.dtype) / 255
        resized = F.interpolate(rgb, (_SIDE, _SIDE), mode="bicubic", antialias=True).clamp(0, 1)
        normal = (resized - self.get_buffer("mean")) / self.get_buffer("std")
        return self.net(pixel_values=normal).last_hidden_state[:, 0]


class Inception(nn.Module):
    """The 2048 pooled features of torch-fidelity's Inception v3, a port of FID's own, for images in [−1, 1]."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n 2048"]:
        return self.net(pixels(x))[0]


def dinov2(folder: str) -> DINOv2:
    """DINOv2 from a folder of transformers' ``save_pretrained``: config.json and weights in safetensors.

    Raises ValueError without transformers, for a folder of another network, and where weights are missing.
    """
    config = Path(folder) / "config.json"
    if not config.is_file():
        raise ValueError(f"features dinov2:{folder}: there is no {config}; transformers' save_pretrained writes it")
    kind = _json(config).get("model_type", "unknown")
    if not str(kind).startswith("dinov2"):
        raise ValueError(f"features dinov2:{folder}: its config.json is of a network of type {kind!r}, not dinov2")
    transformers = _library("transformers", "transformers")
    try:
        net, found = transformers.AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"features dinov2:{folder}: {error}") from None
    if missing := sorted(found["missing_keys"]):  # transformers would leave them random
        raise ValueError(f"features dinov2:{folder}: {len(missing)} weights are missing, {missing[0]} among them")
    return DINOv2(net).eval().requires_grad_(False)


def inception(path: str) -> Inception:
    """Inception v3 from torch-fidelity's weights, in .pth (tensors alone are read) or .safetensors.

    Raises ValueError without torch-fidelity, and for a file that holds anything else.
    """
    weights = _weights(path)
    # torch-fidelity reads its file as a pickle of anything: it gets one made here, of tensors that were read safely
    safe = io.BytesIO()
    torch.save(weights, safe)
    safe.seek(0)
    network = _library("torch_fidelity", "torch-fidelity").FeatureExtractorInceptionV3
    try:
        net = network("inception", ["2048"], feature_extractor_weights_path=safe)
    except RuntimeError as error:
        raise ValueError(f"features inception:{path}: its weights are of another network ({error})") from None
    return Inception(net).eval().requires_grad_(False)


KINDS: Mapping[str, Callable[[str], nn.Module]] = {"dinov2": dinov2, "inception": inception}


def _weights(path: str) -> dict[str, Tensor]:
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"features inception:{path}: there is no such file")
    if file.suffix == ".safetensors":
        return read_tensors(file)[0]
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's errors of reading are of many kinds
        raise ValueError(
            f"features inception:{path}: it is no file of tensors alone ({str(error).splitlines()[0]})"
        ) from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"features inception:{path}: it holds other things than named tensors")
    return dict(found)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: it is no JSON ({error})") from None
    return found if isinstance(found, dict) else {}


def _library(module: str, package: str = "") -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ValueError(
            f"features: {package or module} is needed: pip install {package or module} ({error})"
        ) from None
