"""Operators, measurements and exact posteriors of inverse problems, against definitions and Bayes' rule."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.stats import poisson
from strategies import PROCESSES, at
from torch import Tensor

import sdekit as sk
from sdekit import inverse
from sdekit.targets import Empirical, Gaussian, GaussianMixture, Target

EVENT = (2, 4, 6)
KEEP = torch.arange(48).reshape(EVENT) % 3 > 0
OPERATORS: dict[str, inverse.Operator] = {
    "mask": inverse.Mask(KEEP),
    "downsample": inverse.Downsample(EVENT, 2),
    "blur": inverse.Blur(EVENT, 1.3),
    "projection": inverse.Projection(EVENT, 7, seed=2),
    "linear": inverse.Linear(lambda x: x.cumsum(-1)[:, :, 1:], EVENT),
}


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("name", OPERATORS)
@given(seed=st.integers(0, 10_000))
def test_adjoints(name: str, seed: int) -> None:
    operator = OPERATORS[name]
    x, u = normal(seed, 3, *EVENT), normal(seed + 1, 3, *operator.measured)
    forward, back = (operator(x) * u).flatten(1).sum(1), (x * operator.adjoint(u)).flatten(1).sum(1)
    torch.testing.assert_close(forward, back, rtol=1e-10, atol=1e-10)
    assert operator.adjoint(u.float()).dtype == torch.float32
    torch.testing.assert_close(operator.adjoint(u.float()), operator.adjoint(u).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OPERATORS)
def test_matrices_and_spectra_are_the_operator(name: str) -> None:
    operator = OPERATORS[name]
    matrix, spectrum = operator.matrix(), inverse.Spectrum.of(operator)
    x, r = normal(0, 3, *EVENT), normal(1, 3, *operator.measured)
    torch.testing.assert_close(x.flatten(1) @ matrix.T, operator(x).flatten(1))
    torch.testing.assert_close(spectrum.u * spectrum.s @ spectrum.v.T, matrix, atol=1e-10, rtol=0)
    total = 0.7 * matrix @ matrix.T + 0.09 * torch.eye(len(matrix), dtype=torch.float64)
    gain = 0.7 * torch.linalg.solve(total, r.flatten(1).T).T @ matrix
    torch.testing.assert_close(spectrum.gain(r, 0.7, 0.09, x.shape[1:]), gain.reshape(x.shape))
    pseudo = r.flatten(1) @ torch.linalg.pinv(matrix, rtol=1e-13).T
    torch.testing.assert_close(spectrum.gain(r, 1.0, 0.0, x.shape[1:]), pseudo.reshape(x.shape))
    law = torch.distributions.MultivariateNormal(torch.zeros(len(matrix)).double(), total)
    torch.testing.assert_close(spectrum.log_density(r, 0.7, 0.09), law.log_prob(r.flatten(1)))


def test_operators_do_what_they_say() -> None:
    x = normal(3, 2, *EVENT)
    assert torch.equal(inverse.Mask(KEEP)(x), x[:, KEEP])
    torch.testing.assert_close(inverse.Downsample(EVENT, 2)(x), torch.nn.functional.avg_pool2d(x, 2))
    image = normal(4, 1, 32, 24)
    wrapped = gaussian_filter(image[0].numpy(), 2.0, mode="wrap", truncate=12)
    torch.testing.assert_close(inverse.Blur((32, 24), 2.0)(image)[0], torch.as_tensor(wrapped), rtol=0, atol=1e-6)
    rows = inverse.Projection((64, 64), 500).rows
    assert abs(rows.square().sum(1).mean() - 1) < 0.01


def test_noise_is_what_its_density_says() -> None:
    a = torch.tensor([-1.0, 0.3, 2.0]).double().expand(20_000, 3)
    y = inverse.GaussianNoise(0.5).draw(a, 0, torch.arange(len(a)))
    assert ((y - a).mean(0).abs() < 0.02).all()
    assert ((y - a).std(0) - 0.5).abs().max() < 0.01
    law = torch.distributions.Normal(a[:5], 0.5)
    torch.testing.assert_close(inverse.GaussianNoise(0.5).log_prob(y[:5], a[:5]), law.log_prob(y[:5]).sum(1))
    counted = inverse.PoissonNoise(rate=10.0, offset=1.0)
    counts = (counted.draw(a[:, 1:], 0, torch.arange(len(a))) + 1) * 10
    assert ((counts - counts.round()).abs() < 1e-6).all()
    assert ((counts.mean(0) - torch.tensor([13.0, 30.0])).abs() < 0.15).all()
    known = poisson.logpmf(counts[:4].round().numpy(), [13.0, 30.0]).sum(1)
    torch.testing.assert_close(counted.log_prob(counts[:4] / 10 - 1, a[:4, 1:]), torch.as_tensor(known))


def priors() -> dict[str, Target]:
    root = normal(5, 3, 3)
    means = normal(6, 4, 3)
    return {
        "gaussian": Gaussian(means[0], root @ root.T / 3),
        "mixture": GaussianMixture(means, torch.tensor([0.2, 0.3, 0.4, 0.5]), torch.tensor([1.0, 2.0, 3.0, 4.0])),
        "empirical": Empirical(means, 0.3),
    }


SMALL: dict[str, inverse.Operator] = {
    "fewer": inverse.Projection((3,), 2, seed=1),
    "more": inverse.Linear(lambda x: torch.cat([x, x.flip(-1), x[:, :1] * 2], 1), (3,)),
    "none": inverse.Mask(torch.zeros(3, dtype=torch.bool)),
}


@pytest.mark.parametrize("prior", priors())
@pytest.mark.parametrize("operator", SMALL)
def test_the_posterior_is_bayes_rule(prior: str, operator: str) -> None:
    """log p(x | y) = log p(x) + log p(y | x) − log p(y), at any x."""
    target = priors()[prior]
    seen = inverse.Measurement.of(target.sample(1, seed=3)[0], SMALL[operator], inverse.GaussianNoise(0.4), seed=1)
    law, x = inverse.posterior(target, seen), target.sample(20, seed=4)
    known = target.log_prob(x) + seen.log_prob(x) - inverse.log_evidence(target, seen)
    torch.testing.assert_close(law.log_prob(x), known, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_posterior_is_exact_under_every_process(process: str) -> None:
    """Its components' marginals by torch's own Gaussians, its score and x_0 by differentiating them."""
    target, chosen = priors()["mixture"], PROCESSES[process]
    seen = inverse.Measurement.of(target.sample(1, seed=3)[0], SMALL["fewer"], inverse.GaussianNoise(0.4), seed=1)
    law = inverse.posterior(target, seen)
    assert isinstance(law, inverse.RotatedMixture)
    for share in (0.1, 0.6):
        t = at(chosen, share)
        alpha, sigma = chosen.alpha(t), chosen.sigma(t)
        x = law.sample(6, seed=2, t=t, process=chosen).requires_grad_()
        covs = alpha**2 * (law.basis * law.variances[:, None]) @ law.basis.T + sigma**2 * torch.eye(3).double()
        parts = torch.distributions.MultivariateNormal(alpha * law.location, covs)
        known = (law.log_weights + parts.log_prob(x[:, None])).logsumexp(1)
        torch.testing.assert_close(law.log_prob(x, t, chosen), known)
        (score,) = torch.autograd.grad(known.sum(), x)
        torch.testing.assert_close(law.score(x.detach(), t, chosen), score)
        times = torch.full((6,), t, dtype=torch.float64)
        torch.testing.assert_close(law.score(x.detach(), times, chosen), score)
        torch.testing.assert_close(
            law.conditional_means(x.detach(), t, chosen)[0], ((x + sigma**2 * score) / alpha).detach()
        )


def test_posterior_samples_have_its_moments_and_modes() -> None:
    target = priors()["mixture"]
    seen = inverse.Measurement.of(target.sample(1, seed=3)[0], SMALL["fewer"], inverse.GaussianNoise(0.4), seed=1)
    law = inverse.posterior(target, seen)
    assert isinstance(law, inverse.RotatedMixture)
    x = law.sample(40_000, seed=7)
    within = (law.basis * law.variances[:, None]) @ law.basis.T
    mean = law.weights @ law.location
    apart = law.location - mean
    cov = (law.weights[:, None, None] * (within + apart[:, :, None] * apart[:, None])).sum(0)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(x.T.cov(), cov, rtol=0, atol=0.03)
    assert sk.metrics.mode_weights_error(x, law) < 0.01


MASK = inverse.Mask(torch.tensor([True, False, True]))
SEEN = inverse.Measurement(MASK, torch.zeros(2), inverse.GaussianNoise(0.1))
BAD: dict[str, tuple[Any, str]] = {
    "shape": (
        lambda: MASK(torch.zeros(2, 4)),
        r"x has shape \[2, 4\]: Mask measures \[batch, \*event\] with event \[3\]",
    ),
    "negative": (lambda: inverse.GaussianNoise(-0.1), r"std=-0.1: it must be a finite number of at least 0"),
    "nan": (lambda: inverse.GaussianNoise(math.nan), r"std=nan"),
    "rate": (lambda: inverse.PoissonNoise(0.0), r"rate=0.0: it must be a finite number above 0"),
    "y": (
        lambda: inverse.Measurement(MASK, torch.zeros(3), inverse.GaussianNoise(0.1)),
        r"y has shape \[3\] and dtype torch.float32: Mask measures floats \[2\]",
    ),
    "infinite": (
        lambda: inverse.Measurement(MASK, torch.tensor([0.0, math.inf]), inverse.GaussianNoise(0.1)),
        r"y holds NaN or infinity",
    ),
    "keep": (lambda: inverse.Mask(torch.ones(3)), r"keep has dtype torch.float32: it must be bool"),
    "factor": (lambda: inverse.Downsample((8, 6), 4), r"factor=4: it must divide the sides \[8, 6\]"),
    "flat": (lambda: inverse.Blur((8,), 1.0), r"event=\[8\]: Blur needs samples of at least two dimensions"),
    "std": (lambda: inverse.Blur((8, 8), 0.0), r"std=0.0: it must be a finite number above 0"),
    "size": (lambda: inverse.Projection((8,), 0), r"size=0: it must be a whole number from 1"),
    "not linear": (lambda: inverse.Linear(torch.abs, (3,)), r"function: A\(2u − 3v\) differs .* is not linear"),
    "affine": (lambda: inverse.Linear(lambda x: x + 1, (3,)), r"not linear"),
    "mixes": (lambda: inverse.Linear(lambda x: x - x.mean(0), (3,)), r"depends on the others of the batch"),
    "fails": (
        lambda: inverse.Linear(lambda x: x @ torch.zeros(4, 2), (3,)),
        r"function: it fails on x of shape \[2, 3\]",
    ),
    "detached": (lambda: inverse.Linear(lambda x: x.detach(), (3,)), r"its gradient is 0"),
    "numpy": (
        lambda: inverse.Linear(lambda x: torch.as_tensor(x.numpy() * 2), (3,)),
        r"operator: Linear cannot be differentiated",
    ),
    "adjoint": (
        lambda: inverse.Differentiable(torch.abs, (3,)).adjoint(torch.zeros(1, 3)),
        r"Differentiable is not linear: it has no adjoint",
    ),
    "noiseless": (
        lambda: inverse.posterior(
            priors()["gaussian"], inverse.Measurement(MASK, torch.zeros(2), inverse.GaussianNoise(0.0))
        ),
        r"the posterior is known for GaussianNoise with a std above 0",
    ),
    "fit": (
        lambda: inverse.posterior(Gaussian(torch.zeros(4), torch.eye(4)), SEEN),
        r"operator: it measures \[3\], samples of the target have the shape \[4\]",
    ),
    "twice": (
        lambda: inverse.posterior(inverse.posterior(priors()["mixture"], SEEN), SEEN),
        r"target: a RotatedMixture given",
    ),
    "measured": (
        lambda: SEEN.log_prob(torch.zeros(4, 3), torch.zeros(3, 2)),
        r"measured has shape \[3, 2\]: for 4 samples it must be \[4, 2\]",
    ),
    "no density": (
        lambda: inverse.Measurement(MASK, torch.zeros(2), inverse.GaussianNoise(0.0)).log_prob(torch.zeros(1, 3)),
        r"std=0: a measurement without noise has no density",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()
