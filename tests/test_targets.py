"""Targets against torch.distributions, autograd, the Fokker–Planck equation and integrated flows."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import solve_ivp
from strategies import PREDICTIONS, PROCESSES, at, fractions, processes, smooth_span, tensor
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from sdekit.prediction import convert
from sdekit.process import VP, Process
from sdekit.targets import Empirical, Gaussian, GaussianMixture, Target

MEAN = tensor([0.5, -1.0, 0.2, 2.0])
ROOT = torch.tensor(np.random.default_rng(0).normal(size=(4, 4)))
COV = ROOT @ ROOT.T / 4
MEANS = torch.tensor(np.random.default_rng(1).normal(size=(5, 4)))
STDS, WEIGHTS = tensor([0.1, 0.3, 0.5, 0.2, 0.05]), tensor([1.0, 2.0, 3.0, 0.5, 1.5])
TARGETS: dict[str, Target] = {
    "gaussian": Gaussian(MEAN.reshape(2, 2), COV),
    "mixture": GaussianMixture(MEANS.reshape(5, 2, 2), STDS, WEIGHTS),
    "empirical": Empirical(MEANS.reshape(5, 2, 2), 0.1),
}

every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
# torch scripts its own decompositions at the first jvp of a process, and warns that scripting is deprecated
forward_mode = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
some_target = st.sampled_from(list(TARGETS.values()))


def components(target: Target) -> tuple[Tensor, Tensor]:
    """Stds and normalised weights of a mixture over MEANS."""
    equal = torch.full_like(STDS, 0.2)
    return (STDS, WEIGHTS / WEIGHTS.sum()) if target is TARGETS["mixture"] else (equal / 2, equal)


def law(target: Target, alpha: float, sigma: float) -> torch.distributions.Distribution:
    """The law of α x_0 + σ ε on flat x, as torch.distributions has it."""
    eye = torch.eye(4, dtype=torch.float64)
    if target is TARGETS["gaussian"]:
        return MultivariateNormal(alpha * MEAN, alpha**2 * COV + sigma**2 * eye)
    stds, weights = components(target)
    spread = (alpha**2 * stds**2 + sigma**2).sqrt()[:, None].expand(5, 4)
    return MixtureSameFamily(Categorical(weights), Independent(Normal(alpha * MEANS, spread), 1))


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (result,) = torch.autograd.grad(function(x).sum(), x)
    return result


@every_target
def test_the_data_density(target: Target) -> None:
    x = target.sample(50)
    torch.testing.assert_close(target.log_prob(x), law(target, 1.0, 0.0).log_prob(x.flatten(1)), rtol=1e-10, atol=1e-10)


@given(processes(), some_target, fractions())
def test_densities_under_any_process(process: Process, target: Target, fraction: float) -> None:
    t = at(process, fraction)
    x = target.sample(8, t=t, process=process)
    expected = law(target, process.alpha(t), process.sigma(t))
    torch.testing.assert_close(target.log_prob(x, t, process), expected.log_prob(x.flatten(1)), rtol=1e-9, atol=1e-9)


@given(processes(), some_target, fractions())
def test_score_is_the_gradient_of_the_density_and_minus_eps_over_sigma(
    process: Process, target: Target, fraction: float
) -> None:
    t = at(process, fraction)
    x = target.sample(6, t=t, process=process)
    expected = law(target, process.alpha(t), process.sigma(t))
    score = gradient(lambda x: expected.log_prob(x.flatten(1)), x)
    scale = score.abs().max().item()
    for value in (
        target.score(x, t, process),
        target.model(process).score(x, t),
        -target.model(process, "v").eps(x, t) / process.sigma(t),
    ):
        torch.testing.assert_close(value, score, rtol=1e-8, atol=1e-9 * scale)
    by_gradient = gradient(lambda x: target.log_prob(x, t, process), x)
    torch.testing.assert_close(by_gradient, score, rtol=1e-8, atol=1e-9 * scale)


def posterior_mean(process: Process, t: float, x: float, log_prior: Callable[[np.ndarray], np.ndarray]) -> float:
    """E[x_0 | x_t = x] by quadrature on a fine grid."""
    grid = np.linspace(-8, 8, 200_001)
    log_joint = log_prior(grid) - 0.5 * ((x - process.alpha(t) * grid) / process.sigma(t)) ** 2
    weights = np.exp(log_joint - log_joint.max())
    return float((weights * grid).sum() / weights.sum())


@every_process
def test_denoised_means_by_quadrature(process: Process) -> None:
    means, stds, weights = [-1.5, 0.3, 2.0], [0.4, 0.2, 0.7], [0.2, 0.5, 0.3]
    mixture = GaussianMixture(tensor(means)[:, None], tensor(stds), tensor(weights))
    gaussian = Gaussian(tensor([0.7]), tensor([[0.36]]))

    def log_mixture(grid: np.ndarray) -> np.ndarray:
        return np.log(sum(w * stats.norm.pdf(grid, m, s) for m, s, w in zip(means, stds, weights)) + 1e-300)

    for target, log_prior in [(mixture, log_mixture), (gaussian, lambda grid: stats.norm.logpdf(grid, 0.7, 0.6))]:
        for t in (at(process, 0.3), at(process, 0.8)):
            for x in (-1.0, 0.1, 2.5):
                point = tensor([[x * max(1.0, process.sigma(t))]])
                expected = posterior_mean(process, t, point.item(), log_prior)
                for predicts in ("x0", "eps"):
                    # through eps, x_0 = (x − σ ε)/α keeps a rounding of x/α
                    slack = 1e-9 + 1e-13 * abs(point.item()) / process.alpha(t)
                    assert target.model(process, predicts).x0(point, t).item() == pytest.approx(expected, abs=slack)


@given(processes(), some_target, st.lists(fractions(), min_size=3, max_size=3), st.sampled_from(PREDICTIONS))
def test_every_network_gives_every_prediction(
    process: Process, target: Target, marks: list[float], predicts: str
) -> None:
    times = tensor([at(process, mark) for mark in marks])
    x = target.sample(3, seed=1, t=times, process=process)
    x0, minus_score = target.conditional_means(x, times, process)
    alpha, sigma, alpha_rate, sigma_rate = (
        getattr(process, name)(times)[:, None, None] for name in ("alpha", "sigma", "alpha_rate", "sigma_rate")
    )
    eps = sigma * minus_score
    torch.testing.assert_close(alpha * x0 + sigma * eps, x, rtol=1e-10, atol=1e-10)
    v, flow = alpha * eps - sigma * x0, alpha_rate * x0 + sigma_rate * eps
    truth = {"eps": eps, "x0": x0, "score": -minus_score, "v": v, "flow": flow, "flow-to-data": -flow}
    model = target.model(process, predicts)
    # its own prediction is direct: no other is formed first
    torch.testing.assert_close(model.predict(predicts, x, times), truth[predicts], rtol=1e-11, atol=1e-11)
    for kind, expected in truth.items():
        # the others are a sum c_x x + c_F F, known to a rounding of its terms
        c_x, c_F = (torch.as_tensor(c).expand(3)[:, None, None].abs() for c in convert(predicts, kind, process, times))  # noqa: N806
        allowed = 1e-12 * (c_x * x.abs() + c_F * (1 + truth[predicts].abs()))
        assert ((model.predict(kind, x, times) - expected).abs() <= allowed).all(), kind
    for i, t in enumerate(times.tolist()):
        row = model.predict(predicts, x[i : i + 1], t)
        torch.testing.assert_close(row, model.predict(predicts, x, times)[i : i + 1], rtol=1e-9, atol=1e-9)


@given(processes(), fractions(), fractions(), st.booleans())
def test_fokker_planck(process: Process, first: float, second: float, one_dimensional: bool) -> None:
    """∂ log p/∂t = −f d − f x·s + ½ g² (∇·s + |s|²), all by autograd of log p."""
    d = 1 if one_dimensional else 2
    target = GaussianMixture(MEANS[:, :d], STDS + 0.2, WEIGHTS)
    t = tensor(smooth_span(process, first, second)[0])
    x = target.sample(5, t=t.item(), process=process).requires_grad_()
    time = t.clone().requires_grad_()
    log_prob = target.log_prob(x, time.expand(5), process)
    by_time = torch.stack([torch.autograd.grad(value, time, retain_graph=True)[0] for value in log_prob])
    (score,) = torch.autograd.grad(log_prob.sum(), x, create_graph=True)
    laplacian = sum(torch.autograd.grad(score[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(d))
    f, g2 = process.drift_rate(t), process.diffusion(t) ** 2
    terms = [
        -f * d * torch.ones_like(by_time),
        -f * (x * score).sum(1),
        0.5 * g2 * laplacian,
        0.5 * g2 * score.square().sum(1),
    ]
    scale = sum(term.abs() for term in terms) + by_time.abs()
    assert ((sum(terms) - by_time).abs() <= 1e-10 * scale).all()


@every_process
def test_the_gaussian_flow_map_is_the_integrated_flow(process: Process) -> None:
    target = TARGETS["gaussian"]
    assert isinstance(target, Gaussian)
    model = target.model(process)
    s, t = smooth_span(process, 0.3, 0.8)
    x = target.sample(1, t=t, process=process)

    def velocity(time: float, state: np.ndarray) -> np.ndarray:
        return model.flow(torch.from_numpy(state).reshape(1, 2, 2), time).numpy().ravel()

    solved = solve_ivp(velocity, (t, s), x.numpy().ravel(), method="DOP853", rtol=1e-11, atol=1e-12).y[:, -1]
    moved = target.flow_map(x, t, s, process)
    assert moved.numpy().ravel() == pytest.approx(solved, rel=1e-8, abs=1e-9)
    torch.testing.assert_close(target.flow_map(moved, s, t, process), x, rtol=1e-10, atol=1e-10)
    batch = target.flow_map(x.expand(2, 2, 2), tensor([t, t]), tensor([s, t]), process)
    torch.testing.assert_close(batch, torch.cat([moved, x]), rtol=1e-10, atol=1e-10)


@given(processes(), st.lists(fractions(), min_size=3, max_size=3))
def test_flow_maps_compose_and_carry_the_law(process: Process, marks: list[float]) -> None:
    target = TARGETS["gaussian"]
    assert isinstance(target, Gaussian)
    r, s, t = (at(process, mark) for mark in marks)
    x = target.sample(4, t=t, process=process)
    two = target.flow_map(target.flow_map(x, t, s, process), s, r, process)
    torch.testing.assert_close(two, target.flow_map(x, t, r, process), rtol=1e-9, atol=1e-9)
    # the flow moves the density: log p_t(x) − log p_s(x_s) is the log determinant of a map that is affine in x
    moved = target.flow_map(x, t, s, process)
    change = target.log_prob(moved, s, process) - target.log_prob(x, t, process)
    torch.testing.assert_close(change, change[:1].expand(4), rtol=1e-7, atol=1e-7)


@every_target
def test_samples_have_the_law(target: Target) -> None:
    n = 20_000
    for t, process in [(None, None), (0.3, VP())]:
        x = target.sample(n, seed=3, t=t, process=process).flatten(1)
        alpha, sigma = (1.0, 0.0) if t is None or process is None else (process.alpha(t), process.sigma(t))
        mean, cov = moments(target, alpha, sigma)
        assert ((x.mean(0) - mean).abs() < 5 * (cov.diagonal() / n).sqrt()).all()
        # covariances to five standard errors, those of Gaussian data
        error = ((cov**2 + cov.diagonal().outer(cov.diagonal())) / n).sqrt()
        assert ((x.T.cov() - cov).abs() < 5 * error).all()


def moments(target: Target, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of α x_0 + σ ε on flat x."""
    eye = torch.eye(4, dtype=torch.float64)
    if target is TARGETS["gaussian"]:
        return alpha * MEAN, alpha**2 * COV + sigma**2 * eye
    stds, share = components(target)
    mean = share @ MEANS
    between = (share[:, None] * (MEANS - mean)).T @ (MEANS - mean)
    return alpha * mean, alpha**2 * (between + (share * stds**2).sum() * eye) + sigma**2 * eye


def test_a_mixture_is_sampled_with_its_weights() -> None:
    target = GaussianMixture(tensor([[-50.0], [0.0], [50.0]]), 0.5, tensor([1.0, 2.0, 5.0]))
    x = target.sample(8000).flatten()
    counts = [(x < -25).sum().item(), ((x > -25) & (x < 25)).sum().item(), (x > 25).sum().item()]
    assert stats.chisquare(counts, [1000, 2000, 5000]).pvalue > 1e-3
    middle = x[(x > -25) & (x < 25)]
    assert stats.kstest(middle.numpy(), "norm", args=(0, 0.5)).pvalue > 1e-3


@every_target
def test_samples_depend_on_seed_and_number_alone(target: Target) -> None:
    assert torch.equal(target.sample(9, seed=4)[:5], target.sample(5, seed=4))
    assert not torch.equal(target.sample(5, seed=4), target.sample(5, seed=5))
    process, t = VP(), 0.4
    noised, clean = target.sample(2000, seed=4, t=t, process=process), target.sample(2000, seed=4)
    eps = (noised - process.alpha(t) * clean) / process.sigma(t)
    assert stats.kstest(eps.flatten().numpy(), "norm").pvalue > 1e-3
    # neither the target's noise nor its data repeats the start noise of a run with the same seed
    from sdekit.noise import normal

    start = normal(4, 0, torch.arange(2000), (2, 2), torch.float64).flatten()
    for other in (eps.flatten(), clean.flatten()):
        assert abs(torch.corrcoef(torch.stack([start, other]))[0, 1].item()) < 5 / math.sqrt(8000)


@forward_mode
@every_target
@pytest.mark.parametrize("transform", ["vjp", "jvp", "vmap", "double"])
def test_derivatives_of_either_mode(target: Target, transform: str) -> None:
    """The Jacobian of the score is the Hessian of torch.distributions' log density."""
    process, t = VP(), 0.35
    x = target.sample(3, t=t, process=process)
    expected = law(target, process.alpha(t), process.sigma(t))
    hessian = torch.stack([torch.autograd.functional.hessian(expected.log_prob, row) for row in x.flatten(1)])
    direction = target.sample(3, seed=9)

    def score(x: Tensor) -> Tensor:
        return target.model(process).score(x, t)

    products = torch.einsum("bij,bj->bi", hessian, direction.flatten(1)).reshape(x.shape)
    if transform == "vjp":
        value = torch.func.vjp(score, x)[1](direction)[0]
    elif transform == "jvp":
        value = torch.func.jvp(score, (x,), (direction,))[1]
    elif transform == "vmap":
        jacobians = torch.stack([torch.func.jacrev(lambda row: score(row[None])[0])(row) for row in x])
        value = (jacobians.reshape(3, 4, 4) @ direction.reshape(3, 4, 1)).reshape(x.shape)
    else:
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(target.log_prob(leaf, t, process).sum(), leaf, create_graph=True)
        (value,) = torch.autograd.grad((first * direction).sum(), leaf)
    torch.testing.assert_close(value, products, rtol=1e-8, atol=1e-8 * products.abs().max().item())


@forward_mode
@every_target
def test_third_derivatives_by_both_routes(target: Target) -> None:
    process, t = VP(), 0.35
    x, direction = target.sample(2, t=t, process=process), target.sample(2, seed=9)

    def curvature(x: Tensor) -> Tensor:
        return torch.func.jvp(lambda x: target.score(x, t, process), (x,), (direction,))[1].sum()

    step = 1e-5
    exact = (gradient(curvature, x) * direction).sum().item()
    difference = (curvature(x + step * direction) - curvature(x - step * direction)).item() / (2 * step)
    assert exact == pytest.approx(difference, rel=1e-5, abs=1e-5)


@every_target
@every_process
@pytest.mark.parametrize("kind", ["eps", "x0"])
def test_float32_is_as_close_as_its_input_allows(target: Target, process: Process, kind: str) -> None:
    """From t_min to t_max a mean moves by no more than roundings of its value, of x, of t and of the means move it."""
    single = copy.deepcopy(target).float()
    exact = copy.deepcopy(single).double()  # the same rounded parameters
    for t in (process.t_min, at(process, 0.01), at(process, 0.5), process.t_max):
        x = exact.sample(10, t=t, process=process).float()

        def truth(row: Tensor, t: float = t) -> Tensor:
            return exact.model(process, kind).predict(kind, row[None], t)[0]

        slopes = torch.stack([torch.func.jacrev(truth)(row).reshape(4, 4) for row in x.double()])
        value, means = single.model(process, kind).predict(kind, x, t), torch.stack([truth(row) for row in x.double()])
        assert value.dtype == torch.float32
        size = x.flatten(1).abs().amax(1) + process.alpha(t) * exact.location.abs().max()
        aside = t + (1e-9 if t == process.t_min else -1e-9)
        rates = torch.stack([truth(row, aside) for row in x.double()]).sub(means).flatten(1).abs() * 1e9
        roundings = 1 + means.flatten(1).abs() + slopes.abs().sum(2) * size[:, None] + rates * t
        assert ((value - means).abs().flatten(1) <= 8 * 2**-24 * roundings).all(), t


@every_target
def test_dtypes(target: Target) -> None:
    process, x = VP(), target.sample(3)
    assert x.dtype == torch.float64
    assert target.model(process).eps(x, 0.5).dtype == torch.float64
    # a float32 state is worked on in the float64 of the target
    rough = target.score(x.float(), 0.5, process)
    assert rough.dtype == torch.float32
    assert torch.equal(rough, target.score(x.float().double(), 0.5, process).float())
    single = copy.deepcopy(target).to(torch.float32)
    assert single.sample(2).dtype == torch.float32
    assert single.model(process).eps(x, 0.5).dtype == torch.float64


@every_target
def test_the_network_moves_with_the_target(target: Target) -> None:
    moved = copy.deepcopy(target).to("meta")
    model = moved.model(VP())
    assert model.device == torch.device("meta")
    assert model.eps(torch.zeros(2, 2, 2, device="meta"), 0.5).device == torch.device("meta")
    assert model.nfe == 1


MEASURE = """
import resource, torch
from sdekit import VP
from sdekit.targets import Empirical
torch.set_num_threads(1)
model = Empirical(torch.rand(5000, 784), 0.1).model(VP())
x = torch.randn(256, 784, requires_grad=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
torch.autograd.grad(model.eps(x, 0.3).sum(), x)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_of_five_thousand_images() -> None:
    """256 × 5,000 × 784 differences are 4 GB; the network and its derivative take a fraction."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, timeout=120)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 300e6


def test_blocks_change_nothing() -> None:
    data = torch.rand(300, 784)
    target, x = Empirical(data, 0.1), torch.rand(20, 784)  # 67 components a block
    variance = VP().alpha(0.2) ** 2 * 0.01 + VP().sigma(0.2) ** 2
    squares = (x.double()[:, None] - VP().alpha(0.2) * data.double()).square().sum(-1)
    expected = (-0.5 * squares / variance).logsumexp(1) - math.log(300) - 392 * math.log(2 * math.pi * variance)
    torch.testing.assert_close(target.log_prob(x, 0.2, VP()).double(), expected, rtol=1e-6, atol=0)
