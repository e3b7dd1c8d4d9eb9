"""Stable Diffusion from a folder on the disk: this package's sampler, and its solvers in diffusers' own pipeline.

    python benchmarks/stable_diffusion.py path/to/stable-diffusion "a photograph of a cat"
    python benchmarks/stable_diffusion.py path "a cat" --solver unipc-3 --grid karras --nfe 12 --guidance 7.5

The folder is one that ``StableDiffusionPipeline.save_pretrained`` wrote: model_index.json and safetensors. Writes
``sample.png``, by ``sk.sample`` on the bare conditional model, and ``pipeline.png``, with guidance. Needs diffusers and
transformers, and nothing from the network.
"""

from __future__ import annotations

import argparse

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

import sdekit as sk


def write(path: str, images: Tensor) -> None:
    from matplotlib import image

    row = torch.cat([*(images / 2 + 0.5).clamp(0, 1)], dim=-1)
    image.imsave(path, row.permute(1, 2, 0).float().cpu().numpy())
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("prompt")
    parser.add_argument("--solver", default="auto")
    parser.add_argument("--grid", default="auto")
    parser.add_argument("--nfe", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    found = sk.interop.diffusers.load_pipeline(options.folder, device=options.device)
    network = found.model.net.network
    side = network.config.sample_size
    shape = (options.count, network.config.in_channels, side, side)
    text = found.text([options.prompt] * options.count)
    out = sk.sample(found.model, shape, solver=options.solver, grid=options.grid, nfe=options.nfe, seed=0, **text)
    write("sample.png", found.decode(out.x))

    pipe = StableDiffusionPipeline.from_pretrained(
        options.folder, local_files_only=True, use_safetensors=True, safety_checker=None, requires_safety_checker=False
    ).to(options.device)
    pipe.scheduler = sk.interop.diffusers.Scheduler(options.solver, like=pipe.scheduler, grid=options.grid)
    generators = [torch.Generator(options.device).manual_seed(i) for i in range(options.count)]
    latents = pipe(
        [options.prompt] * options.count, num_inference_steps=options.nfe, guidance_scale=options.guidance,
        generator=generators, output_type="latent",
    ).images  # fmt: skip
    write("pipeline.png", found.decode(latents))


if __name__ == "__main__":
    main()
