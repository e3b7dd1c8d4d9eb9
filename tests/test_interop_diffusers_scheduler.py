"""Solvers in diffusers' own pipelines: the same run as ``sample``, and what others are reported to get wrong."""

import math

import numpy as np
import pytest
import torch
from diffusers_networks import (
    SHAPE,
    autoencoder,
    conditional_unet,
    diffusers,
    dit,
    generator,
    quiet,
    stable_diffusion,
    unet,
)

import sdekit as sk
from sdekit.grid import table_times
from sdekit.interop.diffusers import Scheduler, read, wrap
from sdekit.noise import normal
from sdekit.solvers import get, names
from sdekit.testing import simgpu

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


DETERMINISTIC = [name for name in names() if not get(name).stochastic]


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("kind", LIKE)
def test_every_deterministic_solver_runs_as_in_sample(name, kind):
    like, model = LIKE[kind], denoiser(LIKE[kind])
    budgets = ((1, "auto"), (4, "auto"), (11, "logsnr"), (21, "auto")) if kind == "table" else ((7, "auto"),)
    for nfe, grid in budgets:
        scheduler = Scheduler(name, like=like, grid=grid)
        scheduler.set_timesteps(nfe)
        assert len(scheduler.timesteps) == scheduler.num_inference_steps == nfe
        ours = run(scheduler, start(scheduler))
        truth = sk.sample(model, (3, 12), solver=name, nfe=nfe, grid=grid, seed=0, dtype=torch.float64).x
        torch.testing.assert_close(ours, truth, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in names() if get(name).stochastic])
def test_every_stochastic_solver_runs_as_in_march_on_the_generators_noise(name):
    scheduler, model = Scheduler(name, like=LIKE["table"]), denoiser(LIKE["table"])
    scheduler.set_timesteps(9)
    x = start(scheduler)
    ours = run(scheduler, x, generator=generator(5))
    theirs, noise = generator(5), {}

    def draw(begin, end):
        if (begin, end) not in noise:
            noise[begin, end] = torch.randn(x.shape, generator=theirs, dtype=x.dtype)
        return noise[begin, end]

    *_, (_, truth) = sk.march(get(name).plan(model.process, nfe=9), model, x, draw)
    torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-9)
    # a second run is the first, and noise is the generator's alone
    scheduler.set_timesteps(9)
    assert torch.equal(run(scheduler, x, generator=generator(5)), ours)
    scheduler.set_timesteps(9)
    assert not torch.equal(run(scheduler, x, generator=generator(6)), ours)


def test_a_solver_that_was_fitted_to_the_model():
    model = denoiser(LIKE["table"])
    data = torch.randn(32, 12, generator=generator())
    fitted = sk.solvers.fit_dpm_v3(model, data, knots=10)
    scheduler = Scheduler(fitted, like=LIKE["table"])
    scheduler.set_timesteps(6)
    ours = run(scheduler, start(scheduler))
    truth = sk.sample(model, (3, 12), solver=fitted, nfe=6, seed=0, dtype=torch.float64).x
    torch.testing.assert_close(ours, truth, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="is a value of its own and cannot be kept as JSON"):
        scheduler.save_config("anywhere")


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_run_that_begins_in_the_middle_is_a_run_on_the_knots_left(name):
    like, model = LIKE["table"], denoiser(LIKE["table"])
    scheduler = Scheduler(name, like=like, grid="logsnr", final="denoise")
    scheduler.set_timesteps(13)
    every = scheduler.timesteps
    for begin in (4, 5, 12):
        scheduler.set_timesteps(13)
        scheduler.set_begin_index(begin)
        x = torch.randn(3, 12, generator=generator(), dtype=torch.float64)
        try:
            ours = run(scheduler, x, begin)
        except ValueError as error:
            assert "cannot begin at step" in str(error), error  # noqa: PT017
            assert name in ("pndm", "adams-eps", "adams-x0")  # their first steps take more evaluations
            continue
        assert torch.isfinite(ours).all()
        if get(name).split(12) == [1] * 12:  # timesteps are knots
            times = [(t + 1) / 1000 for t in every[begin:].tolist()]
            if len(times) == 1:
                truth = model.x0(x, times[0])
            else:
                truth = sk.sample(model, x.shape, solver=name, grid=times, start=x, final="denoise").x
            torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)  # the times went through float32


def test_a_heun_step_that_is_begun_at_its_second_evaluation_goes_on_as_ddim():
    like, model = LIKE["table"], denoiser(LIKE["table"])
    scheduler = Scheduler("dpm-solver-2", like=like, grid="logsnr", final="denoise")
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(1)  # inside the first of two steps
    x = torch.randn(3, 12, generator=generator(), dtype=torch.float64)
    t = [(n + 1) / 1000 for n in scheduler.timesteps.tolist()]
    middle = sk.sample(model, x.shape, solver="ddim", grid=[t[1], t[2]], start=x, final="none").x
    truth = sk.sample(model, x.shape, solver="dpm-solver-2", grid=[t[2], t[4]], start=middle, final="denoise").x
    torch.testing.assert_close(run(scheduler, x, 1), truth, rtol=1e-5, atol=1e-5)


def test_the_first_timestep_says_where_a_run_begins():
    scheduler = Scheduler("dpmpp-2m", like=LIKE["table"])
    x = torch.randn(3, 12, generator=generator(), dtype=torch.float64)
    scheduler.set_timesteps(8)
    scheduler.set_begin_index(3)
    truth = run(scheduler, x, 3)
    scheduler.set_timesteps(8)
    assert torch.equal(run(scheduler, x, 3), truth)


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("solver", ["unipc-3", "dpmpp-3m-corrected", "heun"])
def test_networks_of_other_precision(solver, dtype):
    images = []
    for one in (torch.float32, dtype):
        pipeline = quiet(diffusers.DDPMPipeline(unet().to(one), Scheduler(solver, like=diffusers.DDPMScheduler())))
        scheduler, x = pipeline.scheduler, torch.randn(SHAPE, generator=generator()).to(one)
        scheduler.set_timesteps(8)
        with torch.no_grad():
            for t in scheduler.timesteps:
                x = scheduler.step(pipeline.unet(x, t).sample, t, x, return_dict=False)[0]
        assert x.dtype == one
        images.append(x.float())
    error = (images[0] - images[1]).square().mean().sqrt().item()
    assert error < 8 * max(torch.finfo(dtype).eps, 1e-6)  # a rounding of the state, which lies in [−1, 1], each step


# what is reported about other schedulers


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


def test_set_timesteps_forgets_the_run_before():
    scheduler = Scheduler("unipc-3", like=LIKE["table"])
    scheduler.set_timesteps(8)
    truth = run(scheduler, start(scheduler))
    scheduler.set_timesteps(5)
    for t in scheduler.timesteps[:3]:  # a run that is left in the middle
        scheduler.step(torch.ones(3, 12), t, torch.ones(3, 12))
    scheduler.set_timesteps(8)
    assert scheduler.step_index is None
    assert torch.equal(run(scheduler, start(scheduler)), truth)
    assert scheduler.step_index == 8


@pytest.mark.parametrize("kind", ["table", "flow", "edm"])
def test_add_noise_is_the_processs(kind):
    like = LIKE[kind]
    process, clock = read(like).process, read(like).clock
    scheduler = Scheduler("ddim", like=like)
    scheduler.set_timesteps(6)
    told = scheduler.timesteps[1:3]
    x0, eps = torch.randn(2, 3, 4, 4, generator=generator()), torch.randn(2, 3, 4, 4, generator=generator(1))
    noisy = scheduler.add_noise(x0, eps, told)
    for i in range(2):
        t = clock.time(process, told[i].double().item())
        torch.testing.assert_close(noisy[i], process.alpha(t) * x0[i] + process.sigma(t) * eps[i])
    torch.testing.assert_close(scheduler.scale_noise(x0, told, eps), noisy)
    half = scheduler.add_noise(x0.bfloat16(), eps.bfloat16(), told)
    assert half.dtype == torch.bfloat16
    if kind == "table":
        n = torch.tensor([700, 20])
        torch.testing.assert_close(scheduler.add_noise(x0, eps, n), like.add_noise(x0, eps, n), rtol=1e-3, atol=1e-3)


def test_configurations_go_there_and_back(tmp_path):
    like = diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False)
    scheduler = Scheduler("ddim(eta=0.5)", like=like, grid="karras(rho=5)", final="none")
    scheduler.save_config(tmp_path)
    alike = [
        Scheduler.from_pretrained(tmp_path), Scheduler.from_config(scheduler.config),
        Scheduler.from_config(like.config, solver="ddim(eta=0.5)", grid="karras(rho=5)", final="none"),
    ]  # fmt: skip
    for one in alike:
        for name in ("solver", "grid", "final", "clip", "beta_schedule"):
            assert one.config[name] == scheduler.config[name]
        one.set_timesteps(5)
        scheduler.set_timesteps(5)
        x = start(one)
        assert torch.equal(run(one, x, generator=generator()), run(scheduler, x, generator=generator()))
    assert Scheduler.from_config(scheduler.config, solver="heun").config.grid == "karras(rho=5)"
    back = diffusers.DDIMScheduler.from_config(scheduler.config)
    assert back.config.beta_schedule == "scaled_linear"
    assert read(tmp_path).process == read(like).process == read(scheduler).process
    assert len(scheduler) == 1000
    assert Scheduler.from_config(LIKE["clipped"].config, solver="ddim", clip=False).config.clip is False


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


def test_on_the_device_without_a_read():
    scheduler = Scheduler("er-sde-2", like=LIKE["clipped"])

    def stepped(device):
        scheduler.set_timesteps(5, device=device)
        scheduler.set_begin_index(0)
        x = start(scheduler).to(device)
        outputs = [torch.full((3, 12), 0.1 * i, dtype=x.dtype).to(device) for i in range(5)]
        noise = [torch.randn(3, 12, generator=generator(i), dtype=x.dtype).to(device) for i in range(9)]
        return x, outputs, noise

    def went(device, monkeypatch):
        x, outputs, noise = stepped(device)
        monkeypatch.setattr("sdekit.interop.diffusers.run.randn_tensor", lambda *_, **__: noise.pop())
        for t, output in zip(scheduler.timesteps, outputs):
            x = scheduler.step(output, t, x).prev_sample
        return x

    with pytest.MonkeyPatch.context() as patch:
        here = went("cpu", patch)
        with simgpu.device() as gpu:
            x, outputs, noise = stepped(gpu.device)
            patch.setattr("sdekit.interop.diffusers.run.randn_tensor", lambda *_, **__: noise.pop())
            told = scheduler.timesteps.unbind()
            with gpu.forbid_host_reads():
                for t, output in zip(told, outputs):
                    x = scheduler.step(output, t, x).prev_sample
            torch.testing.assert_close(here, x.cpu())


def test_an_unscaled_input_of_an_edm_network_is_refused():
    scheduler = Scheduler("heun", like=LIKE["edm"])
    scheduler.set_timesteps(4)
    x = start(scheduler)
    with pytest.raises(ValueError, match=r"an EDM network takes c_in·x: call scale_model_input"):
        scheduler.step(x, scheduler.timesteps[0], x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps=0: it must be a whole number of at least 1"),
        ({}, "num_inference_steps=None: it must be a whole number"),
        ({"timesteps": [10, 20]}, "timesteps: they must lead from noise to data, but 10 is followed by 20"),
        ({"timesteps": [20, 20]}, "timesteps: they must lead from noise to data, but 20 is followed by 20"),
        ({"timesteps": [1200, 20]}, "timesteps: 1200 lies outside what the network was trained on, 0 to 999"),
        ({"timesteps": []}, "timesteps: it is empty"),
        ({"sigmas": [1.0, 2.0]}, "sigmas: they must lead from noise to data, but 1 is followed by 2"),
        ({"sigmas": [500.0, 2.0]}, r"sigmas: 500 lies outside what the network was trained on, 0.0100005 to 157"),
        ({"sigmas": [1.0, 0.0, 0.0]}, "sigmas=.*: they must be above 0, but for a last 0"),
        ({"sigmas": [1.0, 0.5], "timesteps": [20, 10]}, "timesteps and sigmas: give one of them"),
        ({"timesteps": [20, 10], "num_inference_steps": 3}, "num_inference_steps=3, but timesteps holds 2"),
    ],
)
def test_places_that_make_no_run_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Scheduler("ddim", like=LIKE["table"]).set_timesteps(**arguments)


def test_calls_that_make_no_run_are_refused():
    like = LIKE["table"]
    with pytest.raises(
        ValueError, match=r"like: it must say what the network was trained with: a scheduler \(like=pipe"
    ):
        Scheduler("dpmpp-3m-corrected", grid="logsnr")
    with pytest.raises(ValueError, match="unknown solver 'dpmp-2m': did you mean 'dpmpp-2m'"):
        Scheduler("dpmp-2m", like=like)
    with pytest.raises(ValueError, match="unknown final 'denoised': did you mean 'denoise'"):
        Scheduler("ddim", like=like, final="denoised")
    with pytest.raises(ValueError, match=r"mu=1\.0: it shifts sigmas of flow matching; timesteps here are used"):
        Scheduler("ddim", like=like).set_timesteps(timesteps=[20, 10], mu=1.0)
    with pytest.raises(ValueError, match="timesteps= and grid='karras' both say where to evaluate"):
        Scheduler("ddim", like=like, grid="karras").set_timesteps(timesteps=[20, 10])
    scheduler, x = Scheduler("ddim", like=like), torch.ones(2, 12)
    with pytest.raises(ValueError, match="set_timesteps must be called before a run"):
        scheduler.step(x, 10, x)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="timestep=3 is none of the scheduler's timesteps"):
        scheduler.step(x, 3, x)
    first, second, third, _ = scheduler.timesteps
    with pytest.raises(ValueError, match=r"eta=0.5: it is an option of the solver here: Scheduler\('ddim\(eta=0.5\)'"):
        scheduler.step(x, first, x, eta=0.5)
    with pytest.raises(ValueError, match=r"model_output has shape \[2, 7\], sample \[2, 12\]"):
        scheduler.step(torch.ones(2, 7), first, x)
    scheduler.step(x, first, x)
    with pytest.raises(ValueError, match="but the run's next is"):
        scheduler.step(x, third, x)
    scheduler.step(x, second, x)
    scheduler.step(x, third, x)
    scheduler.step(x, scheduler.timesteps[3], x)
    with pytest.raises(ValueError, match="the run has ended"):
        scheduler.step(x, scheduler.timesteps[3], x)
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(4)
    with pytest.raises(ValueError, match="begin_index=4: it must lie in 0 … 3"):
        scheduler.step(x, first, x)
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(1)
    with pytest.raises(ValueError, match="timestep=999, but the run's next is"):
        scheduler.step(x, first, x)
    clipped = Scheduler("ddim", like=LIKE["clipped"])
    clipped.set_timesteps(4)
    with pytest.raises(ValueError, match="use_clipped_model_output=False: every prediction follows from the clipped"):
        clipped.step(x, clipped.timesteps[0], x, use_clipped_model_output=False)


def test_a_stochastic_solver_has_the_right_variance_through_the_door():
    # data N(0, 0.25): ε and the final variance are known
    process = sk.DiscreteVP()
    scheduler = Scheduler("dpmpp-2m-sde", like=LIKE["table"], grid="logsnr")
    scheduler.set_timesteps(60)

    def gaussian(x, t):
        alpha, sigma = (f((t[0].item() + 1) / 1000) for f in (process.alpha, process.sigma))
        return sigma * x / (0.25 * alpha**2 + sigma**2)

    x = run(scheduler, torch.randn(20000, 1, generator=generator()), network=gaussian, generator=generator(1))
    assert x.std().item() == pytest.approx(0.5, rel=0.03)


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
