import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import nn

import sdekit as sk
from sdekit.training import (
    TIME_SAMPLERS,
    Checkpoint,
    Denoising,
    Optimisation,
    batch_rows,
    denoising_loss,
    fit,
    lerp_weights,
    stratified,
    train_denoiser,
)
from sdekit.training.denoiser import drop_labels

PROCESSES = [sk.VP(), sk.SubVP(), sk.VE(), sk.CosineVP(), sk.DiscreteVP.linear(100), sk.Flow()]

MIDPOINTS = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000  # a quadrature rule over u


def kind(process):
    return type(process).__name__


def residual_std(process, predicts, t, s):
    """Standard deviation of a x0 + b eps given x_t, for x0 ~ N(0, s²): eps = (x − α x0)/σ, and x0 | x_t is Gaussian."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    table = {
        "eps": (0, 1),
        "x0": (1, 0),
        "score": (0, -1 / sigma),
        "v": (-sigma, alpha),
        "flow": (process.alpha_rate(t), process.sigma_rate(t)),
    }
    a, b = table[predicts]
    return abs(a - b * alpha / sigma) * s * sigma / math.sqrt(alpha**2 * s**2 + sigma**2)


@pytest.mark.parametrize("predicts", ["eps", "x0", "score", "v", "flow"])
@pytest.mark.parametrize("process", [sk.VP(), sk.SubVP(), sk.VE(), sk.Flow()], ids=kind)
def test_the_exact_network_has_the_loss_that_gaussian_data_leave(process, predicts):
    s, t, n = 0.7, 0.4, 40_000
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, n, 1, generator=generator, dtype=torch.float64)
    target = sk.ScoreModel(lambda x, t: x, process, "x0")  # only its process and conversions are used
    alpha, sigma = process.alpha(t), process.sigma(t)
    gain = alpha * s**2 / (alpha**2 * s**2 + sigma**2)  # E[x0 | x] = gain · x

    def exact(x, times):
        return getattr(sk.ScoreModel(lambda x, t: gain * x, target.process, "x0"), predicts)(x, t)

    losses = denoising_loss(
        sk.ScoreModel(exact, process, predicts), s * x0, torch.full((n,), t, dtype=torch.float64), eps
    )
    expected = residual_std(process, predicts, t, s) ** 2
    # the loss is expected · χ²₁, whose standard deviation is √2
    assert abs(losses.mean().item() / expected - 1) < 4 * math.sqrt(2 / n)


def test_the_loss_passes_conditions_and_averages_over_the_event():
    seen = {}

    def net(x, t, label):
        seen["label"] = label
        return torch.zeros_like(x)

    eps = torch.stack([torch.full((2, 3), 1.0), torch.full((2, 3), 3.0)])
    losses = denoising_loss(sk.ScoreModel(net, sk.VP()), torch.zeros(2, 2, 3), torch.tensor([0.2, 0.8]), eps, label=7)
    assert seen == {"label": 7}
    assert losses.tolist() == [1.0, 9.0]


@pytest.mark.parametrize("process", PROCESSES, ids=kind)
def test_uniform_times_estimate_the_mean_over_time(process):
    t, weights = TIME_SAMPLERS["uniform"](process, MIDPOINTS)
    truth = quad(lambda t: math.cos(3 * t), process.t_min, process.t_max)[0] / (process.t_max - process.t_min)
    assert abs((weights * (3 * t).cos()).mean().item() - truth) < 1e-7


@pytest.mark.parametrize("process", PROCESSES, ids=kind)
def test_importance_times_estimate_the_likelihood_weighting(process):
    t, weights = TIME_SAMPLERS["importance"](process, MIDPOINTS)

    def integrand(t):
        return 0.5 * (process.diffusion(t) / process.sigma(t)) ** 2 * math.cos(3 * t)

    if isinstance(process, sk.DiscreteVP):  # g jumps at the table's knots: integrate piece by piece
        knots = [n / process.steps for n in range(1, process.steps + 1)]
    else:
        knots = [process.t_min, 0.01, 0.05, 0.3, 0.9, process.t_max]
    inside = [(a + 1e-12, b - 1e-12) for a, b in zip(knots, knots[1:])]
    truth = sum(quad(integrand, a, b, epsabs=1e-10)[0] for a, b in inside)
    assert abs((weights * (3 * t).cos()).mean().item() / truth - 1) < 1e-6


@given(st.integers(1, 50), st.integers(0, 2**40), st.integers(0, 10_000))
def test_stratified_numbers_fall_one_in_each_cell(count, seed, step):
    u = stratified(count, seed, step)
    assert ((u >= 0) & (u <= 1)).all()
    assert ((u * count - torch.arange(count)).double() > -1e-4).all()
    assert ((u * count - torch.arange(count)).double() < 1 + 1e-4).all()


def test_the_offset_of_stratified_numbers_is_uniform():
    offsets = torch.cat([stratified(1, 0, step) for step in range(2000)]).sort().values
    # Kolmogorov–Smirnov: P(D > 1.95/√n) = 0.001
    assert (offsets - (torch.arange(2000) + 0.5) / 2000).abs().max() < 1.95 / math.sqrt(2000)


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 1000))
def test_batches_run_through_one_permutation_after_another(count, batch, seed):
    steps = -(-3 * count // batch)
    rows = torch.cat([batch_rows(count, batch, seed, step) for step in range(steps)])
    for epoch in range(3):
        assert rows[epoch * count : (epoch + 1) * count].sort().values.tolist() == list(range(count))


def test_two_epochs_have_different_orders():
    assert not torch.equal(batch_rows(100, 100, 0, 0), batch_rows(100, 100, 0, 1))
    assert not torch.equal(batch_rows(100, 100, 0, 0), batch_rows(100, 100, 1, 0))


@given(st.floats(0, 1), st.integers(1, 20))
def test_the_average_of_constant_weights_approaches_them_geometrically(decay, steps):
    average = [torch.zeros(1, dtype=torch.float64)]
    for _ in range(steps):
        lerp_weights(average, [torch.ones(1, dtype=torch.float64)], decay)
    assert abs(average[0].item() - (1 - decay**steps)) < 1e-12


def test_the_learning_rate_warms_up_and_ends_near_zero():
    plan = Optimisation(steps=1000, lr=1.0, warmup=10)
    assert plan.lr_at(0) == pytest.approx(0.1)
    assert plan.lr_at(500) == pytest.approx(0.5)
    assert plan.lr_at(999) == pytest.approx((math.pi / 2000) ** 2, rel=1e-4)


def test_labels_are_dropped_with_the_stated_probability():
    task = Denoising(label_dropout=0.3, null_label=10)
    dropped = drop_labels(torch.zeros(10_000, dtype=torch.int64), task, step=5) == 10
    assert abs(dropped.double().mean().item() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 10_000)


class LogisticGain(nn.Module):
    """x0 = sigmoid(a λ + b) x: contains E[x0 | x] of N(0, s²) data under VE, where a = 2 and b = 2 log s."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(0.0))

    def forward(self, x, half_log_snr):
        return torch.sigmoid(self.a * half_log_snr + self.b)[:, None] * x


@pytest.mark.filterwarnings("ignore::sdekit.misfit.MisfitWarning")  # its blur at t_min is a tenth of the data's spread
@pytest.mark.parametrize("times", ["uniform", "importance"])
def test_training_finds_the_denoiser_of_gaussian_data(times):
    s = 1.5
    data = s * torch.randn(20_000, 4, generator=torch.Generator().manual_seed(1))
    task = Denoising(predicts="x0", times=times, batch=512)
    process = sk.VE(0.2, 10.0)
    model = train_denoiser(LogisticGain(), process, data, task=task, plan=Optimisation(600, lr=0.05, ema=0.98))
    s = data.square().mean().sqrt().item()
    assert model.net.a.item() == pytest.approx(2, abs=0.05)
    assert model.net.b.item() == pytest.approx(2 * math.log(s), abs=0.05)


def test_fit_returns_the_average_and_trains_the_network_in_place():
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    average = fit(net, lambda net, step: -net.weight.sum(), Optimisation(5, lr=1.0, warmup=1, ema=0.5), {})
    plan = Optimisation(5, lr=1.0, warmup=1, ema=0.5)
    weight, mean = 0.0, 0.0
    for step in range(5):
        weight += plan.lr_at(step)  # Adam's step under a constant gradient is the learning rate
        decay = min(0.5, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * weight
    assert net.weight.item() == pytest.approx(weight, rel=1e-5)
    assert average.weight.item() == pytest.approx(mean, rel=1e-5)


def test_an_empty_data_set_and_unknown_names_are_refused():
    with pytest.raises(ValueError, match="empty"):
        train_denoiser(LogisticGain(), sk.VE(), torch.zeros(0, 4))
    with pytest.raises(ValueError, match="did you mean 'importance'"):
        train_denoiser(LogisticGain(), sk.VE(), torch.zeros(3, 4), task=Denoising(times="importanse"))


def test_a_damaged_checkpoint_and_one_of_another_run_are_refused(tmp_path):
    path = tmp_path / "run.ckpt"
    data = torch.ones(8, 4)
    short, long = Optimisation(2, lr=0.1), Optimisation(3, lr=0.1)
    train_denoiser(LogisticGain(), sk.VE(), data, plan=short, checkpoint=Checkpoint(path, every=0))
    with pytest.raises(ValueError, match="another run"):
        train_denoiser(LogisticGain(), sk.VE(), data, plan=long, checkpoint=Checkpoint(path))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="delete it"):
        train_denoiser(LogisticGain(), sk.VE(), data, plan=short, checkpoint=Checkpoint(path))


RUN = """
import sys, time, torch
from pathlib import Path
from sdekit.nn import UNet
from sdekit.process import VP
from sdekit.training import Checkpoint, Denoising, Optimisation, train_denoiser

torch.set_num_threads(1)
torch.default_generator.manual_seed(0)  # a script may; the library does not
net = UNet(widths=(8, 8), embedding=8, groups=2, classes=3)
images = torch.linspace(-1, 1, 40 * 16).sin().reshape(40, 1, 4, 4)
labels = torch.arange(40) % 3
task = Denoising(batch=16, label_dropout=0.5, null_label=3)
checkpoint = Checkpoint(Path(sys.argv[1]), every=0)
if len(sys.argv) > 3:  # slow enough to be caught in the middle, and the same network to the checkpoint
    step = torch.optim.Adam.step
    torch.optim.Adam.step = lambda self: (time.sleep(0.02), step(self))[1]
model = train_denoiser(net, VP(), images, labels, task, Optimisation(60, lr=1e-2), checkpoint)
torch.save({"net": net.state_dict(), "average": model.net.state_dict()}, sys.argv[2])
"""


def start(checkpoint: Path, result: Path, *slow: str) -> subprocess.Popen:
    command = [sys.executable, "-c", RUN, str(checkpoint), str(result), *slow]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def stop_in_the_middle(checkpoint: Path, result: Path, number: int) -> tuple[int, str]:
    process = start(checkpoint, result, "slow")
    deadline = time.monotonic() + 120
    while not (checkpoint.exists() and torch.load(checkpoint, weights_only=True)["step"] >= 7):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert not result.exists(), "it had finished before it was stopped"
    return process.returncode, errors


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = start(folder / "run.ckpt", folder / "result.pt")
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return torch.load(folder / "result.pt", weights_only=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_a_stopped_run_ends_with_the_bits_of_one_that_was_not(tmp_path, uninterrupted, number):
    checkpoint, result = tmp_path / "run.ckpt", tmp_path / "result.pt"
    code, errors = stop_in_the_middle(checkpoint, result, number)
    assert code != 0
    if number == signal.SIGINT:
        assert "KeyboardInterrupt" in errors
    step = torch.load(checkpoint, weights_only=True)["step"]
    assert 7 <= step < 60
    process = start(checkpoint, result)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    resumed = torch.load(result, weights_only=True)
    for part, weights in uninterrupted.items():
        for name, tensor in weights.items():
            assert torch.equal(tensor, resumed[part][name]), (part, name)
