"""Log densities and bounds against distributions whose density is known."""

import math

import pytest
import torch
from scipy import stats

import sdekit as sk
from sdekit.data import DIGITS, Quantization
from sdekit.likelihood import Spread, elbo, log_prob, measure
from sdekit.likelihood.errors import spread_of
from sdekit.testing import simgpu

EXACT = [sk.VP(), sk.SubVP(), sk.VE()]


def gaussian(size):
    generator = torch.Generator().manual_seed(size)
    root = torch.randn(size, size, dtype=torch.float64, generator=generator)
    mean = torch.randn(size, dtype=torch.float64, generator=generator) / 4
    return sk.targets.Gaussian(mean, root @ root.T / size + 0.01 * torch.eye(size))


def mixture(size):
    means = torch.randn(8, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    return sk.targets.GaussianMixture(means, 0.3)


def true_prior(target, process):
    return lambda z: target.log_prob(z, process.t_max, process)


def state(target, process, n):
    return target.sample(n, t=process.t_min, process=process)


@pytest.mark.parametrize("process", EXACT, ids=lambda process: type(process).__name__)
@pytest.mark.parametrize("make", [gaussian, mixture])
@pytest.mark.parametrize("size", [2, 64])
def test_exact_trace_gives_the_true_density(make, size, process):
    target = make(size)
    x = state(target, process, 4)
    model, prior = target.model(process), true_prior(target, process)
    unit = size * math.log(2)
    single = log_prob(model, x.float(), divergence="exact", chunk_size=64, prior=prior)
    truth = target.log_prob(x.float().double(), process.t_min, process)
    assert ((single.nats - truth).abs() / unit).max() < 1e-4
    double = log_prob(model, x, divergence="exact", chunk_size=64, prior=prior, rtol=1e-10, atol=1e-10)
    error = (double.nats - target.log_prob(x, process.t_min, process)).abs()
    assert (error / unit).max() < 1e-8
    assert (error < 3 * double.stderr.solver).all()


@pytest.mark.parametrize("method", ["per-sample", "fixed", "dopri5", "rk4"])
@pytest.mark.parametrize("variable", ["angle", "half-log-snr", "t"])
def test_every_way_to_integrate(method, variable):
    process, target = sk.VP(), gaussian(3)
    x = state(target, process, 3)
    steps = {"fixed": 60, "rk4": 200}.get(method)
    found = log_prob(
        target.model(process), x, divergence="exact", prior=true_prior(target, process), method=method,
        variable=variable, steps=steps, rtol=1e-7, atol=1e-7,
    )  # fmt: skip
    assert torch.allclose(found.nats, target.log_prob(x, process.t_min, process), atol=3e-4)


@pytest.mark.parametrize("predicts", ["eps", "x0", "score", "v", "flow"])
def test_every_prediction(predicts):
    process, target = sk.Flow(), gaussian(3)
    x = state(target, process, 3)
    model = target.model(process, predicts)
    found = log_prob(model, x, divergence="exact", prior=true_prior(target, process), rtol=1e-8, atol=1e-8)
    assert torch.allclose(found.nats, target.log_prob(x, process.t_min, process), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "divergence", "distribution", "probes", "most"),
    [(gaussian, "hutchinson", "rademacher", 16, 0.97), (gaussian, "hutchinson", "gaussian", 16, 0.97),
     (gaussian, "hutchinson", "sphere", 16, 0.97), (mixture, "hutchinson", "rademacher", 16, 0.97),
     (gaussian, "hutch++", "gaussian", 24, 0.985)],
)  # fmt: skip
def test_the_truth_lies_within_two_standard_errors(make, divergence, distribution, probes, most):
    """500 seeds: 95% of them but for chance, 1%; the skewness of 8 estimates, as hutch++ has, is overstated."""
    process, target = sk.VP(), make(16)
    x = state(target, process, 1).expand(500, 16)
    found = log_prob(
        target.model(process), x, divergence=divergence, probes=probes, distribution=distribution,
        prior=true_prior(target, process), rtol=1e-4, atol=1e-4,
    )  # fmt: skip
    error = found.nats - target.log_prob(x, process.t_min, process)
    inside = (error.abs() < 2 * found.stderr.probes).double().mean().item()
    assert 0.93 <= inside <= most
    assert abs(error.mean()) < 4 * error.std() / 500**0.5


@pytest.mark.parametrize("n", [3, 8, 16])
def test_intervals_of_normal_and_of_skewed_estimates(n):
    """χ² with 8 degrees of freedom has the skewness 1; Student's t alone falls short by what the second term gives."""
    generator = torch.Generator().manual_seed(n)
    normal = torch.randn(40_000, n, 8, dtype=torch.float64, generator=generator)
    student = stats.t.ppf(0.975, n - 1) / 2
    for skewed, estimates in ((False, normal[..., 0]), (True, normal.square().sum(2) - 8)):
        spread = spread_of(estimates)
        assert (spread.plain.square() * n).mean().item() == pytest.approx(16 if skewed else 1, rel=0.05)
        inside = [
            (estimates.mean(1).abs() < 2 * half).double().mean().item()
            for half in (spread.plain * student, spread.calibrated)
        ]
        # what the skewness of normal estimates is found to be, for chance, widens the intervals of few
        assert 0.94 < inside[1] < 0.95 + 0.12 / n
        if skewed:
            assert inside[0] < 0.943
        else:
            assert inside[0] == pytest.approx(0.95, abs=0.004)
    assert spread_of(normal[:, :1, 0]).calibrated.isnan().all()


def test_joined_spreads():
    """Equal parts count as one sample of all the degrees of freedom; a part of no weight does not count."""
    four = Spread(torch.tensor([2.0]), torch.tensor([0.4]))
    both = Spread.join([four, four], torch.full((2, 1), 0.5))
    assert both.plain.item() == pytest.approx(2 / 2**0.5)
    assert both.widening.item() == pytest.approx(0.2)
    alone = Spread.join([four, four], torch.tensor([[1.0], [0.0]]))
    assert alone.calibrated.item() == pytest.approx(four.calibrated.item())
    none = Spread(torch.zeros(1), torch.zeros(1))
    assert Spread.join([none, none], torch.full((2, 1), 0.5)).calibrated.item() == 0


def test_rotation_invariance():
    """The density of turned data under the turned model is the same; standard normals come from the same probes."""
    process, target = sk.VP(), gaussian(4)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))[0]
    turned = sk.targets.Gaussian(turn @ target.location, turn @ _cov(target) @ turn.T)
    x = state(target, process, 3)
    here, there = (
        log_prob(which.model(process), y, divergence="exact", rtol=1e-9, atol=1e-9).nats
        for which, y in ((target, x), (turned, x @ turn.T))
    )
    assert torch.allclose(here, there, rtol=1e-8)


def _cov(target):
    return target.basis @ torch.diag(target.variances) @ target.basis.T


# from the data end a prediction changes from the first step on, so that a lower-order start caps the order
PLANS = {"ddim": 1, "dpmpp-2m": 2, "unipc-2": 3, "unipc-3": 3, "adams-eps(order=3, start='lower-order')": 2}


@pytest.mark.parametrize("method", PLANS)
@pytest.mark.parametrize("process", [sk.VP(t_min=0.02), sk.VE(0.1, 10.0), sk.Flow(0.05, 0.95)], ids=str)
def test_a_solver_of_the_registry_gives_the_density_with_its_order(method, process):
    """Of a mixture, with the exact trace; the spline through the divergences is of order 4."""
    target = mixture(2)
    x = state(target, process, 4)
    truth = target.log_prob(x, process.t_min, process)
    model, prior = target.model(process), true_prior(target, process)
    errors = []
    for steps in (80, 160):
        found = log_prob(model, x, divergence="exact", prior=prior, method=method, steps=steps, grid="logsnr")
        assert found.nfe.tolist() == [steps + 1] * 4
        assert found.stderr.solver.isnan().all()
        errors.append((found.nats - truth).abs().max().item())
    assert errors[1] < 0.1
    assert math.log2(errors[0] / errors[1]) == pytest.approx(PLANS[method], abs=0.3)


def test_a_solver_of_the_registry_with_few_steps_and_several_probes():
    target, process = gaussian(3), sk.VP()
    x = state(target, process, 4)
    model, prior = target.model(process), true_prior(target, process)
    settings = {"probes": 5, "prior": prior, "seed": 2}
    exact = log_prob(model, x, rtol=1e-9, atol=1e-9, **settings)
    found = log_prob(model, x, method="unipc-3", steps=80, grid="vp-time(power=8, blend=0.3)", **settings)
    assert torch.allclose(found.nats, exact.nats, atol=2e-3)
    assert torch.allclose(found.stderr.estimates.plain, exact.stderr.estimates.plain, rtol=0.02)
    for steps in (1, 2, 3):  # too few for a cubic
        assert log_prob(model, x, method="unipc-3", steps=steps, **settings).nats.isfinite().all()


@pytest.mark.parametrize("method", ["per-sample", "dopri5", "unipc-3"])
@pytest.mark.parametrize("make", [gaussian, mixture])
def test_gradient_is_the_score(make, method):
    process, target = sk.VP(), make(3)
    x = state(target, process, 2).requires_grad_()
    found = log_prob(
        target.model(process), x, divergence="exact", prior=true_prior(target, process), gradients="direct",
        method=method, rtol=1e-8, atol=1e-8, steps=200 if method == "unipc-3" else None,
    )  # fmt: skip
    (slope,) = torch.autograd.grad(found.nats.sum(), x)
    truth = target.score(x.detach(), process.t_min, process)
    assert torch.allclose(slope, truth, rtol=1e-3, atol=1e-3 * truth.abs().max().item())


def test_a_sample_depends_on_its_number_alone():
    process, target = sk.VP(), gaussian(3)
    x, model = state(target, process, 5), target.model(process)
    q = Quantization(bins=64, mean=0.5, scale=0.125)
    x = q.values((q.bins * (x.clamp(-3, 3) * q.scale + q.mean)).round().long()).double()
    together = log_prob(model, x, probes=3, quantization=q, draws=2, seed=7)
    apart = log_prob(model, x[3:], probes=3, quantization=q, draws=2, seed=7, first=3)
    assert torch.allclose(together.nats[3:], apart.nats, rtol=1e-10)
    bounds = [elbo(model, x[a:], times=3, seed=7, first=a).nats for a in (0, 3)]
    assert torch.allclose(bounds[0][3:], bounds[1], rtol=1e-10)


@pytest.mark.parametrize(("mean", "scale", "position"), [(0.5, 0.5, 0.0), (0.0, 1.0, 0.5), (-3.0, 0.02, 1.0)])
@pytest.mark.parametrize("dequantisation", ["uniform", "importance", "truncated-normal-importance"])
def test_the_probabilities_of_all_levels_sum_to_one(mean, scale, position, dequantisation):
    """8 bits of a Gaussian whose tails the range holds; bins so narrow that the bound is nearly the integral."""
    q = Quantization(256, mean, scale, position)
    x = q.values(torch.arange(256)).double()[:, None]
    middle, spread = (x.max() + x.min()).item() / 2, (x.max() - x.min()).item() / 12
    target = sk.targets.Gaussian(torch.tensor([middle]).double(), torch.tensor([[spread**2]]).double())
    process = sk.VE(sigma_min=spread / 20, sigma_max=1000 * spread)
    found = log_prob(
        target.model(process), x, divergence="exact", quantization=q, dequantisation=dequantisation, draws=4,
        prior=true_prior(target, process),
    )  # fmt: skip
    error = (found.nats.exp() * found.stderr.draws.plain).norm().item()
    assert error < 2e-3
    # Jensen's gap of the plain mean is half the variance of log p in a bin, 4e-4 on average
    assert found.nats.exp().sum().item() == pytest.approx(1, abs=4 * error + 5e-4)


def test_bits_offset():
    q = Quantization()
    assert q.bits_offset == 8 + math.log2(0.5)
    process, target = sk.VP(), gaussian(2)
    x = q.values(torch.tensor([[100, 130], [128, 90]])).double()
    found = log_prob(target.model(process), x, divergence="exact", quantization=q, seed=1)
    from sdekit.likelihood.dequantisation import uniforms

    point = x + q.width * uniforms(1, 0, torch.arange(2), x)
    alpha = process.alpha(process.t_min)
    density = log_prob(target.model(process), alpha * point, divergence="exact").nats + 2 * math.log(alpha)
    assert torch.allclose(found.bits_per_dim, -density / (2 * math.log(2)) + q.bits_offset, rtol=1e-9)


def test_importance_weighted_draws_tighten_the_bound_to_the_integral():
    """One wide bin of N(0, 1): uniform dequantisation falls short by Jensen's gap, the weighted draws do not."""
    process = sk.VE(sigma_min=1e-3, sigma_max=100.0)
    target = sk.targets.Gaussian(torch.zeros(1).double(), torch.eye(1).double())
    q = Quantization(bins=4, mean=0.5, scale=0.125)  # bins of width 2, from −4
    x = q.values(torch.tensor([[2]])).double().expand(30, 1)  # the bin [0, 2)
    truth = math.log(0.4772499)
    found = {
        name: log_prob(target.model(process), x, divergence="exact", quantization=q, dequantisation=name, draws=24,
                       prior=true_prior(target, process))
        for name in ("uniform", "importance")
    }  # fmt: skip
    gap = math.log(2) - 0.5 * math.log(2 * math.pi) - (4 / 3) / 2 - truth  # E_u log p + log 2
    for name, expected in (("uniform", truth + gap), ("importance", truth)):
        error = found[name].nats - expected
        spread = found[name].stderr.dequantisation
        assert abs(error.mean()) < 4 * spread.mean() / 30**0.5 + 0.002, name
        assert (error.abs() < 2 * spread).double().mean() > 0.8, name


def test_a_data_set_is_measured_in_batches_and_a_stopped_run_goes_on(tmp_path):
    process = sk.VP()
    model = gaussian(3).model(process)
    q = Quantization(bins=16, scale=0.125)
    x = q.values(torch.randint(4, 12, (7, 3), generator=torch.Generator().manual_seed(0)))
    arguments = {"quantization": q, "batch_size": 3, "probes": 2, "draws": 2, "seed": 5}
    whole = measure(model, x, tmp_path / "whole", **arguments)
    at_once = log_prob(model, x, quantization=q, probes=2, draws=2, seed=5).summary()
    for name in ("bits_per_dim", "standard_error", "error_probes", "error_dequantisation", "error_solver", "nfe"):
        assert whole[name] == pytest.approx(at_once[name], rel=1e-3), name
    lines = (tmp_path / "whole" / "batches.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "batches.jsonl").write_text("".join(lines[:2]) + lines[2][:20])  # killed while it wrote
    before = model.nfe
    assert measure(model, x, tmp_path / "cut", **arguments) == whole
    again = model.nfe - before
    assert measure(model, x, tmp_path / "cut", **arguments) == whole
    assert model.nfe - before == again  # nothing was left to do
    with pytest.raises(ValueError, match="other arguments"):
        measure(model, x, tmp_path / "cut", **{**arguments, "seed": 6})


def test_levels_and_their_errors():
    x = torch.tensor([-1.0, 0.125, 1.0])
    assert DIGITS.levels(x).tolist() == [0, 9, 16]
    assert torch.allclose(DIGITS.values(torch.tensor([0, 9, 16])), x)
    assert DIGITS.edges(x)[0].item() == pytest.approx(-1 - 1 / 16)
    for value, message in ((1.125, "17 levels from -1 to 1"), (0.1, "holds 0.1"), (math.nan, "holds nan")):
        with pytest.raises(ValueError, match=message):
            DIGITS.levels(torch.tensor([0.0, value]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probes": 0}, "probes=0"),
        ({"draws": 0}, "draws=0"),
        ({"divergence": "exakt"}, "did you mean 'exact'"),
        ({"divergence": "xtrace", "probes": 9}, "from 2 to D = 3"),
        ({"dequantisation": "unifrom", "quantization": Quantization()}, "did you mean 'uniform'"),
        ({"method": "heun", "steps": 5}, "'heun' gives no density: .* such as 'unipc-3'"),
        ({"method": "ddpm", "steps": 5}, "draws noise"),
        ({"method": "unipc-3"}, "steps=None"),
        ({"rtol": 1e-9, "atol": 1e-9}, "use float64"),
        ({"t": 2.0}, "t0=2.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        log_prob(gaussian(3).model(sk.VP()), torch.zeros(2, 3), **arguments)


def test_bad_data():
    model = gaussian(3).model(sk.VP())
    with pytest.raises(ValueError, match=r"x=<tensor \[2, 3\].* with nan at \[1, "):
        log_prob(model, torch.tensor([[0.0, 0, 0], [0, math.nan, 0]]))
    with pytest.raises(ValueError, match="bins=1"):
        Quantization(bins=1)
    with pytest.raises(ValueError, match="give quantization="):
        elbo(model, torch.zeros(2, 3), "vdm")
    with pytest.raises(ValueError, match="bounds the density of continuous data"):
        elbo(model, Quantization().values(torch.zeros(2, 3, dtype=torch.int64)), quantization=Quantization())
    with pytest.raises(ValueError, match="times=1"):
        elbo(model, torch.zeros(2, 3), times=1)
    with pytest.raises(ValueError, match="needs the number of steps"):
        elbo(model, torch.zeros(2, 3), "ddpm")


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)) / 4)

    def forward(self, x, t):
        return torch.tanh(x @ self.weight + torch.sin(t[:, None]))


@pytest.mark.parametrize("method", ["fixed", "per-sample", "unipc-3"])
@pytest.mark.parametrize(("divergence", "probes"), [("hutchinson", 3), ("exact", 1), ("xtrace", 2)])
def test_on_the_simulated_accelerator(method, divergence, probes):
    x = torch.linspace(-1, 1, 12).reshape(3, 4)
    arguments = {"method": method, "divergence": divergence, "probes": probes, "rtol": 1e-2, "atol": 1e-2}
    arguments["steps"] = None if method == "per-sample" else 4
    here = log_prob(sk.ScoreModel(Net(), sk.VP()), x, **arguments)
    with simgpu.device() as gpu:
        there = log_prob(sk.ScoreModel(Net().to(gpu.device), sk.VP()), x.to(gpu.device), **arguments)
        reads = gpu.host_reads
        assert torch.equal(here.nats, there.nats.cpu())
        assert torch.equal(here.stderr.solver.nan_to_num(), there.stderr.solver.cpu().nan_to_num())
    # one read checks the data; each step tried of the adaptive method reads once
    assert reads <= 1 + ((int(here.nfe.max()) - 1) // 6 if method == "per-sample" else 0)
