"""A scheduler's runs are those of ``sample``, whatever the solver, the precision, and where they begin."""

import pytest
import torch
from diffusers_networks import (
    LIKE,
    SHAPE,
    denoiser,
    diffusers,
    generator,
    quiet,
    run,
    start,
    unet,
)

import sdekit as sk
from sdekit.interop.diffusers import Scheduler, read
from sdekit.solvers import get, names
from sdekit.testing import simgpu

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
    with pytest.raises(ValueError, match=r"config: none was given: from_config\(pipe\.scheduler\.config\)"):
        Scheduler.from_config(None, solver="ddim")
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
