"""Folders that ``save_pretrained`` wrote: what is loaded, and what is refused."""

import json

import pytest
import torch
from diffusers_networks import SHAPE, autoencoder, diffusers, dit, generator, stable_diffusion, unet

import sdekit as sk
from sdekit.identity import identify
from sdekit.interop.diffusers import load, load_pipeline, wrap

X = torch.randn(SHAPE, generator=generator(1))


def test_a_folder_gives_the_network_that_was_saved(tmp_path):
    network, scheduler = unet(), diffusers.DDIMScheduler(beta_schedule="scaled_linear")
    network.save_pretrained(tmp_path / "a")
    scheduler.save_pretrained(tmp_path / "a")
    model, truth = load(tmp_path / "a"), wrap(network, scheduler)
    assert torch.equal(model.predict("eps", X, 0.3), truth.predict("eps", X, 0.3))
    assert model.process == truth.process
    network.save_pretrained(tmp_path / "b")
    for how in (scheduler, scheduler.config, tmp_path / "a", str(tmp_path / "a" / "scheduler_config.json")):
        assert identify(load(tmp_path / "b", how)) == identify(model)  # wherever the folder lies
    half = load(tmp_path / "a", dtype=torch.bfloat16, clip=False)
    assert isinstance(half, sk.ScoreModel)
    assert half.dtype == torch.bfloat16


def test_a_pipelines_folder(tmp_path):
    vae = autoencoder(scaling_factor=0.25, shift_factor=0.5)
    pipeline = diffusers.DiTPipeline(dit(), vae, diffusers.DDIMScheduler(clip_sample=False))
    pipeline.save_pretrained(tmp_path)
    found = load_pipeline(tmp_path)
    latents = sk.sample(found.model, (2, 4, 4, 4), nfe=4, seed=0, class_labels=[1, 2]).x
    with torch.no_grad():
        torch.testing.assert_close(found.decode(latents), vae.decode(latents / 0.25 + 0.5).sample)
        images = torch.rand(2, 3, 8, 8, generator=generator())
        encoded = (vae.encode(images).latent_dist.mean - 0.5) * 0.25
    torch.testing.assert_close(found.encode(images), encoded)
    with pytest.raises(ValueError, match="no single text encoder: give encoder_hidden_states="):
        found.text(["a"])
    assert identify(load(tmp_path)) == identify(found.model)


def test_stable_diffusions_text_conditions(tmp_path):
    (tmp_path / "words").mkdir()
    pipeline = stable_diffusion(tmp_path / "words")
    pipeline.save_pretrained(tmp_path / "pipeline")
    found = load_pipeline(tmp_path / "pipeline")
    theirs, empty = pipeline.encode_prompt(["a cat", "dog"], "cpu", 1, True)
    torch.testing.assert_close(found.text(["a cat", "dog"])["encoder_hidden_states"], theirs)
    torch.testing.assert_close(found.text(["", ""])["encoder_hidden_states"], empty)
    out = sk.sample(found.model, (2, 4, 8, 8), nfe=4, seed=0, **found.text(["a", "b"]))
    assert found.decode(out.x).shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="it must be a list of texts, one for each sample"):
        found.text("a cat")


def bad_folder(tmp_path, kind):
    network = unet()
    diffusers.DDPMScheduler().save_pretrained(tmp_path)
    if kind == "pickle":
        network.save_pretrained(tmp_path, safe_serialization=False)
    elif kind == "empty":
        network.save_config(tmp_path)
    elif kind == "foreign":
        network.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "_class_name": "Popen"}))
    elif kind == "other":
        network.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "block_out_channels": [8, 32]}))
    elif kind == "broken":
        network.save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text("{")
    elif kind == "no scheduler":
        network.save_pretrained(tmp_path)
        (tmp_path / "scheduler_config.json").unlink()
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pickle", r"diffusion_pytorch_model.bin is a pickle.*save_pretrained\(folder, safe_serialization=True\)"),
        ("empty", r"no weights: save_pretrained\(folder\) writes them"),
        ("foreign", r"unknown network of diffusers 'Popen'"),
        ("other", r"the weights do not make a UNet2DModel"),
        ("broken", r"config.json is no JSON object"),
        ("no scheduler", r"holds no scheduler_config.json: scheduler.save_pretrained\(folder\) writes it"),
        ("nothing", r"no config.json"),
    ],
)
def test_bad_folders_are_refused(tmp_path, kind, message):
    with pytest.raises(ValueError, match=message):
        load(bad_folder(tmp_path, kind))
