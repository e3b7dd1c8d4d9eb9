"""Networks and pipelines that ``save_pretrained`` wrote, as models. Nothing is downloaded, and no pickle is read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdekit.interop.diffusers.config import Trained, read
from sdekit.interop.diffusers.networks import Network, bare
from sdekit.model import ScoreModel
from sdekit.names import unknown
from sdekit.process import Flow
from sdekit.thresholding import Thresholded

Folder = str | os.PathLike[str]


def wrap(network: nn.Module, scheduler: Any, *, clip: bool = True) -> ScoreModel | Thresholded:
    r"""A network of diffusers as a model, with all that the scheduler it was trained with says about it.

    Process, prediction and time are those of ``config.read``; a learned variance is split off; ``class_labels``,
    ``encoder_hidden_states`` and the network's other arguments are conditions. **Where the scheduler's configuration
    clips x_0 (``clip_sample``, which is the default of diffusers' DDPM and DDIM schedulers, or ``thresholding``), the
    model is ``Thresholded`` by the same rule, as its repr shows**; ``clip=False`` leaves that out, as likelihoods need.

    Args:
        network: ``UNet2DModel``, ``UNet2DConditionModel``, ``DiTTransformer2DModel``, or any that is called
            ``network(x, timestep=…, return_dict=…)`` and returns x's shape, or twice its channels.
        scheduler: a scheduler of diffusers, its configuration, or the path of either.
        clip: take over the thresholding of the configuration.

    Raises ValueError for a scheduler, schedule or prediction that is not known, and for a network that is called
    otherwise or told more than x.
    """
    trained = read(scheduler)
    net = Network(network, trained.preconditioning)
    _check_clock(network, trained)
    embedded = dict(getattr(network, "config", {})).get("time_embedding_type") == "learned"
    time = "entry" if embedded else trained.clock  # an embedding takes whole numbers alone
    parameter = next(network.parameters(), None)
    wide = torch.float64 if parameter is not None and parameter.dtype == torch.float64 else torch.float32
    model = ScoreModel(net, trained.process, trained.predicts, time, wide if trained.preconditioning else None)
    return Thresholded(model, trained.rule) if clip and trained.rule else model


# whose pipelines tell them T t in flow matching; others tell t, 1 − t, or a multiple of their own
_TOLD_T = ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel", "SD3Transformer2DModel")


def _check_clock(network: nn.Module, trained: Trained) -> None:
    kind = type(bare(network))
    if isinstance(trained.process, Flow) and kind.__module__.startswith("diffusers.") and kind.__name__ not in _TOLD_T:
        raise ValueError(
            f"network: how a {kind.__name__} is told the time in flow matching is its pipeline's business, and not"
            f" known here (known are {', '.join(_TOLD_T)}): give ScoreModel a function of (x, t) that calls it as its"
            " pipeline does, with the process sk.Flow()"
        )


def load(
    folder: Folder,
    scheduler: Any = None,
    *,
    clip: bool = True,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> ScoreModel | Thresholded:
    """The network in a folder that ``save_pretrained`` of a network or of a pipeline wrote, as a model; see ``wrap``.

    Args:
        folder: of a network (config.json and its weights as safetensors), or of a pipeline (model_index.json).
        scheduler: as of ``wrap``; by default scheduler_config.json in that folder, or the pipeline's own.
        clip: take over the thresholding of the scheduler's configuration.
        dtype: of the network; by default that of its file.
        device: where the network is put.

    Raises ValueError for a folder without weights, for weights that are a pickle, for a class that is no network of
    diffusers, and as ``wrap``.
    """
    path = _folder(folder)
    pipeline = path / "model_index.json"
    scheduler = path if scheduler is None else scheduler
    if pipeline.is_file():
        index = _object(pipeline)
        name = next((one for one in ("unet", "transformer") if _class_of(index, one)), None)
        if name is None:
            raise ValueError(f"folder={str(path)!r}: the pipeline has neither a unet nor a transformer")
        path = path / name
    network = _network(path, dtype).to(device)
    return wrap(network.eval(), scheduler, clip=clip)


@dataclass(frozen=True)
class Pipeline:
    """What ``load_pipeline`` found in a pipeline's folder.

    Attributes:
        model: the denoiser, in the autoencoder's latent space where there is one.
        vae: the autoencoder, or None.
        scale, shift: of the latents: z = (encoding − shift)·scale, the VAE's ``scaling_factor`` and ``shift_factor``.
        text_encoder, tokenizer: of one text encoder of transformers; None where there is none, or more than one.
    """

    model: ScoreModel | Thresholded
    vae: nn.Module | None
    scale: float
    shift: float
    text_encoder: nn.Module | None
    tokenizer: Any

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents [n, …]: the autoencoder's of latents/scale + shift. Raises ValueError where none is."""
        vae: Any = self._autoencoder()
        return vae.decode((latents / self.scale + self.shift).to(vae.dtype)).sample.to(latents.dtype)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents of images [n, …]: (the encoding's mean − shift)·scale. Raises ValueError where there is no VAE."""
        vae: Any = self._autoencoder()
        encoded = vae.encode(images.to(vae.dtype))
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return ((latents - self.shift) * self.scale).to(images.dtype)

    @torch.no_grad()
    def text(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The prompts as the condition ``encoder_hidden_states`` [n, tokens, features], for ``sample(**…)``.

        As Stable Diffusion has it: padded to the tokenizer's length and cut there, the encoder's last hidden state. The
        empty prompt is the unconditional one. Raises ValueError for a pipeline without one text encoder.
        """
        if isinstance(prompts, str):
            raise ValueError(f"prompts={prompts!r}: it must be a list of texts, one for each sample")
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError("the pipeline has no single text encoder: give encoder_hidden_states= yourself")
        device = next(self.text_encoder.parameters()).device
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )  # fmt: skip
        return {"encoder_hidden_states": self.text_encoder(tokens.input_ids.to(device))[0]}

    def _autoencoder(self) -> nn.Module:
        if self.vae is None:
            raise ValueError("the pipeline has no autoencoder: its model works on the data themselves")
        return self.vae


def load_pipeline(
    folder: Folder, *, clip: bool = True, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> Pipeline:
    """Model, autoencoder and text encoder in a folder that a pipeline's ``save_pretrained`` wrote (model_index.json).

    What else a pipeline holds (safety checker, feature extractor) is left where it is. Arguments as of ``load``. Raises
    ValueError as ``load``, and for a part whose class is not one of diffusers or transformers.
    """
    path = _folder(folder)
    if not (path / "model_index.json").is_file():
        raise ValueError(
            f"folder={str(path)!r}: no model_index.json, so it is no pipeline; load takes a network's folder"
        )
    index = _object(path / "model_index.json")
    model = load(path, clip=clip, dtype=dtype, device=device)
    name = next((one for one in ("vae", "vqvae", "movq") if _class_of(index, one)), None)
    vae = None if name is None else _network(path / name, dtype).to(device).eval()
    config: Mapping[str, Any] = {} if vae is None else dict(vae.config)  # type: ignore[arg-type]
    encoder, tokenizer = None, None
    if _class_of(index, "text_encoder") and not _class_of(index, "text_encoder_2"):
        encoder = _transformers(path, index, "text_encoder", use_safetensors=True, dtype=dtype).to(device).eval()
        tokenizer = _transformers(path, index, "tokenizer")
    scale, shift = config.get("scaling_factor") or 1.0, config.get("shift_factor") or 0.0
    return Pipeline(model, vae, float(scale), float(shift), encoder, tokenizer)


def _folder(folder: Folder) -> Path:
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(
            f"folder={str(path)!r}: no such folder; nothing is downloaded: save_pretrained(folder) writes one"
        )
    return path


def _object(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"folder={str(file.parent)!r}: {file.name} is no JSON object ({error})") from error


def _class_of(index: Mapping[str, Any], part: str) -> str | None:
    """The class of a pipeline's part, None where it has none."""
    entry = index.get(part)
    return str(entry[1]) if isinstance(entry, list) and len(entry) == 2 and entry[1] else None


def _network(path: Path, dtype: torch.dtype | None) -> nn.Module:
    """The network of diffusers in that folder, of the class that its configuration names."""
    import diffusers
    from diffusers.models.modeling_utils import ModelMixin

    if not (path / "config.json").is_file():
        raise ValueError(f"folder={str(path)!r}: no config.json; save_pretrained(folder) of the network writes it")
    _check_weights(path)
    name = str(_object(path / "config.json").get("_class_name"))
    cls: Any = getattr(diffusers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, ModelMixin)):
        known = [one for one in dir(diffusers) if one.endswith(("Model", "AutoencoderKL", "VQModel"))]
        raise unknown("network of diffusers", name, known)
    options = {} if dtype is None else {"torch_dtype": dtype}
    try:
        network = cls.from_pretrained(str(path), local_files_only=True, use_safetensors=True, **options)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"folder={str(path)!r}: the weights do not make a {name} ({error})") from error
    network.register_to_config(_name_or_path="")  # where a network was found says nothing about what it is
    return network


def _transformers(path: Path, index: Mapping[str, Any], part: str, **options: Any) -> Any:
    """A part that transformers holds, of the class that the pipeline's index names."""
    import transformers

    library, name = index[part]
    cls: Any = getattr(transformers, name, None) if library == "transformers" else None
    if not (isinstance(cls, type) and hasattr(cls, "from_pretrained")):
        raise ValueError(
            f"folder={str(path)!r}: {part} is a {name} of {library}; only those of transformers are loaded"
        )
    if "use_safetensors" in options:
        _check_weights(path / part)
    try:
        return cls.from_pretrained(str(path / part), local_files_only=True, **options)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"folder={str(path)!r}: {part} does not make a {name} ({error})") from error


def _check_weights(path: Path) -> None:
    if any(path.glob("*.safetensors")):
        return
    pickles = sorted(one.name for kind in ("*.bin", "*.ckpt", "*.pt", "*.pth") for one in path.glob(kind))
    if pickles:
        raise ValueError(
            f"folder={str(path)!r}: {pickles[0]} is a pickle, which may run code and is not read: where you trust it,"
            " load it with its own library (from_pretrained(folder, use_safetensors=False)), then"
            " save_pretrained(folder, safe_serialization=True) writes the safetensors file"
        )
    raise ValueError(f"folder={str(path)!r}: no weights: save_pretrained(folder) writes them, as a .safetensors file")
