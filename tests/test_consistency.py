"""Consistency models, held to the Gaussian, whose consistency function is known: f(x, t) = s x/√(α² s² + σ²)."""

import math

import pytest
import torch
from torch import Tensor, nn

import sdekit as sk
from sdekit.training import Consistency, Optimisation, consistency_loss, train_consistency
from sdekit.training.consistency import earlier

S = 0.7
PROCESSES = [sk.VP(), sk.SubVP(), sk.VE(0.01, 20.0), sk.Flow(), sk.EDM(t_max=20.0)]
each = pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
PREDICTS = ["eps", "x0", "v", "flow"]


def of_x0(process: sk.Process, predicts: str, x0: sk.ScoreModel) -> sk.ScoreModel:
    """The model whose x_0 is that of ``x0``, by another prediction."""
    return sk.ScoreModel(lambda x, t: x0.predict(predicts, x, t), process, predicts, lambda process, t: t)


def exact(process: sk.Process, predicts: str = "x0") -> sk.ScoreModel:
    def f(x: Tensor, t: Tensor) -> Tensor:
        return (S / (process.alpha(t) ** 2 * S**2 + process.sigma(t) ** 2).sqrt())[:, None] * x

    return of_x0(process, predicts, sk.ScoreModel(f, process, "x0", lambda process, t: t))


def teacher(process: sk.Process) -> sk.ScoreModel:
    return sk.targets.Gaussian(torch.zeros(3).double(), S**2 * torch.eye(3).double()).model(process)


def drawn(process: sk.Process, n: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    x0, eps = torch.randn(2, n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels = torch.linspace(-1.5, 1.5, n, dtype=torch.float64)
    return S * x0, process.t_of_half_log_snr(levels), eps


@each
@pytest.mark.parametrize("predicts", PREDICTS)
def test_the_exact_function_has_no_loss_against_an_exact_teacher_but_its_step(process, predicts):
    x0, t, eps = drawn(process)
    losses = []
    for stage in (8, 9):  # the pairs of the second half as wide: Heun's step leaves an eighth, the gap a half
        r = earlier(process, t, stage)
        losses.append(consistency_loss(exact(process, predicts), x0, t, r, eps, teacher(process)).mean().item())
    assert losses[0] < 2e-3
    assert losses[0] / losses[1] == pytest.approx(4, rel=0.1)


@each
def test_another_function_has_a_loss_that_stays(process):
    x0, t, eps = drawn(process)
    denoiser = of_x0(process, "x0", teacher(process))
    for stage in (8, 9):
        assert consistency_loss(denoiser, x0, t, earlier(process, t, stage), eps, teacher(process)).mean() > 0.05


@each
def test_pairs_narrow_by_half_a_stage_and_end_in_the_data(process):
    t = process.t_of_half_log_snr(torch.linspace(-2, 2, 9, dtype=torch.float64))
    ratio = (-process.half_log_snr(t)).exp()
    for stage in (4, 5, 9):
        r = earlier(process, t, stage)
        gap = ratio - (-process.half_log_snr(r)).exp()
        expected = ratio * (1 + 8 / (1 + ratio.exp())) / 2**stage
        assert torch.allclose(gap, expected, rtol=1e-6)
    first = earlier(process, t, 1)
    assert (first[ratio < 1] == 0).all()  # n(κ)/2 > 1


def test_at_the_data_the_target_is_the_data_or_where_the_teacher_ends():
    process, (x0, t, eps) = sk.VP(), drawn(sk.VP())
    at_data, zero = torch.zeros_like(t), sk.ScoreModel(lambda x, t: torch.zeros_like(x), sk.VP(), "x0")
    ratio = (-process.half_log_snr(t)).exp()
    found = consistency_loss(zero, x0, t, at_data, eps)
    assert torch.allclose(found, x0.norm(dim=1) / (math.sqrt(3) * ratio))
    ends = teacher(process).x0(process.perturb(x0, t, eps), t)  # x̂ − κ ε = x_0: one Euler step to κ = 0
    found = consistency_loss(zero, x0, t, at_data, eps, teacher(process))
    assert torch.allclose(found, ends.norm(dim=1) / (math.sqrt(3) * ratio))


@each
@pytest.mark.parametrize("nfe", [1, 2, 4])
def test_the_registry_samples_the_exact_function_in_any_number_of_steps(process, nfe):
    n = 40_000
    out = sk.sample(exact(process), (n, 3), solver="consistency", nfe=nfe, grid="logsnr", seed=0)
    assert out.nfe == nfe
    start, last = process.knot(process.t_max), process.knot(process.t_min)
    # one step maps N(0, σ²), without α x_0; later ones add the noise κ² − κ_min² to the data, and know of κ²
    kappa, least = start.sigma / start.alpha, last.sigma / last.alpha
    std = S * kappa / math.hypot(S, kappa)
    for i in range(1, nfe):
        level = start.half_log_snr + (last.half_log_snr - start.half_log_snr) * i / nfe
        std = S * math.sqrt((std**2 + math.exp(-2 * level) - least**2) / (S**2 + math.exp(-2 * level)))
    assert out.x.std().item() == pytest.approx(std, rel=4 / math.sqrt(6 * n))


class RootGain(nn.Module):
    """x0 = √sigmoid(a λ + b) x: under VE the consistency function of N(0, s²) at a = 2, b = 2 log s."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor, half_log_snr: Tensor) -> Tensor:
        return torch.sigmoid(self.a * half_log_snr + self.b).sqrt()[:, None] * x


@pytest.mark.parametrize("distilled", [False, True])
def test_training_and_distillation_find_the_function_of_gaussian_data(distilled):
    process, s = sk.VE(0.02, 20.0), 1.5
    data = s * torch.randn(20_000, 4, generator=torch.Generator().manual_seed(1))
    s = data.square().mean().sqrt().item()
    model = sk.ScoreModel(RootGain(), process, "x0", "half-log-snr")
    of_data = sk.targets.Gaussian(torch.zeros(4), s**2 * torch.eye(4)).model(process)
    task = Consistency("log-normal(mean=0.5, std=1.2)", stages=8, batch=512)
    plan = Optimisation(500, lr=0.03, ema=0.98)
    net = train_consistency(model, data, task=task, plan=plan, teacher=of_data if distilled else None).net
    ratios = torch.tensor([0.1, 0.5, 1.5, 5.0])
    expected = s / (s**2 + ratios**2).sqrt()
    assert torch.allclose(net(torch.ones(4, 1), -ratios.log())[:, 0], expected, rtol=0.03)
    assert model.net.a.item() == 1.5  # the model given is left as it was


def test_it_takes_bad_input_in_a_sentence():
    plain = sk.ScoreModel(lambda x, t: x, sk.VP(), "v")
    with pytest.raises(ValueError, match=r"only an nn\.Module can be trained"):
        train_consistency(plain, torch.zeros(3, 4))
    model = sk.ScoreModel(RootGain(), sk.VP(), "v", "half-log-snr")
    with pytest.raises(ValueError, match="did you mean 'log-normal'"):
        train_consistency(model, torch.zeros(3, 4), task=Consistency(times="log-normals"))
    with pytest.raises(ValueError, match="std=-1 is not a number"):
        train_consistency(model, torch.zeros(3, 4), task=Consistency(times="log-normal(std=-1)"))
