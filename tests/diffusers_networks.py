"""Small networks and pipelines of diffusers with random weights, and runs, for the tests of both directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import sdekit as sk
from sdekit.interop.diffusers import read
from sdekit.noise import normal

diffusers = pytest.importorskip("diffusers")

SHAPE = (2, 3, 8, 8)


def unet(**options: Any) -> Any:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "add_attention": False}
    shape = {"sample_size": 8, "in_channels": 3, "out_channels": 3}
    return diffusers.UNet2DModel(**{**shape, **blocks, **sizes, **options}).eval()


def conditional_unet(**options: Any) -> Any:
    torch.manual_seed(2)
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}
    shape = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 8}
    return diffusers.UNet2DConditionModel(**{**shape, **blocks, **sizes, **options}).eval()


def dit(**options: Any) -> Any:
    torch.manual_seed(1)
    sizes = {"sample_size": 4, "num_layers": 1, "patch_size": 2, "attention_head_dim": 8, "num_attention_heads": 2}
    shape = {"in_channels": 4, "out_channels": 8, "num_embeds_ada_norm": 1000, "norm_type": "ada_norm_zero"}
    usual = {"norm_elementwise_affine": False, "activation_fn": "gelu-approximate", "attention_bias": True}
    return diffusers.DiTTransformer2DModel(**{**sizes, **shape, **usual, **options}).eval()


def autoencoder(levels: int = 1, **options: Any) -> Any:
    torch.manual_seed(3)
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": (8,) * levels,
    }
    shape = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 4}
    return diffusers.AutoencoderKL(**{**shape, **blocks, "sample_size": 8 * levels, **options}).eval()


def stable_diffusion(folder: Path) -> Any:
    """A pipeline of tiny random parts; its tokenizer knows letters alone."""
    transformers = pytest.importorskip("transformers")
    letters = [letter + end for end in ("", "</w>") for letter in "abcdefghijklmnopqrstuvwxyz"]
    words = {word: i for i, word in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    tokenizer = transformers.CLIPTokenizer(*files, model_max_length=8)
    config = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(4)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=autoencoder(levels=2), text_encoder=transformers.CLIPTextModel(config).eval(), tokenizer=tokenizer,
        unet=conditional_unet(), scheduler=stable_diffusion_scheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    return quiet(pipeline)


def stable_diffusion_scheduler() -> Any:
    table = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return diffusers.PNDMScheduler(**table, skip_prk_steps=True, steps_offset=1)


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LIKE = {
    "table": diffusers.DDPMScheduler(clip_sample=False),
    "clipped": diffusers.DDPMScheduler(prediction_type="v_prediction"),
    "flow": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "edm": diffusers.EDMEulerScheduler(sigma_max=20.0),
}


WEIGHT = torch.randn(12, 12, generator=generator(), dtype=torch.float64) / 6


def net(x, timestep):
    """As networks of diffusers do, it looks at the time in float32."""
    shift = torch.cos(timestep.float().to(x.dtype) / 300).reshape(-1, 1)
    return torch.tanh(x @ WEIGHT.to(x) + shift)


def denoiser(like):
    """``net`` as a model, by the formulas of EDM's table where it is an EDM network."""
    trained = read(like)
    if trained.preconditioning is None:
        model = sk.ScoreModel(net, trained.process, trained.predicts, trained.clock)
        return sk.Thresholded(model, trained.rule) if trained.rule else model

    def edm(x, sigma):
        sigma, data = sigma[:, None], like.config.sigma_data
        scale = (sigma**2 + data**2).sqrt()
        return data**2 / scale**2 * x + sigma * data / scale * net(x / scale, sigma.log() / 4)

    return sk.ScoreModel(edm, trained.process, "x0")


def run(scheduler, x, begin=0, network=net, **arguments):
    for t in scheduler.timesteps[begin:]:
        given = scheduler.scale_model_input(x, t)
        x = scheduler.step(network(given, t.expand(len(x))), t, x, **arguments).prev_sample
    return x


def start(scheduler, n=3, seed=0):
    return normal(seed, 0, torch.arange(n), (12,), torch.float64) * scheduler.init_noise_sigma
