"""Few-step models, held to the Gaussian: there a student's table, the flow and its mean velocity are known."""

import math

import pytest
import torch
from torch import Tensor, nn

import sdekit as sk
from sdekit.training import (
    Batches,
    MeanFlow,
    Optimisation,
    mean_flow_loss,
    mean_flow_steps,
    pairs,
    train_mean_flow,
    train_progressive,
    train_reflow,
    two_steps,
)
from sdekit.training.progressive import ddim_step, prediction_loss

S = 0.7
PROCESSES = [sk.VP(), sk.SubVP(), sk.VE(0.01, 20.0), sk.CosineVP(), sk.Flow(), sk.EDM(t_max=20.0)]
each = pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)


def mixture() -> sk.targets.GaussianMixture:
    return sk.targets.GaussianMixture(torch.tensor([[-1.0, 0.5], [0.8, -0.2]]).double(), 0.3)


@each
def test_the_students_step_is_two_of_the_teachers(process):
    """The x_0 that ``two_steps`` gives, sampled with DDIM in n steps, ends where the teacher's 2 n steps end."""
    teacher, n = mixture().model(process), 5
    fine = sk.solvers.get("ddim").plan(process, steps=2 * n, grid="logsnr", final="none")
    times = torch.tensor([fine.start.t, *(row.to.t for row in fine.rows)], dtype=torch.float64)

    def target(x: Tensor, t: Tensor) -> Tensor:
        first = (times - t[0]).abs().argmin()
        t, between, s = (times[first + i].expand(len(x)) for i in range(3))
        return two_steps(teacher, x, t, between, s)

    student = sk.ScoreModel(target, process, "x0", lambda process, t: t)
    start = process.sigma(process.t_max) * torch.randn(20, 2, generator=torch.Generator().manual_seed(0)).double()
    options = {"solver": "ddim", "grid": "logsnr", "final": "none", "start": start}
    expected = sk.sample(teacher, (20, 2), steps=2 * n, **options)
    found = sk.sample(student, (20, 2), steps=n, **options)
    assert found.nfe == n
    assert torch.allclose(found.x, expected.x, atol=1e-8)


@each
@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "flow"])
def test_the_loss_is_none_for_the_right_x0_under_every_prediction(process, predicts):
    x0, x = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = process.t_of_half_log_snr(torch.linspace(-2, 2, 9, dtype=torch.float64))
    knows = sk.ScoreModel(lambda x, t: x0, process, "x0", lambda process, t: t)
    model = sk.ScoreModel(lambda x, t: knows.predict(predicts, x, t), process, predicts, lambda process, t: t)
    assert prediction_loss(model, x, t, x0).max() < 1e-20
    assert prediction_loss(model, x, t, x0 + 1).min() > 1e-4


class Gain(nn.Module):
    """x0 = e^{w(λ)} x/√(α² + σ²), w linear between knots in λ: any linear denoiser of VP, whose α² + σ² = 1."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(33))

    def forward(self, x: Tensor, half_log_snr: Tensor) -> Tensor:
        place = ((half_log_snr + 8) * 2).clamp(0, 31.99)
        low = place.long()
        w = torch.lerp(self.w[low], self.w[low + 1], place - low)
        return w.exp()[:, None] * x


def gaussian(n: int) -> Tensor:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(1))
    return S * x / x.square().mean().sqrt()


def test_a_trained_student_ends_where_its_teacher_does():
    process, data = sk.VP(), gaussian(4000)
    of_data = sk.targets.Gaussian(torch.zeros(4), S**2 * torch.eye(4)).model(process)
    net = Gain()
    levels = torch.linspace(-8, 8, 33)
    alpha, sigma = torch.sigmoid(2 * levels).sqrt(), torch.sigmoid(-2 * levels).sqrt()
    net.w.data = (alpha * S**2 / (alpha**2 * S**2 + sigma**2)).log()  # the teacher is exact, but between knots
    teacher = sk.ScoreModel(net, process, "x0", "half-log-snr")
    start = torch.randn(64, 4, generator=torch.Generator().manual_seed(2)) * process.sigma(process.t_max)
    options = {"solver": "ddim", "grid": "logsnr", "final": "none", "start": start}
    plan = Optimisation(400, lr=0.03, ema=0.95)
    student = train_progressive(teacher, data, steps=4, grid="logsnr", task=Batches(batch=256), plan=plan)
    four = sk.sample(student, (64, 4), steps=4, **options).x
    eight = sk.sample(teacher, (64, 4), steps=8, **options).x
    untaught = sk.sample(teacher, (64, 4), steps=4, **options).x
    off = (four - eight).norm() / eight.norm()
    assert off < 0.1 * (untaught - eight).norm() / eight.norm()
    exact = sk.sample(of_data, (64, 4), steps=8, **options).x
    assert (eight - exact).norm() < 0.02 * exact.norm()  # the teacher was what it is called
    assert torch.equal(teacher.net.w, net.w)  # and is left as it was


@each
def test_pairs_are_starts_and_the_ends_of_the_flow(process):
    target = sk.targets.Gaussian(torch.zeros(2).double(), S**2 * torch.eye(2).double())
    x0, eps = pairs(target.model(process), (2000, 2), seed=3)
    last = process.knot(process.t_max)
    # x/√(α² s² + σ²) is constant along the flow, which begins at σ ε
    expected = S * last.sigma / math.hypot(last.alpha * S, last.sigma) * eps
    assert torch.allclose(x0, expected, atol=2e-2)
    assert eps.std().item() == pytest.approx(1, abs=0.05)
    again, _ = pairs(target.model(process), (2000, 2), seed=3, batch_size=300)
    assert torch.allclose(again, x0, atol=1e-5)


def test_one_step_follows_a_reflowed_path():
    """Pairs of a Gaussian lie on lines through 0: E[ε | x_t] is known, and one DDIM step ends where the flow does."""
    process, target = sk.VP(), sk.targets.Gaussian(torch.zeros(4), S**2 * torch.eye(4))
    x0, eps = pairs(target.model(process), (4000, 4))
    model = sk.ScoreModel(Gain(), process, "x0", "half-log-snr")
    plan = Optimisation(600, lr=0.05, ema=0.95)
    flown = train_reflow(model, x0, eps, times="importance", task=Batches(batch=256), plan=plan)
    start = torch.randn(50, 4, generator=torch.Generator().manual_seed(2)) * process.sigma(process.t_max)
    one = sk.sample(flown, (50, 4), solver="ddim", steps=1, final="none", start=start).x
    end = sk.sample(target.model(process), (50, 4), solver="dpm-solver-3", nfe=60, final="none", start=start).x
    assert (one - end).norm() < 0.03 * end.norm()
    before = sk.sample(target.model(process), (50, 4), solver="ddim", steps=1, final="none", start=start).x
    assert (before - end).norm() > 0.5 * end.norm()


@each
def test_a_ddim_step_is_the_registrys(process):
    model = mixture().model(process)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).double()
    t, s = process.t_of_half_log_snr(torch.tensor([-0.5, 1.0], dtype=torch.float64)).tolist()
    ends = sk.sample(model, (3, 2), solver="ddim", grid=[t, s], final="none", start=x).x
    one = ddim_step(model, x, torch.full((3,), t).double(), torch.full((3,), s).double())
    assert torch.allclose(one, ends, atol=1e-12)


def std(s: Tensor | float, t: Tensor) -> Tensor:
    return ((1 - t) ** 2 * s**2 + t**2).sqrt()


class Mean(nn.Module):
    """The mean velocity of the flow to N(0, s²): u = x (1 − std(r)/std(t))/(t − r), and its limit x std'(t)/std(t)."""

    def __init__(self, s: float) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.tensor(s, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, end: Tensor) -> Tensor:
        apart = (t - end).abs() > 1e-3
        gap = torch.where(apart, t - end, 1.0)
        chord = (1 - std(self.s, end) / std(self.s, t)) / gap
        tangent = (t - (1 - t) * self.s**2) / std(self.s, t) ** 2
        return torch.where(apart, chord, tangent)[:, None] * x


def test_the_mean_velocity_of_a_gaussian_is_where_the_loss_has_no_slope():
    n, s = 100_000, 0.7
    x0, eps = torch.randn(2, n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.linspace(0.05, 0.95, n, dtype=torch.float64)
    r = t * torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    slopes = []
    for guess in (0.7, 0.9):
        net = Mean(guess)
        model = sk.ScoreModel(net, sk.Flow(), "flow")
        losses = mean_flow_loss(model, s * x0, t, r, eps)
        (slope,) = torch.autograd.grad(losses.mean(), net.s)
        parts = torch.stack([torch.autograd.grad(mean_flow_loss(model, s * x0[i::50], t[i::50], r[i::50], eps[i::50])
                                                 .mean(), net.s)[0] for i in range(50)])  # fmt: skip
        slopes.append((slope.item(), parts.std().item() / math.sqrt(50)))
    assert abs(slopes[0][0]) < 4 * slopes[0][1]
    assert slopes[1][0] > 10 * slopes[1][1]


@pytest.mark.parametrize("nfe", [1, 2, 5])
def test_any_number_of_steps_ends_in_the_data(nfe):
    model = sk.ScoreModel(Mean(0.7), sk.Flow(t_min=0.001, t_max=0.999), "flow")
    start = torch.randn(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(mean_flow_steps(model, start, nfe), 0.7 * start, rtol=1e-3)
    out = sk.sample(model, (4000, 2), solver="consistency", nfe=nfe, seed=0, end=torch.zeros(4000).double())
    assert out.x.std().item() == pytest.approx(0.7, rel=0.03)


def test_training_finds_the_mean_velocity():
    data = gaussian(4000).double()
    model = sk.ScoreModel(Mean(1.5), sk.Flow(), "flow")
    for power in (0.0, 1.0):
        task = MeanFlow(power=power, batch=256)
        found = train_mean_flow(model, data, task=task, plan=Optimisation(600, lr=0.01, ema=0.95))
        assert found.net.s.item() == pytest.approx(S, rel=0.02)
    with pytest.raises(ValueError, match="a mean velocity is one of Flow"):
        mean_flow_steps(sk.ScoreModel(Mean(1.0), sk.VP(), "v"), data, 2)


def test_bad_input_is_a_sentence():
    model = sk.ScoreModel(Gain(), sk.VP(), "x0", "half-log-snr")
    with pytest.raises(ValueError, match="eps has shape"):
        train_reflow(model, torch.zeros(4, 2), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="unknown grid"):
        train_progressive(model, torch.zeros(4, 2), grid="logsnrr")
    plain = sk.ScoreModel(lambda x, t: x, sk.VP())
    with pytest.raises(ValueError, match=r"only an nn\.Module can be trained"):
        train_progressive(plain, torch.zeros(4, 2))
