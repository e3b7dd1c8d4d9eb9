"""azula's denoisers under the processes of its schedules, against the library's own formulas and samplers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sdekit as sk
from sdekit.interop import azula
from sdekit.testing import check_process

noise = pytest.importorskip("azula.noise")
denoise = pytest.importorskip("azula.denoise")
samplers = pytest.importorskip("azula.sample")

F64 = torch.float64
SCHEDULES = {
    "VE": noise.VESchedule(),
    "VE narrow": noise.VESchedule(0.02, 30.0),
    "VP": noise.VPSchedule(),
    "VP odd": noise.VPSchedule(0.01, 0.02),
    "cosine": noise.CosineSchedule(),
    "cosine odd": noise.CosineSchedule(0.02, 0.01),
    "rectified": noise.RectifiedSchedule(),
    "rectified odd": noise.RectifiedSchedule(0.03, 0.01),
    "decay": noise.DecaySchedule(),
    "decay odd": noise.DecaySchedule(0.03, 0.01, 0.4),
}


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(2, 2, generator=generator) / 2)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor, t: torch.Tensor, shift: float = 0.0) -> torch.Tensor:
        return self.drop(torch.tanh(x @ self.weight + torch.sin(t)[..., None] + shift))


def start(n: int = 8) -> torch.Tensor:
    return sk.noise.normal(3, 0, torch.arange(n), (2,), F64)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_process_has_the_schedules_scales(name):
    process, schedule = azula.process_of(SCHEDULES[name]), SCHEDULES[name]
    times = torch.linspace(0, 1, 41, dtype=F64)
    alpha, sigma = schedule(times)
    assert torch.allclose(process.alpha(times), alpha, rtol=1e-10)
    assert torch.allclose(process.sigma(times), sigma, rtol=1e-9)
    back = process.t_of_half_log_snr(process.half_log_snr(times))
    assert torch.allclose(back, times, rtol=1e-8, atol=2e-5 if name.startswith("VP") else 1e-9)  # √ at t = 0
    # the rates, against the schedule's slopes by autograd
    t = torch.linspace(0.01, 1, 30, dtype=F64, requires_grad=True)
    for index, rate in enumerate((process.alpha_rate, process.sigma_rate)):
        (slope,) = torch.autograd.grad((schedule(t)[index] + 0 * t).sum(), t)  # VE's α is a constant
        assert torch.allclose(rate(t.detach()), slope, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", [azula.Quadratic, azula.Cosine, azula.Rectified, azula.Decay])
def test_the_processes_obey_the_laws(kind):
    check_process(kind())


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", ["KarrasDenoiser", "SimpleDenoiser"])
def test_a_denoiser_predicts_and_samples_as_the_library(name, kind):
    denoiser, x = getattr(denoise, kind)(Backbone().double(), SCHEDULES[name]), start()
    model = azula.wrap(denoiser)
    denoiser.eval()
    for t in (0.0, 0.4, 1.0):
        truth = denoiser(x, torch.tensor(t, dtype=F64), shift=0.2).mean
        assert torch.allclose(model.x0(x, t, shift=0.2), truth, rtol=1e-12, atol=1e-12)
    each = torch.linspace(0.1, 0.9, 8, dtype=F64)
    assert torch.allclose(model.x0(x, each), denoiser(x, each).mean, rtol=1e-12, atol=1e-12)
    times = torch.linspace(1, 0, 11, dtype=F64)
    x = model.process.prior_std * x
    sampler = samplers.DDIMSampler(denoiser, steps=10, silent=True)
    truth = x
    for s, t in zip(times, times[1:]):  # its __call__ makes float32 times
        truth = sampler.step(truth, s, t, shift=0.2)
    denoiser.train()  # runs put it into evaluation mode
    arguments = {"solver": "ddim", "grid": times.tolist(), "start": x, "final": "none", "shift": 0.2}
    found = [sk.sample(model, (8, 2), **arguments).x for _ in range(2)]
    assert torch.allclose(found[0], truth, rtol=0, atol=1e-8 * max(1.0, truth.abs().max().item()))
    assert torch.equal(*found)
    assert denoiser.training


@pytest.mark.parametrize("name", ["VP", "rectified"])
def test_a_whole_run_of_heun_agrees(name):
    denoiser = denoise.KarrasDenoiser(Backbone().double(), SCHEDULES[name]).eval()
    sampler = samplers.DDIMSampler(denoiser, steps=400, silent=True)
    x = truth = start()
    times = torch.linspace(1, 0, 401, dtype=F64)
    for s, t in zip(times, times[1:]):
        truth = sampler.step(truth, s, t)
    found = sk.sample(azula.wrap(denoiser), (8, 2), solver="unipc-3", nfe=60, start=x, final="none").x
    assert torch.allclose(found, truth, atol=2e-2)  # DDIM's own error at 400 steps


def test_a_gaussian_denoiser_takes_one_time():
    covariance = pytest.importorskip("azula.linalg.covariance")
    mean = torch.tensor([1.0, -2.0], dtype=F64)
    denoiser = denoise.GaussianDenoiser(
        mean, covariance.IsotropicCovariance(torch.tensor(0.25, dtype=F64)), SCHEDULES["VP"]
    )
    model, x = azula.wrap(denoiser), start(2)  # a batch as large as the event: [batch] times would broadcast wrongly
    truth = denoiser(x, torch.tensor(0.4, dtype=F64)).mean
    assert torch.allclose(model.x0(x, 0.4), truth, rtol=1e-12)
    process = model.process
    own = sk.targets.Gaussian(mean, 0.25 * torch.eye(2, dtype=F64)).conditional_means(x, 0.4, process)[0]
    assert torch.allclose(truth, own, rtol=1e-9)
    with pytest.raises(ValueError, match="one time for the whole batch"):
        model.x0(x, torch.tensor([0.4, 0.5], dtype=F64))


def test_a_backbone_in_bf16_keeps_its_scalings_in_the_states_precision():
    exact = azula.wrap(denoise.KarrasDenoiser(Backbone().eval(), SCHEDULES["VP"]))
    model = azula.wrap(denoise.KarrasDenoiser(Backbone().eval().bfloat16(), SCHEDULES["VP"]))
    x = start().float()
    assert model.x0(x, 0.4).dtype == torch.float32
    assert (model.x0(x, 0.4) - exact.x0(x, 0.4)).abs().max() < 0.02
    assert sk.sample(model, (4, 2), nfe=4, seed=0).x.isfinite().all()


def test_what_is_not_azulas_is_refused():
    class Own(noise.Schedule):
        def __call__(self, t):
            return 1 - t / 2, t / 2 + 0.1

    class VPSchedule(noise.VPSchedule):
        def sigma(self, t):
            return t

    denoiser = denoise.KarrasDenoiser(Backbone(), Own())
    with pytest.raises(ValueError, match="unknown schedule 'Own'"):
        azula.wrap(denoiser)
    with pytest.raises(ValueError, match=r"at t=0.* the denoiser's schedule"):
        azula.wrap(denoise.KarrasDenoiser(Backbone(), VPSchedule()))
    with pytest.raises(ValueError, match=r"at t=0.* the denoiser's schedule"):
        azula.wrap(denoiser, process=azula.Rectified(0.5, 0.1))
    with pytest.raises(ValueError, match="Backbone has no schedule"):
        azula.wrap(Backbone())
