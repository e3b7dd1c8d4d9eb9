"""Networks of diffusers as models: each setting against what diffusers' own schedulers compute with it."""

import math
import subprocess
import sys

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
    unet,
)

import sdekit as sk
from sdekit.grid import table_times
from sdekit.identity import behaviour, identify
from sdekit.interop.diffusers import read, wrap
from sdekit.thresholding import Dynamic, Static, Thresholded

TABLES = {
    "linear": {},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
    "sigmoid": {"beta_schedule": "sigmoid"},
    "short": {"num_train_timesteps": 50, "beta_end": 0.2},
    "trained": {"trained_betas": [0.01, 0.02, 0.3, 0.2]},
    "zero snr": {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
    "zero snr, cosine": {"beta_schedule": "squaredcos_cap_v2", "rescale_betas_zero_snr": True},
}
X = torch.randn(SHAPE, generator=generator(1))
OLD_NUMPY = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers itself


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_diffusers_own(name):
    scheduler = diffusers.DDPMScheduler(**TABLES[name])
    process = read(scheduler).process
    kept = scheduler.alphas_cumprod.double()
    assert process.steps == len(kept)
    n = len(kept) - name.startswith("zero")  # where ᾱ = 0 there, it is 2^−24 here
    ours = torch.tensor([process.alpha((i + 1) / len(kept)) ** 2 for i in range(n)], dtype=torch.float64)
    torch.testing.assert_close(ours, kept[:n], rtol=2e-3 if name.startswith("zero") else 1e-4, atol=1e-6)
    if name.startswith("zero"):
        assert process.alpha(1.0) ** 2 == pytest.approx(2**-24)
        assert diffusers.EulerDiscreteScheduler(**TABLES[name]).alphas_cumprod[-1].item() == 2**-24


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "zero snr"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("clip", [{"clip_sample": False}, {"clip_sample_range": 0.7}, {"thresholding": True}], ids=str)
def test_x0_is_what_diffusers_ddim_makes_of_the_network(name, prediction, clip):
    scheduler = diffusers.DDIMScheduler(**TABLES[name], prediction_type=prediction, **clip, sample_max_value=1.5)
    network = unet()
    model = wrap(network, scheduler)
    scheduler.set_timesteps(10)
    for n in (900, 500, 0):
        with torch.no_grad():
            output = network(X, torch.tensor(n)).sample
            ours = model.predict("x0", X, (n + 1) / 1000)
        theirs = scheduler.step(output, n, X).pred_original_sample
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)  # its 1 − ᾱ is float32's
    rule = None if clip == {"clip_sample": False} else Dynamic(0.995, 1.5) if "thresholding" in clip else Static(0.7)
    assert getattr(model, "rule", None) == rule
    assert isinstance(wrap(network, scheduler, clip=False), sk.ScoreModel)


def test_the_default_of_diffusers_clips_and_the_model_says_so():
    model = wrap(unet(), diffusers.DDPMScheduler())
    assert repr(model).endswith("Static(limit=1.0))")
    # DPM-Solver does not clip, whatever its configuration keeps for others
    other = diffusers.DPMSolverMultistepScheduler.from_config(diffusers.DDPMScheduler().config)
    assert read(other).rule is None
    assert read(other.config).rule is None


@pytest.mark.parametrize("clip", [False, True])
def test_ddim_gives_the_images_of_diffusers_own_pipeline(clip):
    network = unet()
    scheduler = diffusers.DDIMScheduler(clip_sample=clip)
    pipeline = quiet(diffusers.DDIMPipeline(network, scheduler))
    # x_0 clipped and ε as it was belong to no one prediction: diffusers' other setting derives ε from it
    options = {"use_clipped_model_output": True} if clip else {}
    theirs = pipeline(2, generator(), num_inference_steps=10, output_type="np", **options).images
    start = torch.randn(SHAPE, generator=generator())
    model = wrap(network, scheduler)
    times = table_times(model.process, "leading", 10)
    ours = sk.sample(model, SHAPE, solver="ddim", grid=times, start=start, final="denoise").x
    np.testing.assert_allclose((ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy(), theirs, atol=2e-4)


def run(scheduler, network, x):
    """diffusers' own loop on its own scheduler."""
    with torch.no_grad():
        for t in scheduler.timesteps:
            given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            x = scheduler.step(network(given, t).sample, t, x).prev_sample
    return x


@OLD_NUMPY
def test_flow_matching_is_diffusers_own_and_its_shift_one_of_grids():
    network = unet()
    for options, sign in (({"shift": 3.0}, 1), ({"shift": 1.0, "invert_sigmas": True}, -1)):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**options)
        model = wrap(network, scheduler)
        assert model.process == sk.Flow()
        scheduler.set_timesteps(sigmas=[0.9, 0.5, 0.2])
        theirs = run(scheduler, network, X)
        sigmas = scheduler.sigmas.tolist()[:-1]
        times = [s if sign > 0 else 1 - s for s in sigmas]
        ours = sk.sample(model, SHAPE, solver="euler", grid=times, start=X, final="denoise").x
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    dpm = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=3.0,
        solver_order=1,
        final_sigmas_type="zero",
    )
    dpm.set_timesteps(5)
    model = wrap(network, dpm)
    theirs = run(dpm, network, X)
    times = [min(s, model.process.t_max) for s in dpm.sigmas.tolist()[:-1]]
    ours = sk.sample(model, SHAPE, solver="ddim", grid=times, start=X, final="denoise").x
    # it rounds its timesteps to whole numbers
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_networks_are_preconditioned_as_diffusers_does(prediction):
    network = unet()
    scheduler = diffusers.EDMEulerScheduler(sigma_max=10.0, prediction_type=prediction)
    model = wrap(network, scheduler)
    assert model.process == sk.EDM(0.002, 10.0)
    scheduler.set_timesteps(8)
    times = scheduler.sigmas.double()[:-1].tolist()
    theirs = run(scheduler, network, 10 * X)
    ours = sk.sample(model, SHAPE, solver="euler", grid=times, start=10 * X, final="denoise").x
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@OLD_NUMPY
def test_a_continuous_v_network_of_eulers_is_an_edm_network():
    options = {"sigma_min": 0.002, "sigma_max": 20.0, "use_karras_sigmas": True}
    scheduler = diffusers.EulerDiscreteScheduler(prediction_type="v_prediction", timestep_type="continuous", **options)
    network = unet()
    model = wrap(network, scheduler)
    scheduler.set_timesteps(6)
    times = scheduler.sigmas.double()[:-1].tolist()
    theirs = run(scheduler, network, 20 * X)
    ours = sk.sample(model, SHAPE, solver="euler", grid=times, start=20 * X, final="denoise").x
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_a_ve_network_is_told_sigma_and_predicts_the_score():
    network = unet(time_embedding_type="fourier")
    scheduler = diffusers.ScoreSdeVeScheduler(sigma_min=0.01, sigma_max=20.0)
    model = wrap(network, scheduler)
    scheduler.set_sigmas(11)
    for n, sigma in enumerate(reversed(scheduler.discrete_sigmas.tolist())):
        assert model.process.sigma(1 - n / 10) == pytest.approx(sigma, rel=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(
            model.score(X, model.process.t_of_half_log_snr(-math.log(2.0))), network(X, torch.tensor([2.0, 2.0])).sample
        )


def test_a_network_with_an_embedding_of_times_gets_whole_numbers():
    class Learned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = {"in_channels": 3, "out_channels": 3, "time_embedding_type": "learned"}

        def forward(self, x, timestep, return_dict=True):
            assert timestep.dtype == torch.int64
            return (x * timestep.reshape(-1, 1, 1, 1),)

    model = wrap(Learned(), diffusers.DDPMScheduler(clip_sample=False))
    torch.testing.assert_close(model.eps(X, 0.3), 299 * X)
    torch.testing.assert_close(model.eps(X, 0.30049), 299 * X)


def test_labels_text_and_a_learned_variance():
    network = dit()
    model = wrap(network, diffusers.DDIMScheduler(clip_sample=False))
    x, labels = torch.randn(3, 4, 4, 4, generator=generator()), torch.tensor([5, 1, 7])
    with torch.no_grad():
        theirs = network(x, timestep=torch.full((3,), 499), class_labels=labels).sample[:, :4]
        torch.testing.assert_close(model.eps(x, 0.5, class_labels=labels), theirs)
    exact = wrap(dit().double(), diffusers.DDIMScheduler(clip_sample=False))
    options = {"nfe": 4, "seed": 0, "dtype": torch.float64}
    whole = sk.sample(exact, x.shape, class_labels=[5, 1, 7], **options).x
    parts = sk.sample(exact, x.shape, class_labels=labels, batch_size=1, **options).x
    torch.testing.assert_close(whole, parts)

    network = conditional_unet()
    model = wrap(network, diffusers.DDIMScheduler(clip_sample=False))
    text = torch.randn(3, 5, 8, generator=generator(), dtype=torch.float64)  # cast to the network's
    x = torch.randn(3, 4, 8, 8, generator=generator())
    with torch.no_grad():
        theirs = network(x, 499, text.float()).sample
        torch.testing.assert_close(model.eps(x, 0.5, encoder_hidden_states=text), theirs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_networks_of_other_precision(dtype):
    for scheduler in (diffusers.DDPMScheduler(clip_sample=False), diffusers.EDMEulerScheduler(sigma_max=10.0)):
        truth = sk.sample(wrap(unet(), scheduler), SHAPE, nfe=6, seed=0).x
        out = sk.sample(wrap(unet().to(dtype), scheduler), SHAPE, nfe=6, seed=0).x
        assert out.dtype == torch.float32
        atol = {torch.float64: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.4}[dtype] * truth.abs().max().item()
        torch.testing.assert_close(out, truth, rtol=0, atol=atol)


def test_training_mode_and_identity():
    network = unet(dropout=0.5).train()
    model = wrap(network, diffusers.DDPMScheduler())
    one, two = (sk.sample(model, SHAPE, nfe=3, seed=0).x for _ in range(2))
    assert torch.equal(one, two)
    assert network.training
    assert identify(model) == identify(wrap(network, diffusers.DDPMScheduler()))
    others = [
        wrap(network, diffusers.DDPMScheduler(), clip=False),
        wrap(network, diffusers.DDPMScheduler(prediction_type="v_prediction")),
        wrap(network, diffusers.DDPMScheduler(beta_end=0.01)),
    ]
    assert len({identify(model), *map(identify, others)}) == 4
    before = identify(model)
    with torch.no_grad():
        next(network.parameters()).add_(0.1)
    assert identify(model) != before
    assert len(behaviour(model, SHAPE[1:])) == 12


NAMED = {"_class_name": "DDIMScheduler"}


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({**NAMED, "beta_schedule": "liner"}, r"unknown beta_schedule 'liner': did you mean 'linear'\?"),
        ({**NAMED, "prediction_type": "velocity"}, r"unknown prediction_type 'velocity'"),
        ({**NAMED, "prediction_type": "flow_prediction"}, r"flow networks need use_flow_sigmas=True"),
        ({"_class_name": "DDMScheduler"}, r"unknown scheduler 'DDMScheduler': did you mean 'DDPMScheduler'\?"),
        ({"_class_name": "IPNDMScheduler"}, r"IPNDMScheduler is none whose networks are known"),
        ({"_class_name": "CogVideoXDDIMScheduler", "snr_shift_scale": 3.0}, r"CogVideoXDDIMScheduler is none whose"),
        ({"beta_end": 0.02}, r"a configuration without _class_name"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "sample"}, r"unknown prediction_type of an EDM"),
        ({**NAMED, "num_train_timesteps": 1}, r"num_train_timesteps=1: it must be a whole number of at least 2"),
        ({**NAMED, "beta_start": -0.1}, r"beta_start=-0.1, beta_end=0.02: both must lie in \(0, 1\)"),
        ({**NAMED, "trained_betas": [0.1, 2.0], "rescale_betas_zero_snr": True}, r"betas\[1\] = 2.0: every beta must"),
        (3, r"a int is neither a scheduler of diffusers, nor its configuration"),
        ("/no/such/folder", r"'/no/such/folder' holds no scheduler_config.json"),
    ],
)
def test_configurations_that_are_not_known_are_refused(scheduler, message):
    with pytest.raises(ValueError, match=message):
        wrap(unet(), scheduler)


def test_calls_that_do_not_fit_are_refused():
    scheduler = diffusers.DDIMScheduler()
    with pytest.raises(ValueError, match=r"x has shape \[2, 4, 8, 8\], but the network takes \[n, 3, …\]"):
        sk.sample(wrap(unet(), scheduler), (2, 4, 8, 8), nfe=2)
    with pytest.raises(ValueError, match="takes 9 channels and returns 4: it is told more than the noisy sample"):
        wrap(conditional_unet(in_channels=9), scheduler)
    with pytest.raises(ValueError, match=r"AutoencoderKL\.forward takes no timestep= and return_dict="):
        wrap(autoencoder(), scheduler)
    labelled = wrap(dit(), scheduler)
    with pytest.raises(ValueError, match="class_labels: the network was trained with it: give class_labels="):
        sk.sample(labelled, (2, 4, 4, 4), nfe=2)
    with pytest.raises(
        ValueError, match="class_labels: it must be a tensor with one row for each of the 2 samples, got"
    ):
        sk.sample(labelled, (2, 4, 4, 4), nfe=2, class_labels=3)
    with pytest.raises(ValueError, match="unknown condition 'labels'"):
        sk.sample(labelled, (2, 4, 4, 4), nfe=2, class_labels=[1, 2], labels=[1, 2])
    with pytest.raises(ValueError, match="class_labels: the network was trained"):
        wrap(unet(num_class_embeds=10), scheduler).predict("eps", X, 0.5)
    with pytest.raises(ValueError, match="encoder_hidden_states: the network was trained with it"):
        sk.sample(wrap(conditional_unet(), scheduler), (2, 4, 8, 8), nfe=2)


def test_transformers_of_flow_matching():
    sizes = {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 16}
    torch.manual_seed(0)
    network = diffusers.SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, caption_projection_dim=16, pooled_projection_dim=12,
        pos_embed_max_size=16, **sizes,
    ).eval()  # fmt: skip
    like = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    model = wrap(network, like)
    x, text, pooled = (torch.randn(2, *s, generator=generator()) for s in ((4, 8, 8), (5, 16), (12,)))
    conditions = {"encoder_hidden_states": text, "pooled_projections": pooled}
    with torch.no_grad():  # as its pipeline calls it
        theirs = network(x, timestep=torch.tensor([300.0, 300.0]), return_dict=False, **conditions)[0]
        torch.testing.assert_close(model.flow(x, 0.3, **conditions), theirs)
    with pytest.raises(ValueError, match="pooled_projections: the network was trained with it"):
        model.flow(x, 0.3, encoder_hidden_states=text)
    flux = diffusers.FluxTransformer2DModel(in_channels=16, num_single_layers=1, axes_dims_rope=(2, 2, 4), **sizes)
    with pytest.raises(ValueError, match="how a FluxTransformer2DModel is told the time in flow matching"):
        wrap(flux, like)  # t, and not 1000 t


def test_a_compiled_network_is_the_network():
    network = unet()
    compiled = torch.compile(network, backend="eager")
    scheduler = diffusers.DDPMScheduler()
    model, truth = wrap(compiled, scheduler), wrap(network, scheduler)
    assert torch.equal(model.predict("eps", X, 0.3), truth.predict("eps", X, 0.3))
    assert identify(model) == identify(truth)
    with pytest.raises(ValueError, match="but the network takes"):
        model.predict("eps", X[:, :2], 0.3)


def test_a_bare_network_in_a_score_model_is_recognised():
    model = sk.ScoreModel(unet(), sk.DiscreteVP(), time="index")
    with pytest.raises(
        ValueError, match=r"returned a UNet2DOutput, not a tensor: .*sk.interop.diffusers.wrap\(network"
    ):
        sk.sample(model, SHAPE, nfe=2)


def test_diffusers_is_imported_by_its_first_use_alone():
    code = (
        "import sys, sdekit as sk; sk.interop.diffusers; assert 'diffusers' not in sys.modules;"
        " sk.interop.diffusers.wrap; assert 'diffusers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {"Scheduler", "load", "wrap"} <= set(dir(sk.interop.diffusers))
    with pytest.raises(AttributeError, match="has no attribute 'warp'; there are"):
        sk.interop.diffusers.warp  # noqa: B018
    with pytest.raises(AttributeError, match=r"has no attribute 'difusers'; there are .*diffusers"):
        sk.interop.difusers  # noqa: B018


def test_thresholded_is_public():
    assert sk.Thresholded is Thresholded
