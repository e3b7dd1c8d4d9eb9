"""The statistics of a model that DPM-Solver-v3 works with: closed forms, estimates, files."""

import math

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from test_dpm_v3 import MEAN, VARIANCE, TimeNet, gaussian_coefficients, knots_of, noise, over_processes, wavy

import sdekit as sk
from sdekit.solvers import Statistics
from sdekit.targets import Gaussian
from sdekit.testing import laws, simgpu


@over_processes
def test_gaussian_data_have_the_closed_form(process):
    """f = −l m is the same for every x, so that s = 0 and b = −l' m, but for the spline's error in l' times y = x/α."""
    target = Gaussian(MEAN, torch.diag(VARIANCE)).double()
    statistics = sk.solvers.fit_statistics(target.model(process), target.sample(4), knots=20)
    linear, slope = gaussian_coefficients(process, statistics.half_log_snr)
    assert torch.allclose(statistics.linear, linear, rtol=0, atol=1e-10)
    assert (statistics.scaling == 0).all()
    at = statistics.half_log_snr.numpy()
    error = (slope - torch.from_numpy(CubicSpline(at, linear.numpy()).derivative()(at))).abs()
    y = MEAN.abs() + 2 * (1 + torch.exp(-2 * statistics.half_log_snr)).sqrt()[:, None]  # a mean of 4, to 4 deviations
    assert ((statistics.bias + slope * MEAN).abs() <= error * y + 1e-9).all()


def one_step_error(process, statistics):
    target = Gaussian(MEAN, torch.diag(VARIANCE)).double()
    start = process.prior_std * torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = target.flow_map(start, process.t_max, process.t_min, process)
    solver = statistics.solver(order=1, corrector="none")
    x = sk.sample(target.model(process), (20, 2), solver=solver, steps=1, start=start, final="none").x
    return (x - exact).abs().max().item()


@over_processes
def test_one_step_is_exact_on_gaussian_data(process):
    at = knots_of(process, 3000)
    linear, slope = gaussian_coefficients(process, at)
    assert one_step_error(process, Statistics(process, at, linear, 0 * linear, -slope * MEAN)) < 1e-10


def test_the_splines_are_of_fourth_order_at_least():
    process, target, errors = sk.VP(), Gaussian(MEAN, torch.diag(VARIANCE)).double(), {}
    for knots in (120, 240):
        at = knots_of(process, knots)
        linear, slope = gaussian_coefficients(process, at)
        errors[knots] = one_step_error(process, Statistics(process, at, linear, 0 * linear, -slope * MEAN))
    assert math.log2(errors[120] / errors[240]) > 3.7
    fitted = sk.solvers.fit_statistics(target.model(process), target.sample(4), knots=60)
    assert one_step_error(process, fitted) < 1e-4  # its b has the spline's slope in it


def exact_regression(process, half_log_snr):
    """l, s and b of the laws' mixture at one λ: averages over x by quadrature, f' by a difference along the ODE."""
    step = 1e-4
    knots = [process.knot_at(half_log_snr + k * step) for k in (-1, 0, 1)]
    model, here = laws._mixture().model(process), knots[1]
    std = math.hypot(0.35 * here.alpha, here.sigma)
    x = np.linspace(-2 * here.alpha - 9 * std, 2 * here.alpha + 9 * std, 20001)
    density = sum(
        weight * np.exp(-(((x - here.alpha * mean) / std) ** 2) / 2) for mean, weight in zip(laws._MEANS, laws._WEIGHTS)
    )
    density /= density.sum()

    def eps(x, knot):
        return model.eps(torch.from_numpy(x)[:, None], knot.t)[:, 0].numpy()

    kappas = [knot.sigma / knot.alpha for knot in knots]
    ends = [knot.alpha * (x / here.alpha + (k - kappas[1]) * eps(x, here)) for knot, k in zip(knots, kappas)]
    rate = (eps(ends[2], knots[2]) - eps(ends[0], knots[0])) / (2 * step)

    def linear(knot):
        slope = (eps(x + 1e-4, knot) - eps(x - 1e-4, knot)) / 2e-4
        weights = np.gradient(laws._distribution(x, knot.t, process), x)
        return knot.sigma * (weights / weights.sum() @ slope)

    l, slope = linear(here), (linear(knots[2]) - linear(knots[0])) / (2 * step)  # noqa: E741
    y = x / here.alpha
    f = kappas[1] * eps(x, here) - l * y
    change = kappas[1] * ((l - 1) * eps(x, here) + rate) - slope * y  # eq. 62
    mean, mean_change = density @ f, density @ change
    s = (density @ (f * change) - mean * mean_change) / (density @ f**2 - mean**2)
    return l, s, mean_change - s * mean


def test_the_fit_is_the_regression_and_its_error_falls_with_the_samples():
    process, mixture = laws._PROCESS, laws._mixture()
    places = [8, 12, 14]
    truth = np.array([exact_regression(process, float(knots_of(process, 17)[place])) for place in places])
    errors = []
    for n in (128, 2048):
        found = [
            sk.solvers.fit_statistics(mixture.model(process), mixture.sample(n, seed=seed), knots=17, seed=seed)
            for seed in range(4)
        ]
        values = [
            [[float(v[place, 0]) for v in (one.linear, one.scaling, one.bias)] for place in places] for one in found
        ]
        errors.append(np.sqrt(np.mean((np.array(values) - truth) ** 2, axis=(0, 1))))
    assert (errors[1] < 0.1).all()
    assert (errors[0] / errors[1] > 2).all()
    assert (errors[0] / errors[1] < 8).all()  # √16 = 4


def test_batches_and_conditions_change_nothing():
    def net(x, t, shift):
        return torch.sin(x + shift[:, None]) * t[:, None]

    model, data = sk.ScoreModel(net, sk.VP()), noise(10, 3)
    whole, parts = (
        sk.solvers.fit_statistics(model, data, knots=5, batch_size=size, shift=torch.arange(10) / 10)
        for size in (None, 4)
    )
    assert model.nfe == 2 * 5 * (1 + 3)
    for name in ("linear", "scaling", "bias"):
        assert torch.allclose(getattr(whole, name), getattr(parts, name), rtol=1e-9, atol=1e-9)


def test_progress_is_shown_on_stderr(capsys):
    sk.solvers.fit_statistics(sk.ScoreModel(lambda x, t: x, sk.VP()), noise(4, 2), knots=4, progress=True)
    assert "statistics" in capsys.readouterr().err


def test_a_shape_draws_the_samples_from_the_model():
    model = Gaussian(MEAN, torch.diag(VARIANCE)).model(sk.VP())
    own = sk.sample(model, (6, 2), solver="dpmpp-2m", nfe=200, seed=3).x
    drawn, given = (sk.solvers.fit_statistics(model, data, knots=5, seed=3) for data in ((6, 2), own))
    assert torch.equal(drawn.bias, given.bias)


def test_a_network_with_fused_attention_is_fitted():
    """The fused operation has no forward mode."""

    def net(x, t):
        return torch.nn.functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]

    assert sk.solvers.fit_statistics(sk.ScoreModel(net, sk.VP()), noise(3, 4, 8), knots=4).event == (4, 8)


def test_a_fit_on_the_simulated_device():
    data = noise(6, 2, dtype=torch.float32)
    here = sk.solvers.fit_statistics(sk.ScoreModel(TimeNet(torch.float32), sk.VP()), data, knots=4)
    with simgpu.device() as gpu:
        model = sk.ScoreModel(TimeNet(torch.float32).to(gpu.device), sk.VP())
        there = sk.solvers.fit_statistics(model, data, knots=4)
    assert torch.equal(here.linear, there.linear)
    assert torch.equal(here.bias, there.bias)


def test_they_are_kept_in_a_file(tmp_path):
    for process in (sk.VP(t_min=0.01), sk.DiscreteVP()):
        statistics = wavy(process)
        statistics.save(tmp_path / "kept.safetensors")
        again = Statistics.load(tmp_path / "kept.safetensors")
        assert again.process == process
        for name in ("half_log_snr", "linear", "scaling", "bias"):
            assert torch.equal(getattr(again, name), getattr(statistics, name))
