"""Solvers in diffusers' own pipelines and on its own timesteps, and what others are reported to get wrong."""

import math

import numpy as np
import pytest
import torch
from diffusers_networks import (
    LIKE,
    SHAPE,
    autoencoder,
    conditional_unet,
    denoiser,
    diffusers,
    dit,
    generator,
    net,
    quiet,
    run,
    stable_diffusion,
    start,
    unet,
)

import sdekit as sk
from sdekit.grid import table_times
from sdekit.interop.diffusers import Scheduler, read, wrap


def test_one_image_alone_and_in_a_batch_of_eight():
    network = unet().double()
    for solver in ("unipc-3", "ddpm", "er-sde-3", "edm"):
        pipeline = quiet(
            diffusers.DDPMPipeline(network, Scheduler(solver, like=diffusers.DDPMScheduler(thresholding=True)))
        )
        options = {"num_inference_steps": 5, "output_type": "np"}
        eight = pipeline(8, [generator(i) for i in range(8)], **options).images
        for i in (0, 5):
            one = pipeline(1, [generator(i)], **options).images
            np.testing.assert_allclose(one[0], eight[i], atol=1e-6)


def test_ddpm_and_ddim_pipelines():
    network, like = unet(), diffusers.DDPMScheduler(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2")
    for kind in (diffusers.DDPMPipeline, diffusers.DDIMPipeline):
        pipeline = quiet(kind(network, like))
        pipeline.scheduler = Scheduler("dpmpp-3m-corrected", like=like, grid="logsnr")
        run = [pipeline(2, generator(), num_inference_steps=7, output_type="np").images for _ in range(2)]
        truth = sk.sample(
            wrap(network, like), SHAPE, solver="dpmpp-3m-corrected", nfe=7, grid="logsnr",
            start=torch.randn(SHAPE, generator=generator()),
        ).x  # fmt: skip
        np.testing.assert_allclose(run[0], (truth / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1), atol=1e-5)
        assert np.array_equal(*run)


def test_a_scheduler_without_a_configuration_is_ddpms_own(tmp_path):
    network, options = unet(), {"num_inference_steps": 7, "output_type": "np"}
    pipeline = quiet(
        diffusers.DDPMPipeline(network, sk.interop.diffusers.Scheduler("dpmpp-3m-corrected", grid="logsnr"))
    )
    found = pipeline(2, generator(), **options).images
    arguments = {"solver": "dpmpp-3m-corrected", "grid": "logsnr", "nfe": 7}
    noise = torch.randn(SHAPE, generator=generator())
    truth = sk.sample(wrap(network, diffusers.DDPMScheduler()), SHAPE, start=noise, **arguments).x
    np.testing.assert_allclose(found, (truth / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1), atol=1e-5)
    back, own = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config), diffusers.DDPMScheduler()
    assert all(back.config[name] == value for name, value in own.config.items() if not name.startswith("_"))
    pipeline.save_pretrained(tmp_path)
    again = sk.interop.diffusers.Scheduler.from_pretrained(tmp_path / "scheduler")
    assert np.array_equal(diffusers.DDPMPipeline(network, again)(2, generator(), **options).images, found)


def test_diffusers_own_idiom_takes_over_what_the_network_was_trained_with():
    network, own = unet(), diffusers.DDPMScheduler(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2")
    pipeline, options = quiet(diffusers.DDPMPipeline(network, own)), {"num_inference_steps": 7, "output_type": "np"}
    arguments = {"solver": "dpmpp-3m-corrected", "grid": "logsnr"}
    pipeline.scheduler = sk.interop.diffusers.Scheduler.from_config(pipeline.scheduler.config, **arguments)
    found = pipeline(2, generator(), **options).images
    noise = torch.randn(SHAPE, generator=generator())
    truth = sk.sample(wrap(network, own), SHAPE, start=noise, nfe=7, **arguments).x
    np.testing.assert_allclose(found, (truth / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1), atol=1e-5)
    pipeline.scheduler = sk.interop.diffusers.Scheduler(**arguments)
    assert np.abs(pipeline(2, generator(), **options).images - found).max() > 1e-2  # without it, another network's


def test_latent_pipelines():
    vae, network = autoencoder(scaling_factor=0.5), dit()
    pipeline = quiet(diffusers.DiTPipeline(network, vae, diffusers.DDIMScheduler(clip_sample=False)))
    pipeline.scheduler = Scheduler("unipc-3", like=pipeline.scheduler)
    arguments = {"num_inference_steps": 6, "generator": generator(), "output_type": "np"}
    ours = pipeline([3, 8], guidance_scale=1.0, **arguments).images
    x = sk.sample(
        wrap(network, pipeline.scheduler), (2, 4, 4, 4), solver="unipc-3", nfe=6, class_labels=[3, 8],
        start=torch.randn(2, 4, 4, 4, generator=generator()),
    ).x  # fmt: skip
    with torch.no_grad():
        truth = (vae.decode(x / 0.5).sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    np.testing.assert_allclose(ours, truth, atol=1e-4)
    assert pipeline([3, 8], guidance_scale=4.0, **arguments).images.shape == (2, 4, 4, 3)

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    vqvae = diffusers.VQModel(**blocks, block_out_channels=(8,), num_vq_embeddings=8, norm_num_groups=4)
    latent = quiet(diffusers.LDMPipeline(vqvae.eval(), unet(), Scheduler("heun", like=LIKE["table"])))
    first, second = (latent(1, generator(), num_inference_steps=5, output_type="np").images for _ in range(2))
    assert np.array_equal(first, second)


def test_stable_diffusion_and_img2img(tmp_path):
    pipeline = stable_diffusion(tmp_path)
    like = pipeline.scheduler
    pipeline.scheduler = Scheduler("dpmpp-2m", like=like, grid="karras")
    latents = torch.randn(1, 4, 8, 8, generator=generator())
    sizes = {"height": 16, "width": 16, "output_type": "latent"}
    ours = pipeline(["a cat"], latents=latents, num_inference_steps=6, guidance_scale=1.0, **sizes).images
    text, _ = pipeline.encode_prompt(["a cat"], "cpu", 1, False)
    model = wrap(pipeline.unet, like)
    sigma = model.process.prior_std
    arguments = {"solver": "dpmpp-2m", "grid": "karras", "nfe": 6, "encoder_hidden_states": text}
    truth = sk.sample(model, latents.shape, start=latents * sigma, **arguments).x
    torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-4)
    assert pipeline(["a cat"], num_inference_steps=4, guidance_scale=5.0, **sizes).images.isfinite().all()

    other = quiet(diffusers.StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False))
    image = torch.rand(1, 3, 16, 16, generator=generator(2))
    other.scheduler = Scheduler("dpmpp-2m", like=like, grid="karras", final="denoise")
    arguments = {"image": image, "num_inference_steps": 10, "guidance_scale": 1.0, "output_type": "latent"}
    ours = other("a cat", strength=0.6, generator=generator(4), **arguments).images
    told = other.scheduler.timesteps[4:]  # 0.6 of the steps
    times = [(n + 1) / 1000 for n in told.double().tolist()]
    drawn = generator(4)
    with torch.no_grad():
        x0 = pipeline.vae.encode(2 * image - 1).latent_dist.sample(drawn) * pipeline.vae.config.scaling_factor
    noise = torch.randn(x0.shape, generator=drawn)
    x = model.process.perturb(x0, times[0], noise)
    truth = sk.sample(
        model, x.shape, solver="dpmpp-2m", grid=times, start=x, final="denoise", encoder_hidden_states=text
    ).x
    torch.testing.assert_close(ours, truth, rtol=1e-3, atol=1e-3)


def test_explicit_timesteps_are_used():
    scheduler = Scheduler("ddim", like=LIKE["table"])
    told = [900, 700, 650, 20]
    scheduler.set_timesteps(timesteps=told)
    assert scheduler.timesteps.tolist() == told
    seen = []
    ours = run(scheduler, start(scheduler), network=lambda x, t: seen.append(t[0].item()) or net(x, t))
    assert seen == told
    times = [(n + 1) / 1000 for n in told]
    truth = sk.sample(
        denoiser(LIKE["table"]), (3, 12), solver="ddim", grid=times, start=start(scheduler), final="denoise"
    ).x
    torch.testing.assert_close(ours, truth, rtol=1e-6, atol=1e-6)
    assert scheduler.init_noise_sigma == pytest.approx(sk.DiscreteVP().sigma(0.901))
    scheduler.set_timesteps(timesteps=torch.tensor([999]))  # one evaluation: x_0 as predicted
    x = start(scheduler)
    torch.testing.assert_close(run(scheduler, x), denoiser(LIKE["table"]).x0(x, 1.0))


def test_they_are_diffusers_own_ddim():
    theirs = diffusers.DDIMScheduler(clip_sample=False)
    theirs.set_timesteps(20)
    scheduler = Scheduler("ddim", like=theirs)
    scheduler.set_timesteps(timesteps=theirs.timesteps)
    x = torch.randn(3, 12, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(run(scheduler, x), run(theirs, x), rtol=1e-3, atol=1e-3)  # its 1 − ᾱ is float32's


def test_a_shift_is_applied_once():
    shift, sigmas = 3.0, [0.99, 0.7, 0.4, 0.1]
    scheduler = Scheduler("euler", like=LIKE["flow"])
    scheduler.set_timesteps(sigmas=sigmas)
    torch.testing.assert_close(scheduler.sigmas, torch.tensor([*sigmas, 0.0]))
    torch.testing.assert_close(scheduler.timesteps, 1000 * torch.tensor(sigmas))
    for _ in range(2):
        scheduler.set_timesteps(sigmas=sigmas, mu=math.log(shift))
        truth = torch.tensor([shift * s / (1 + (shift - 1) * s) for s in sigmas])
        torch.testing.assert_close(scheduler.sigmas[:-1], truth)
    scheduler.set_timesteps(4, mu=math.log(shift))
    named = Scheduler("euler", like=LIKE["flow"], grid=f"shift(shift={shift})")
    named.set_timesteps(4)
    torch.testing.assert_close(scheduler.timesteps, named.timesteps, rtol=1e-6, atol=1e-6)
    back = type(LIKE["flow"]).from_config(named.config)
    assert back.config.shift == shift
    assert not hasattr(back.config, "use_flow_sigmas")
    linear = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear")
    linear.set_timesteps(sigmas=sigmas, mu=2.0)
    scheduler = Scheduler("euler", like=linear)
    scheduler.set_timesteps(sigmas=np.array(sigmas), mu=2.0)
    torch.testing.assert_close(scheduler.sigmas, linear.sigmas)
    scheduler = Scheduler("euler", like=LIKE["flow"])
    scheduler.set_timesteps(sigmas=[1.0, 0.5])  # where λ is −∞ the process stops just inside
    torch.testing.assert_close(scheduler.sigmas, torch.tensor([0.999, 0.5, 0.0]))


TOKENS = {"num_layers": 1, "num_attention_heads": 2, "joint_attention_dim": 16, "pooled_projection_dim": 12}


PROMPT = {"prompt_embeds": torch.randn(1, 5, 16, generator=generator()), "pooled_prompt_embeds": torch.ones(1, 12)}


def test_stable_diffusion_3_gives_the_samples_of_sample():
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    network = diffusers.SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, attention_head_dim=8, caption_projection_dim=16,
        pos_embed_max_size=16, **TOKENS,
    ).eval()  # fmt: skip
    absent = {f"{part}{n}": None for part in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")}
    pipeline = quiet(
        diffusers.StableDiffusion3Pipeline(network, LIKE["flow"], autoencoder(levels=2, shift_factor=0.1), **absent)
    )
    arguments = {"solver": "unipc-3", "grid": "shift(shift=3)"}
    pipeline.scheduler = Scheduler(**arguments, like=LIKE["flow"])
    latents = torch.randn(1, 4, 8, 8, generator=generator())
    sizes = {"height": 16, "width": 16, "output_type": "latent", "latents": latents}
    ours = pipeline(**PROMPT, num_inference_steps=6, guidance_scale=1.0, **sizes).images
    conditions = {
        "encoder_hidden_states": PROMPT["prompt_embeds"],
        "pooled_projections": PROMPT["pooled_prompt_embeds"],
    }
    truth = sk.sample(wrap(network, LIKE["flow"]), latents.shape, nfe=6, start=latents, **arguments, **conditions).x
    torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-5)


def test_flux_has_its_own_shift_once_and_takes_a_grid_instead():
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    network = diffusers.FluxTransformer2DModel(
        in_channels=16, num_single_layers=1, attention_head_dim=16, axes_dims_rope=(4, 4, 8), **TOKENS
    ).eval()
    like = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    absent = {f"{part}{n}": None for part in ("text_encoder", "tokenizer") for n in ("", "_2")}
    pipeline = quiet(
        diffusers.FluxPipeline(like, transformer=network, vae=autoencoder(levels=2, shift_factor=0.1), **absent)
    )

    def latents(scheduler):
        pipeline.scheduler = scheduler
        sizes = {"height": 16, "width": 16, "output_type": "latent", "generator": generator()}
        return pipeline(**PROMPT, num_inference_steps=4, **sizes).images

    theirs = latents(like)
    ours = latents(Scheduler("euler", like=like))
    torch.testing.assert_close(pipeline.scheduler.timesteps[1:], like.timesteps[1:], rtol=1e-5, atol=0)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02)  # they begin at σ = 1, here at 0.999
    grid = Scheduler("unipc-3", like=like, grid="logsnr")
    assert latents(grid).isfinite().all()
    named = Scheduler("unipc-3", like=like, grid="logsnr")
    named.set_timesteps(4)
    assert torch.equal(grid.timesteps, named.timesteps)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers itself
def test_sigmas_of_diffusers_own_schedulers_are_taken():
    theirs = diffusers.EulerDiscreteScheduler(use_karras_sigmas=True, beta_schedule="scaled_linear")
    theirs.set_timesteps(12)
    scheduler = Scheduler("ddim", like=theirs)
    scheduler.set_timesteps(sigmas=theirs.sigmas)
    torch.testing.assert_close(scheduler.sigmas, theirs.sigmas, rtol=1e-3, atol=0)
    torch.testing.assert_close(scheduler.timesteps, theirs.timesteps, rtol=0, atol=0.5)  # it interpolates log σ
    # Euler in σ/α is DDIM
    x = torch.randn(3, 12, generator=generator(), dtype=torch.float64)
    at = math.sqrt(theirs.sigmas[0].item() ** 2 + 1)  # its x is σ-scaled
    torch.testing.assert_close(run(scheduler, x), run(theirs, x * at), rtol=2e-3, atol=2e-3)


def test_karras_spacing_of_a_cosine_table_has_no_equal_times():
    like = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    for count in (10, 25, 50, 100):
        scheduler = Scheduler("dpmpp-2m", like=like, grid="karras")
        scheduler.set_timesteps(count)
        assert (scheduler.timesteps.diff() < 0).all()
        assert scheduler.timesteps[0] == 999


def test_whole_timesteps_are_integers_for_networks_that_take_no_others():
    scheduler = Scheduler("dpmpp-2m", like=LIKE["table"], grid="trailing", final="denoise")
    scheduler.set_timesteps(11)
    assert scheduler.timesteps.dtype == torch.int64
    truth = [round(1000 * t) - 1 for t in table_times(sk.DiscreteVP(), "trailing", 10)]
    assert scheduler.timesteps.tolist() == [*truth, 0]
    scheduler = Scheduler("dpmpp-2m", like=LIKE["table"], grid="logsnr")
    scheduler.set_timesteps(11)
    assert scheduler.timesteps.dtype == torch.float32


def test_a_pipeline_is_saved_and_loaded_with_its_scheduler(tmp_path):
    pipeline = diffusers.DDPMPipeline(unet(), Scheduler("dpmpp-2m", like=LIKE["table"], grid="logsnr"))
    pipeline.save_pretrained(tmp_path)
    found = quiet(diffusers.DDPMPipeline.from_pretrained(tmp_path))
    assert type(found.scheduler) is Scheduler
    assert found.scheduler.config.solver == "dpmpp-2m"
    images = [quiet(one)(1, generator(), 4, output_type="np").images for one in (pipeline, found)]
    assert np.array_equal(*images)
    model = sk.interop.diffusers.load(tmp_path)
    assert model.process == read(LIKE["table"]).process


def test_conditional_networks_are_told_a_learned_variance_is_split_off():
    network = conditional_unet(out_channels=8)
    scheduler = Scheduler("dpmpp-2m", like=LIKE["table"])
    scheduler.set_timesteps(3)
    x, text = torch.randn(2, 4, 8, 8, generator=generator()), torch.randn(2, 3, 8, generator=generator())
    y = x
    with torch.no_grad():
        for t in scheduler.timesteps:
            y = scheduler.step(network(y, t, text).sample, t, y).prev_sample
    truth = sk.sample(
        wrap(network, LIKE["table"]), x.shape, solver="dpmpp-2m", nfe=3, start=x, encoder_hidden_states=text
    ).x
    torch.testing.assert_close(y, truth, rtol=1e-4, atol=1e-4)
