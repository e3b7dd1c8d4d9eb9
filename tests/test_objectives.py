"""Objectives, weightings and time samplers, held to each other and to what the papers print."""

import math

import pytest
import torch
from torch import Tensor

import sdekit as sk
from sdekit import noise
from sdekit.divergence import draw_probes
from sdekit.prediction import PREDICTIONS
from sdekit.training import (
    TIME_SAMPLERS,
    WEIGHTINGS,
    Denoising,
    denoising_loss,
    denoising_risk,
    score_matching_loss,
    stratified,
    time_sampler,
    train_denoiser,
    weighting,
)
from sdekit.training.weightings import of_prediction

PROCESSES = [sk.VP(), sk.SubVP(), sk.VE(0.01, 20.0), sk.CosineVP(), sk.Flow(), sk.EDM()]
each = pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
DENSE = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)


def between(low: float, high: float) -> list[sk.Process]:
    """Processes whose half-log-SNR runs over the same range."""
    ends = {name: process.t_of_half_log_snr(torch.tensor([high, low]).double()).tolist()
            for name, process in (("vp", sk.VP()), ("cosine", sk.CosineVP()), ("flow", sk.Flow()),
                                  ("sigmoid", sk.SigmoidVP()), ("laplace", sk.LaplaceVP()))}  # fmt: skip
    return [
        sk.VP(t_min=ends["vp"][0], t_max=ends["vp"][1]),
        sk.CosineVP(t_min=ends["cosine"][0], t_max=ends["cosine"][1]),
        sk.Flow(t_min=ends["flow"][0], t_max=ends["flow"][1]),
        sk.VE(math.exp(-high), math.exp(-low)),
        sk.SigmoidVP(t_min=ends["sigmoid"][0], t_max=ends["sigmoid"][1]),
        sk.LaplaceVP(t_min=ends["laplace"][0], t_max=ends["laplace"][1]),
    ]


def linear(process: sk.Process) -> sk.ScoreModel:
    """A wrong ε̂, the same function of λ and x/√(α² + σ²) under every process."""

    def eps(x: Tensor, t: Tensor) -> Tensor:
        level = process.half_log_snr(t)
        scale = (process.alpha(t) ** 2 + process.sigma(t) ** 2).sqrt()
        return (torch.sigmoid(-level) * 0.8 / scale)[:, None] * x

    return sk.ScoreModel(eps, process, "eps", lambda process, t: t)


@each
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_weight_of_the_eps_loss_weighs_every_prediction_alike(process, name):
    t = process.t_min + (process.t_max - process.t_min) * DENSE
    x0, eps = torch.randn(2, len(t), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for kind in PREDICTIONS.keys() - {"flow-to-data"}:  # which is told another time, and is −flow
        model = sk.ScoreModel(lambda x, t, kind=kind: linear(process).predict(kind, x, t), process, kind,
                              lambda process, t: t)  # fmt: skip
        found.append(of_prediction(weighting(name), kind, process, t) * denoising_loss(model, x0, t, eps))
    for one in found[1:]:
        assert torch.allclose(one, found[0], rtol=1e-8)


@each
def test_the_weights_are_those_that_the_papers_print(process):
    t = process.t_min + (process.t_max - process.t_min) * DENSE
    alpha, sigma = process.alpha(t), process.sigma(t)
    snr, kappa = (alpha / sigma) ** 2, sigma / alpha
    of_x0 = {name: of_prediction(weighting(name), "x0", process, t) for name in WEIGHTINGS}
    # Hang et al. 2023: min(SNR, γ) on the x_0-loss; Karras et al. 2022, table 1: λ(σ) = (σ² + σ_d²)/(σ σ_d)²
    assert torch.allclose(of_x0["min-snr"], snr.clamp(max=5), rtol=1e-8)
    assert torch.allclose(of_x0["edm"], (kappa**2 + 0.25) / (kappa * 0.5) ** 2, rtol=1e-8)
    assert torch.allclose(of_x0["simple"], snr, rtol=1e-8)
    assert torch.allclose(weighting("p2(k=2, gamma=0.5)")(process, t), 1 / (2 + snr).sqrt(), rtol=1e-8)
    assert torch.allclose(weighting("sigmoid")(process, t), 1 / (1 + math.e**-2 * snr), rtol=1e-8)
    # Song et al. 2021: g² on the score-loss
    of_score = of_prediction(weighting("likelihood"), "score", process, t)
    assert torch.allclose(of_score, process.diffusion(t) ** 2, rtol=1e-8)


def test_the_variational_bound_does_not_see_the_schedule():
    """½ ∫ ‖ε̂ − ε‖² dλ' between equal ends is the same number under every process (Kingma et al. 2021, eq. 18)."""
    x0 = 0.7 * torch.randn(4000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    risks = [denoising_risk(linear(process), x0, "importance", 0, 0, "simple").item() for process in between(-4, 4)]
    assert risks == pytest.approx([risks[0]] * 6, rel=1e-6)
    # drawn uniformly in t, the same integral, by another quadrature
    process, many = between(-4, 4)[0], x0.repeat(100, 1)
    vp, length = linear(process), process.t_max - process.t_min
    by_level = denoising_risk(vp, many, "importance", 0, 0, "simple").item()
    uniform = denoising_risk(vp, many, "uniform", 0, 0, "likelihood").item()
    assert length * uniform / 2 == pytest.approx(by_level, rel=0.01)
    # and what is minimised without the integral's weight does see it
    simple = [denoising_risk(linear(process), x0, "uniform", 0, 0, "simple").item() for process in between(-4, 4)]
    assert max(simple) > 1.2 * min(simple)


@each
def test_log_normal_times_have_the_law_that_they_state(process):
    u = stratified(20_000, 0, 0).double()
    t, weight = time_sampler("log-normal(mean=-0.3, std=0.4)")(process, u)
    levels = -process.half_log_snr(t)
    assert levels.mean().item() == pytest.approx(-0.3, abs=2e-3)
    assert levels.std().item() == pytest.approx(0.4, abs=2e-3)
    assert (weight == 1).all()


@each
@pytest.mark.parametrize("name", TIME_SAMPLERS)
def test_times_stay_where_the_process_is(process, name):
    for u in (torch.tensor([0.0, 1e-9, 0.5, 1 - 2**-24, 1.0]), torch.tensor([0.0, 1e-15, 1.0], dtype=torch.float64)):
        t, weight = time_sampler(name)(process, u)
        assert t.dtype == u.dtype
        assert ((t >= process.t_min) & (t <= process.t_max)).all()
        assert weight.isfinite().all()


@each
def test_denoising_implicit_and_sliced_score_matching_agree_on_a_gaussian(process):
    n, d = 20_000, 3
    covariance = torch.tensor([[1.0, 0.5, 0.0], [0.5, 0.8, 0.2], [0.0, 0.2, 0.3]], dtype=torch.float64)
    data = sk.targets.Gaussian(torch.zeros(d).double(), covariance)
    x0, exact = data.sample(n), data.model(process)
    samples = torch.arange(n)
    eps = noise.normal(5, 1, samples, (d,), torch.float64)
    t = process.t_of_half_log_snr(torch.full((n,), 0.4, dtype=torch.float64))
    # half the exact score and a rotation of it: the trace counts, and its off-diagonal does not
    turn = torch.tensor([[0.5, 0.6, 0.0], [-0.6, 0.5, 0.1], [0.0, -0.1, 0.5]], dtype=torch.float64)
    wrong = sk.ScoreModel(lambda x, t: exact.score(x, t) @ turn, process, "score", lambda process, t: t)
    for model in (exact, wrong):
        denoising = of_prediction(weighting("simple"), model.predicts, process, t) * denoising_loss(model, x0, t, eps)
        implicit = score_matching_loss(model, x0, t, eps)
        sliced = score_matching_loss(model, x0, t, eps, draw_probes(x0, 1))
        for one in (implicit, sliced):
            gap = denoising - one
            assert abs(gap.mean().item()) < 4 * gap.std().item() / math.sqrt(n)
    assert denoising.mean() > 1.05 * score_matching_loss(exact, x0, t, eps).mean()


def test_a_weighting_is_trained_with_and_bad_names_are_told():
    data = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    net = torch.nn.Linear(2, 2)

    class Told(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net

        def forward(self, x, times):
            return self.inner(x)

    plan = sk.training.Optimisation(steps=3, lr=1e-2)
    ends = []
    for weights in (None, "min-snr", "min-snr(gamma=0.1)"):
        torch.manual_seed(0)
        net = torch.nn.Linear(2, 2)
        model = train_denoiser(Told(), sk.VP(), data, task=Denoising(weights=weights, times="log-normal"), plan=plan)
        ends.append(model.net.inner.weight.clone())
    assert not torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[1], ends[2])
    with pytest.raises(ValueError, match="did you mean 'min-snr'"):
        train_denoiser(Told(), sk.VP(), data, task=Denoising(weights="min-snrr"), plan=plan)
    with pytest.raises(ValueError, match="gamma=-1"):
        weighting("min-snr(gamma=-1)")


def test_conditional_flow_matching_is_the_same_loss():
    """Lipman et al. 2023, eq. 23 with σ_min = 0, data at t = 1; SD3's form has the data at t = 0."""
    x1, noise_ = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(2 * x) + t[:, None]

    matched = (velocity(t[:, None] * x1 + (1 - t[:, None]) * noise_, t) - (x1 - noise_)).square().mean(1)
    model = sk.ScoreModel(velocity, sk.Flow(), "flow-to-data")  # is told 1 − t
    assert torch.allclose(denoising_loss(model, x1, 1 - t, noise_), matched, rtol=1e-12)
    straight = (velocity((1 - t[:, None]) * x1 + t[:, None] * noise_, t) - (noise_ - x1)).square().mean(1)
    assert torch.allclose(denoising_loss(sk.ScoreModel(velocity, sk.Flow(), "flow"), x1, t, noise_), straight)


def test_torchcfm_draws_the_same_pairs_and_targets():
    cfm = pytest.importorskip("torchcfm.conditional_flow_matching")
    noise_, x1 = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t, x, u = cfm.ConditionalFlowMatcher(sigma=0.0).sample_location_and_conditional_flow(noise_, x1)
    model = sk.ScoreModel(lambda y, s: torch.zeros_like(y), sk.Flow(), "flow-to-data")
    assert torch.allclose(sk.Flow().perturb(x1, 1 - t, noise_), x, atol=1e-6)
    assert torch.allclose(denoising_loss(model, x1, 1 - t, noise_), u.square().mean(1), rtol=1e-5)
