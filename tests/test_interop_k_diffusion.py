"""Both doors to k-diffusion: solvers by its contract, and its denoisers as models, against the real library."""

from __future__ import annotations

import math
import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

import sdekit as sk
from sdekit.interop.k_diffusion import sampler, wrap
from sdekit.solvers import get, names
from sdekit.testing import simgpu

SIGMAS = [20.0, 7.0, 3.0, 1.5, 0.8, 0.4, 0.15, 0.05]
FLOW_SIGMAS = [1.0, 0.93, 0.8, 0.6, 0.4, 0.2, 0.05]
DETERMINISTIC = [name for name in names() if not get(name).stochastic]
STOCHASTIC = [name for name in names() if get(name).stochastic]
TARGET = sk.targets.GaussianMixture(torch.tensor([[-2.0, 0.5], [1.0, 1.5], [0.0, -1.0]]), 0.3).double()


def k_diffusion(module: str) -> ModuleType:
    """One module of k-diffusion: its package imports evaluation code with many dependencies, which none needs."""
    if "k_diffusion.utils" not in sys.modules:
        spec = find_spec("k_diffusion")
        if spec is None or spec.submodule_search_locations is None:
            pytest.skip("k-diffusion is not installed")
        package, utils = ModuleType("k_diffusion"), ModuleType("k_diffusion.utils")
        package.__path__ = list(spec.submodule_search_locations)
        utils.append_dims = lambda x, ndim: x[(...,) + (None,) * (ndim - x.ndim)]
        sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
        package.utils = utils
    try:
        return import_module(f"k_diffusion.{module}")
    except ModuleNotFoundError as error:  # torchsde, einops, …
        pytest.skip(f"k-diffusion needs {error.name}")


def denoise(x: torch.Tensor, sigma: torch.Tensor, **_: object) -> torch.Tensor:
    """The mixture's exact D(x, σ)."""
    return TARGET.conditional_means(x, sigma, sk.EDM(1e-9, 1e9))[0]


def denoise_flow(x: torch.Tensor, sigma: torch.Tensor, **_: object) -> torch.Tensor:
    return TARGET.conditional_means(x, sigma, sk.Flow(1e-9, 1 - 1e-9))[0]


def start(n: int = 8) -> torch.Tensor:
    return sk.noise.normal(5, 0, torch.arange(n), (2,), torch.float64)


def ours(name: str, sigmas: list[float], x: torch.Tensor, process: sk.Process, net=denoise, **arguments):
    model = sk.ScoreModel(net, process, predicts="x0")
    final = "denoise" if sigmas[-1] == 0 else "none"
    times = sigmas[:-1] if sigmas[-1] == 0 else sigmas
    return sk.sample(model, x.shape, solver=name, grid=times, final=final, start=x, **arguments).x


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=1e-10 * max(1.0, other.abs().max().item()))


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("end", [[0.0], []], ids=["to data", "to the last sigma"])
def test_the_door_equals_sample(name, end):
    x, sigmas = 20 * start(), [*SIGMAS, *end]
    door = sampler(name)(denoise, x, torch.tensor(sigmas, dtype=torch.float64), disable=True)
    assert close(door, ours(name, sigmas, x, sk.EDM(SIGMAS[-1], SIGMAS[0])))
    assert torch.equal(door, sampler(name)(denoise, x, torch.tensor(sigmas, dtype=torch.float64), disable=True))
    alone = sampler(name)(denoise, x[3:4], sigmas, disable=True)
    assert close(alone, door[3:4])


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_door_equals_sample_for_flow_models_from_one(name):
    x, inside = start(), [sk.Flow().t_max, *FLOW_SIGMAS[1:]]
    run = sampler(name, coordinates="flow")
    door = run(denoise_flow, x, torch.tensor([*FLOW_SIGMAS, 0.0], dtype=torch.float64), disable=True)
    process = sk.Flow(inside[-1], inside[0])
    assert close(door, ours(name, [*inside, 0.0], 0.999 * x, process, denoise_flow))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_stochastic_solver_draws_sdekits_noise(name):
    x, sigmas = 20 * start(), [*SIGMAS, 0.0]
    truth = ours(name, sigmas, x, sk.EDM(SIGMAS[-1], SIGMAS[0]), seed=7)
    assert close(sampler(name, seed=7)(denoise, x, sigmas, disable=True), truth)
    assert close(sampler(name)(denoise, x, sigmas, extra_args={"seed": 7}, disable=True), truth)
    assert close(sampler(name, seed=7)(denoise, x, sigmas, extra_args={"seed": 8}, disable=True), truth)
    assert not torch.equal(sampler(name)(denoise, x, sigmas, disable=True), truth)
    path = ours(name, sigmas, x, sk.EDM(SIGMAS[-1], SIGMAS[0]), seed=7, noise="brownian")
    assert close(sampler(name, seed=7, noise="brownian")(denoise, x, sigmas, disable=True), path)


PEERS = {
    "sample_euler": "ddim",
    "sample_heun": "heun",
    "sample_dpm_2": "dpm-2",
    "sample_dpmpp_2m": "dpmpp-2m(lower_order_below=0)",
}


@pytest.mark.parametrize(("theirs", "name"), PEERS.items())
def test_the_door_equals_k_diffusions_own_samplers(theirs, name):
    x, sigmas = 20 * start(), torch.tensor([*SIGMAS, 0.0], dtype=torch.float64)
    truth = getattr(k_diffusion("sampling"), theirs)(denoise, x, sigmas, disable=True)
    found = sampler(name)(denoise, x, sigmas, disable=True)
    assert torch.allclose(found, truth, rtol=0, atol=1e-8)


def told(run, sigmas, **arguments):
    seen = []
    run(denoise, 20 * start(), sigmas, callback=lambda told: seen.append(dict(told)), disable=True, **arguments)
    return seen


@pytest.mark.parametrize(("theirs", "name"), PEERS.items())
def test_the_callback_is_told_what_k_diffusions_is(theirs, name):
    sigmas = torch.tensor([*SIGMAS, 0.0], dtype=torch.float64)
    truth = told(getattr(k_diffusion("sampling"), theirs), sigmas)
    found = told(sampler(name), sigmas)
    assert len(found) == len(truth) == len(SIGMAS)
    for own, peer in zip(found, truth):
        assert own.keys() >= {"x", "i", "sigma", "sigma_hat", "denoised"}
        assert own["i"] == peer["i"]
        for key in ("x", "sigma", "sigma_hat", "denoised"):
            assert torch.allclose(own[key], peer[key], rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", names())
def test_the_callback_is_told_each_sigma_once_with_what_was_denoised_there(name):
    seen = told(sampler(name, seed=0), [*SIGMAS, 0.0])
    assert [own["i"] for own in seen] == [*range(len(SIGMAS))]
    for own in seen:
        assert own["sigma"] == SIGMAS[own["i"]]
        lifted = own["sigma_hat"] if isinstance(own["sigma_hat"], float) else own["sigma_hat"].item()
        assert lifted >= own["sigma"]
        assert torch.equal(own["denoised"], denoise(own["x"], torch.full((8,), lifted, dtype=torch.float64)))


def test_churn_shows_the_level_it_lifted_to():
    hats = [own["sigma_hat"] / own["sigma"] for own in told(sampler("edm(churn=2.0)", seed=0), [*SIGMAS, 0.0])]
    assert max(hats) > 1.1


@pytest.mark.parametrize("coordinates", ["ve", "flow"])
@pytest.mark.parametrize("name", ["dpmpp-2m-sde", "heun", "unipc-3", "restart"])
def test_one_sigma_and_a_zero_is_the_denoising_alone(coordinates, name):
    x = start()
    found = sampler(name, coordinates=coordinates)(denoise, x, torch.tensor([1.0, 0.0]), disable=True)
    assert torch.equal(found, denoise(x, torch.ones(8, dtype=torch.float64)))


def comfy(net, sampling: type) -> SimpleNamespace:
    class Model:
        def __init__(self, inner):
            self.inner_model = inner

        def __call__(self, x, sigma, **extra):
            return net(x, sigma, **extra)

    return Model(Model(SimpleNamespace(model_sampling=sampling())))


def test_comfys_flow_models_are_told_by_their_sampling():
    class CONST:
        pass

    class ModelSampling(CONST):
        pass

    class EPS:
        pass

    x, sigmas = start(), [*FLOW_SIGMAS, 0.0]
    run = sampler("unipc-2")
    flow = sampler("unipc-2", coordinates="flow")(denoise, x, sigmas, disable=True)
    assert torch.equal(run(comfy(denoise, ModelSampling), x, sigmas, disable=True), flow)
    ve = sampler("unipc-2", coordinates="ve")(denoise, x, sigmas, disable=True)
    assert torch.equal(run(comfy(denoise, EPS), x, sigmas, disable=True), ve)
    assert (flow - ve).abs().max() > 1e-3


def test_forges_flow_models_are_told_by_their_predictor():
    class Model:
        inner_model = SimpleNamespace(predictor=SimpleNamespace(prediction_type="const"))

        def __call__(self, x, sigma):
            return denoise(x, sigma)

    flow = sampler("unipc-2", coordinates="flow")(denoise, start(), [*FLOW_SIGMAS, 0.0], disable=True)
    assert torch.equal(sampler("unipc-2")(Model(), start(), [*FLOW_SIGMAS, 0.0], disable=True), flow)


@pytest.mark.parametrize("first", [0.9995, 0.9, 0.3])
def test_a_flow_run_that_begins_below_one_begins_there(first):
    sigmas = [first, first / 2, first / 5]
    found = sampler("unipc-2", coordinates="flow")(denoise_flow, start(), [*sigmas, 0.0], disable=True)
    assert close(found, ours("unipc-2", [*sigmas, 0.0], start(), sk.Flow(sigmas[-1], first), denoise_flow))


def test_sigmas_close_to_one_stay_in_their_order():
    sigmas = [1.0, 0.9995, 0.999, 0.5, 0.0]
    found = sampler("dpmpp-2m", coordinates="flow")(denoise_flow, start(), sigmas, disable=True)
    assert found.isfinite().all()


def test_a_flow_run_ends_where_its_distribution_is():
    x = sk.noise.normal(1, 0, torch.arange(4000), (2,), torch.float64)
    sigmas = torch.linspace(1, 0, 41, dtype=torch.float64)
    found = sampler("unipc-2", coordinates="flow")(denoise_flow, x, sigmas, disable=True)
    truth = TARGET.sample(4000, seed=3).double()
    assert torch.allclose(found.mean(0), truth.mean(0), atol=0.1)
    assert torch.allclose(found.std(0), truth.std(0), atol=0.1)


@pytest.mark.parametrize(
    ("sigmas", "words"),
    [
        ([1.0], "1 given"),
        ([], "0 given"),
        ([1.0, 2.0, 0.0], "1 is followed by 2"),
        ([2.0, 1.0, 1.0, 0.0], "1 is followed by 1"),
        ([2.0, 1.0, 0.0, 0.0], "0 is followed by 0"),
        ([2.0, -1.0], "sigmas hold -1"),
        ([math.inf, 1.0], "sigmas hold inf"),
        ([math.nan, 1.0], "sigmas hold nan"),
    ],
)
def test_lists_that_are_no_run_are_refused_in_a_sentence(sigmas, words):
    for given in (sigmas, torch.tensor(sigmas)):
        with pytest.raises(ValueError, match=words):
            sampler("ddim")(denoise, start(), given, disable=True)


def test_other_input_is_refused():
    with pytest.raises(ValueError, match="lie between 0 and 1"):
        sampler("ddim", coordinates="flow")(denoise, start(), [2.0, 1.0, 0.0], disable=True)
    with pytest.raises(ValueError, match="lie between 0 and 1"):
        sampler("ddim", coordinates="flow")(denoise, start(), [2.0, 0.0], disable=True)
    with pytest.raises(ValueError, match="unknown solver"):
        sampler("unipc-33")
    with pytest.raises(ValueError, match="unknown coordinates"):
        sampler("ddim", coordinates="vp")
    with pytest.raises(ValueError, match="unknown noise"):
        sampler("ddim", noise="pink")
    with pytest.raises(ValueError, match=r"shape \[8, 1\] for x of shape \[8, 2\]"):
        sampler("ddim")(lambda x, sigma: x[:, :1], start(), SIGMAS, disable=True)


def test_extra_arguments_reach_the_model_whatever_their_names():
    seen = []

    def model(x, sigma, **extra):
        seen.append(extra)
        return denoise(x, sigma)

    extra = {"cond": 1, "plan": 2, "draw": 3, "model_options": {}, "seed": 4}
    sampler("ddim")(model, start(), SIGMAS, extra_args=extra, disable=True)
    assert all(each == extra for each in seen)


def test_half_precision_is_told_sigma_in_float32():
    seen = []

    def model(x, sigma):
        seen.append((x.dtype, sigma.dtype))
        return x * 0

    found = sampler("dpmpp-2m")(model, start().bfloat16(), torch.tensor([*SIGMAS, 0.0]), disable=True)
    assert found.dtype == torch.bfloat16
    assert set(seen) == {(torch.bfloat16, torch.float32)}


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(2, 2, generator=generator) / 2)

    def forward(self, x: torch.Tensor, t: torch.Tensor, shift: float = 0.0) -> torch.Tensor:
        return torch.tanh(x @ self.weight + shift + torch.sin(t / 100).to(x.dtype)[:, None])


def wrapper(kind: str, inner: nn.Module) -> nn.Module:
    if kind == "karras":
        return k_diffusion("layers").Denoiser(inner, sigma_data=0.5)
    external = k_diffusion("external")
    kept = (1 - torch.tensor(sk.DiscreteVP().betas, dtype=torch.float64)).cumprod(0)
    return {
        "eps": lambda: external.DiscreteEpsDDPMDenoiser(inner, kept, quantize=False),
        "eps quantized": lambda: external.DiscreteEpsDDPMDenoiser(inner, kept, quantize=True),
        "v table": lambda: external.DiscreteVDDPMDenoiser(inner, kept, quantize=False),
        "v": lambda: external.VDenoiser(inner),
    }[kind]()


@pytest.mark.parametrize("name", ["unipc-3", "dpmpp-2m-sde", "edm", "restart"])
def test_a_device_is_read_once_for_the_sigmas_and_no_more(name):
    x, sigmas = 20 * start().float(), torch.tensor([*SIGMAS, 0.0])

    def net(x, sigma):
        return torch.tanh(x) / (1 + sigma[:, None])

    here = sampler(name, seed=0)(net, x, sigmas, disable=True)
    with simgpu.device() as gpu:
        there = x.to(gpu.device)
        with gpu.forbid_host_reads():
            found = sampler(name, seed=0)(net, there, sigmas, disable=True)
        assert found.device.type == "simgpu"
        assert torch.equal(found.cpu(), here)
        found = sampler(name, seed=0)(net, there, sigmas.to(gpu.device), disable=True)
        assert torch.equal(found.cpu(), here)


def test_a_solver_fitted_to_another_process_is_refused():
    target = sk.targets.Gaussian(torch.zeros(2), torch.eye(2))
    fitted = sk.solvers.fit_dpm_v3(target.model(sk.VP()), target.sample(32), knots=5)
    with pytest.raises(ValueError, match="VP"):
        sampler(fitted)(denoise, start(), [*SIGMAS, 0.0], disable=True)


KINDS = ["eps", "eps quantized", "v table", "v", "karras"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrapped_denoiser_predicts_and_samples_as_the_library_does(kind):
    denoiser, x = wrapper(kind, Inner().double()), start()
    model = wrap(denoiser)
    for sigma in (0.05, 1.0, 14.0):
        truth = denoiser(x, torch.full((8,), sigma, dtype=torch.float64), shift=0.2)
        assert torch.equal(model.x0(x, sigma, shift=0.2), truth)
        assert torch.allclose(model.eps(x, sigma, shift=0.2), (x - truth) / sigma, rtol=1e-12, atol=1e-14)
    sigmas = torch.tensor([*SIGMAS, 0.0], dtype=torch.float64)
    truth = k_diffusion("sampling").sample_heun(denoiser, 20 * x, sigmas, {"shift": 0.2}, disable=True)
    arguments = {"solver": "heun", "grid": SIGMAS, "final": "denoise", "start": 20 * x, "shift": 0.2}
    found = sk.sample(wrap(denoiser, sigma_min=0.05, sigma_max=20.0), (8, 2), **arguments)
    assert torch.allclose(found.x, truth, rtol=0, atol=1e-8)


def test_the_range_is_the_schedules_own():
    denoiser = wrapper("eps", Inner())
    process = wrap(denoiser).process
    assert (process.t_min, process.t_max) == (float(denoiser.sigmas[0]), float(denoiser.sigmas[-1]))
    assert wrap(wrapper("v", Inner())).process == sk.EDM()
    with pytest.raises(ValueError, match=r"sigma_max=500\.0: the network covers"):
        wrap(denoiser, sigma_max=500.0)
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        wrap(denoise, sigma_min=3.0, sigma_max=1.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_in_half_precision_runs_with_scalings_in_float32(kind, dtype):
    exact, denoiser = wrapper(kind, Inner()), wrapper(kind, Inner().to(dtype))
    model, x = wrap(denoiser), 10 * start().float()
    for sigma in (0.1, 3.0, 14.0):
        truth = exact(x, torch.full((8,), sigma))
        # the network's output in [−1, 1] to 2^−8, times the scale with which it enters D
        assert (model.x0(x, sigma) - truth).abs().max() < 0.02 * max(1.0, sigma)
    assert denoiser.inner_model.weight.dtype == dtype
    assert type(denoiser.inner_model) is Inner
    assert sk.sample(model, (4, 2), nfe=5, seed=0).x.isfinite().all()
