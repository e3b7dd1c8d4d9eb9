"""The tilted law p^{1−w} q^w: its weights against the equations, its samples and evidence against closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sdekit as sk
from sdekit import guidance
from sdekit.guidance import particles
from sdekit.nn import digits_model
from sdekit.targets import Gaussian, GaussianMixture, Target
from sdekit.testing import simgpu

PROCESS = sk.VP()
MEANS, WEIGHTS, WIDTH, CUT = torch.tensor([[-1.5], [0.0], [2.0]]).double(), torch.tensor([0.5, 0.3, 0.2]), 0.4, 1.0
PARTS = ((MEANS[1:], WIDTH, WEIGHTS[1:]), (MEANS, WIDTH, WEIGHTS))  # the class, and all
CLASS, FREE = (GaussianMixture(*parts) for parts in PARTS)


def guided(w: float, q: Target = CLASS, p: Target = FREE, process: sk.Process = PROCESS) -> guidance.Autoguided:
    return guidance.Autoguided(q.model(process), p.model(process), w)


def gaussian(mean: float, variance: float) -> Gaussian:
    return Gaussian(torch.tensor([mean]).double(), torch.tensor([[variance]]).double())


def run(model: Any, n: int, **options: Any) -> guidance.Tilted:
    chosen: dict[str, Any] = {"seed": 0, "dtype": torch.float64, **options}
    return guidance.tilted(model, (n, 1), **chosen)


def mean(out: guidance.Tilted, values: Tensor) -> float:
    return (out.weights * values).mean().item()


@pytest.mark.parametrize("process", [PROCESS, sk.VE(sigma_max=20.0), sk.Flow()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("w", [0.5, 2.5])
def test_the_weights_make_up_for_what_the_fokker_planck_equation_leaves(process: Any, w: float) -> None:
    """∂ log γ/∂t by differences, less the Fokker–Planck terms, is minus the rate at which log W grows as t falls."""
    t, step, x = process.t_of_half_log_snr(0.2), 1e-5, torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]

    def log_density(x: Tensor, t: float) -> Tensor:
        return (1 - w) * FREE.log_prob(x, t, process) + w * CLASS.log_prob(x, t, process)

    at = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(log_density(at, t).sum(), at, create_graph=True)
    (slope,) = torch.autograd.grad(score.sum(), at)
    f, g = process.drift_rate(t), process.diffusion(t)
    change = (log_density(x, t + step) - log_density(x, t - step)) / (2 * step)
    score, slope = score.detach()[:, 0], slope[:, 0]
    left = change - (-f - f * x[:, 0] * score + g**2 / 2 * (slope + score**2))

    knot = process.knot(t)
    good, bad = guided(w, process=process).pair("eps", x, t, {})
    rate_in_t = -(g**2) / (2 * knot.sigma**2) * w * (w - 1) * (good - bad)[:, 0] ** 2
    torch.testing.assert_close(left, rate_in_t, rtol=1e-5, atol=1e-6)

    look = particles._look(guided(w, process=process), w, {}, knot, x)  # pyright: ignore[reportPrivateUsage]
    torch.testing.assert_close(look[1], w * (w - 1) * (good - bad)[:, 0] ** 2)
    torch.testing.assert_close(look[0], (x + knot.sigma**2 * score[:, None]) / knot.alpha)


@pytest.mark.parametrize(("w", "target"), [(0.0, FREE), (1.0, CLASS)])
def test_without_guidance_the_weights_are_one_and_the_law_is_known(w: float, target: GaussianMixture) -> None:
    out = run(guided(w), 4000, steps=100)
    assert torch.equal(out.weights, torch.ones(4000, dtype=torch.float64))
    assert (out.log_evidence, out.ancestors, out.nfe) == (0.0, 1.0, 202)
    truth = target.sample(100_000, seed=1)
    spread = truth.std().item() / math.sqrt(4000)
    assert abs(out.x.mean() - truth.mean()) < 4 * spread
    assert abs(out.x.square().mean() - truth.square().mean()) < 4 * truth.square().std().item() / math.sqrt(4000)


@pytest.mark.parametrize("resample_below", [0.0, 0.9])
def test_a_gaussian_tilted_by_a_gaussian(resample_below: float) -> None:
    """N(0, 1)^−1 N(1, 1/2)^2 ∝ N(4/3, 1/3); its integral by completing the square."""
    w, (m, v) = 2.0, (1.0, 0.5)
    precision = (1 - w) + w / v
    centre = w * m / v / precision
    log_evidence = 0.5 * (precision * centre**2 - w * m**2 / v - w * math.log(v) - math.log(precision))
    out = run(guided(w, gaussian(m, v), gaussian(0.0, 1.0)), 8000, steps=100, resample_below=resample_below)
    x = out.x[:, 0]
    found = mean(out, x)
    assert abs(found - centre) < 0.03
    assert abs(mean(out, (x - found) ** 2) * precision - 1) < 0.08
    assert abs(out.log_evidence - log_evidence) < 0.03
    assert (out.weights.std() > 0.1) == (resample_below == 0)


def exact_share(w: float) -> float:
    """The share of x > 1, the second mode of the class, under p^{1−w} q^w, by quadrature."""
    x = torch.linspace(-8, 8, 40001, dtype=torch.float64)[:, None]
    density = ((1 - w) * FREE.log_prob(x) + w * CLASS.log_prob(x)).exp()
    return (density[x[:, 0] > CUT].sum() / density.sum()).item()


def test_mode_weights_are_the_exact_laws_where_those_of_guidance_are_not() -> None:
    w, n = 2.0, 6000
    truth = exact_share(w)
    runs = [run(guided(w), n, seed=seed, steps=150) for seed in range(4)]
    shares = torch.tensor([mean(out, (out.x[:, 0] > CUT).double()) for out in runs])
    assert shares.std() / 2 < 0.015 * truth  # the standard error of the four
    assert abs(shares.mean() / truth - 1) < 0.02
    for solver in ("unipc-3", "dpmpp-2m-sde"):
        x = sk.sample(guided(w), (n, 1), solver=solver, grid="logsnr", nfe=50, seed=0).x
        assert (x > CUT).double().mean() > 1.3 * truth
    assert all(out.ess.min() > 0.5 for out in runs)


def test_systematic_resampling_takes_each_as_often_as_its_weight_says() -> None:
    weights = torch.tensor([0.05, 0.3, 0.0, 0.45, 0.2], dtype=torch.float64).repeat(20) / 20
    for uniform in (0.001, 0.5, 0.999):
        picks = particles._systematic(weights.log(), torch.tensor([uniform]).double())  # pyright: ignore[reportPrivateUsage]
        counts = picks.bincount(minlength=100)
        assert ((counts - 100 * weights).abs() < 1).all()
        assert counts.sum() == 100


def test_even_particles_are_copies_by_weight() -> None:
    out = run(guided(3.0), 500, steps=50, resample_below=0.0)
    copies = (out.even() == out.x[:, 0]).sum(0)
    assert ((copies - out.weights).abs() < 1).all()
    assert copies.sum() == 500
    assert copies.max() > 1


def test_a_run_repeats_by_its_seed_and_denoises_what_it_ends_at() -> None:
    one, same, noisy = (
        run(guided(2.0), 64, steps=20),
        run(guided(2.0), 64, steps=20),
        run(guided(2.0), 64, steps=20, final="none"),
    )
    assert torch.equal(one.x, same.x)
    other = run(guided(2.0), 64, steps=20, seed=None)
    assert not torch.equal(one.x, other.x)
    knot = PROCESS.knot(PROCESS.t_min)
    torch.testing.assert_close(guided(2.0).predict("x0", noisy.x, knot.t), one.x)


def test_labels_are_one_for_the_population() -> None:
    model = guidance.ClassifierFree(digits_model(), 2.0, null={"label": 10})
    options: dict[str, Any] = {"steps": 3, "seed": 0}
    out = guidance.tilted(model, (16, 1, 8, 8), label=3, **options)
    assert out.nfe == 8
    assert torch.equal(guidance.tilted(model, (16, 1, 8, 8), label=torch.tensor(3), **options).x, out.x)
    assert not torch.equal(guidance.tilted(model, (16, 1, 8, 8), label=4, **options).x, out.x)
    with pytest.raises(ValueError, match=r"label: all 16 particles sample one law: give one number"):
        guidance.tilted(model, (16, 1, 8, 8), label=torch.full((16,), 3), **options)
    with pytest.raises(ValueError, match=r"label: classifier-free guidance needs what null names at every call"):
        guidance.tilted(model, (16, 1, 8, 8), **options)


def test_weights_that_a_few_particles_have_are_warned_of() -> None:
    with pytest.warns(guidance.WeightsWarning, match=r"effective sample size fell to .*% of the particles"):
        out = run(guided(8.0), 256, steps=50, resample_below=0.0)
    assert out.ess.min() < 0.05


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "few": (guided(2.0), {"n": 8}, r"shape: 8 particles: at least 16 are needed"),
    "rule": (
        guidance.Autoguided(CLASS.model(PROCESS), FREE.model(PROCESS), 2.0, rule=guidance.Projected()),
        {},
        r"guided: rule=Projected\(.*no law",
    ),
    "schedule": (
        guidance.Autoguided(CLASS.model(PROCESS), FREE.model(PROCESS), lambda process, t: 2.0),
        {},
        r"guided: a scale that varies has no law",
    ),
    "noise": (guided(2.0), {"noise_level": 0.0}, r"noise_level=0.0: it must be positive"),
    "share": (guided(2.0), {"resample_below": 1.5}, r"resample_below=1.5: a share"),
    "steps": (guided(2.0), {"steps": 0}, r"steps=0: it must be a whole number"),
    "final": (guided(2.0), {"final": "denoised"}, r"unknown final 'denoised': did you mean 'denoise'"),
    "misspelt": (guided(2.0), {"resample_bellow": 0.5}, r"did you mean 'resample_below'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    model, options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        run(model, **{"n": 64, **options})


def test_on_a_device_the_numbers_are_the_cpus_and_no_step_reads() -> None:
    here = [run(guided(2.0), 64, steps=steps) for steps in (4, 8)]
    reads = list[int]()
    with simgpu.device() as gpu:
        for cpu, steps in zip(here, (4, 8)):
            q, p = (GaussianMixture(*parts).to(gpu.device) for parts in PARTS)
            model = guided(2.0, q, p)
            gpu.reset()
            there = run(model, 64, steps=steps)
            reads.append(gpu.host_reads)
            assert there.x.device.type == "simgpu"
            torch.testing.assert_close(cpu.x, there.x.cpu())
            torch.testing.assert_close(cpu.weights, there.weights.cpu())
    assert reads[0] == reads[1], "reads belong to the end of a run, not to its steps"
