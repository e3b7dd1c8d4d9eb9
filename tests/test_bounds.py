"""Variational bounds against closed forms, and against the density of the process that they bound."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import sdekit as sk
from sdekit.data import Quantization
from sdekit.likelihood import elbo


def _linear(process, std):
    """A network for data N(0, std²): its score is wrong where the data is another."""
    return sk.targets.Gaussian(torch.zeros(2).double(), std**2 * torch.eye(2).double()).model(process)


@pytest.mark.parametrize("kind", ["score-flow", "ddpm"])
@pytest.mark.parametrize("std", [1.0, 1.3])
def test_bounds_lie_below_the_density_of_the_generative_process(kind, std):
    """Data N(0, 1), network of N(0, std²): what the reverse SDE makes is Gaussian, of a known variance."""
    process, n = sk.VP(), 4000
    x = sk.targets.Gaussian(torch.zeros(2).double(), torch.eye(2).double()).sample(n)
    found = elbo(_linear(process, std), x, kind, times=8, steps=200, grid="logsnr")
    truth = _generative_variance(process, std) if kind == "score-flow" else None
    mean, error = found.nats.mean().item(), (found.nats.std() / n**0.5).item()
    entropy = 2 * (0.5 * math.log(2 * math.pi) + 0.5)
    assert mean < -entropy + 3 * error  # no bound beats the data's own density
    if truth is not None:
        log_density = -(math.log(2 * math.pi * truth) + 1 / truth)
        assert mean < log_density + 3 * error
    if std == 1.0:
        assert mean > -entropy - (0.01 if kind == "score-flow" else 0.2) - 3 * error


def _generative_variance(process, std):
    """Variance of the decoded samples: the reverse SDE forgets the prior's mismatch, then x̂_0 plus σ/α of noise."""
    alpha, sigma = process.alpha(process.t_min), process.sigma(process.t_min)
    variance = alpha**2 * std**2 + sigma**2  # the mismatch at t_max, α² std² = 4e-5, has decayed by then
    return (alpha * std**2 / variance) ** 2 * variance + (sigma / alpha) ** 2


def test_sampled_terms_of_the_ddpm_bound_agree_with_all_of_them():
    process, n = sk.DiscreteVP.linear(50), 2000
    x = sk.targets.Gaussian(torch.zeros(2).double(), torch.eye(2).double()).sample(n)
    every, some = (elbo(_linear(process, 1.2), x, "ddpm", times=times) for times in (49, 8))
    gap = (every.diffusion.mean() - some.diffusion.mean()).item()
    assert abs(gap) < 4 * ((every.diffusion.var() + some.diffusion.var()) / n).sqrt().item()


@pytest.mark.parametrize("kind", ["vdm", "ddpm"])
def test_quantised_bounds_have_their_expectation_and_stay_below_the_entropy(kind):
    """Levels of N(0, 1) data under its own score ε̂ = σ z: every term of the bound is an integral over ε ~ N(0, 1)."""
    process, n, steps = sk.VP(t_min=0.1), 4000, 20
    q = Quantization(bins=16, mean=0.5, scale=0.125, position=0.5)
    target = sk.targets.Gaussian(torch.zeros(2).double(), torch.eye(2).double())
    x = q.values(q.levels((target.sample(n).clamp(-3.9, 3.4) * 2).round() / 2)).double()
    more = {"steps": steps, "grid": "logsnr", "times": steps} if kind == "ddpm" else {"times": 8}
    found = elbo(target.model(process), x, kind, quantization=q, **more)
    values = q.values(torch.arange(16)).double().numpy()
    expected = _expected_bound(kind, process, values, steps)
    gap = found.nats - torch.tensor(expected)[q.levels(x)].sum(1)
    assert abs(gap.mean().item()) < 4 * gap.std().item() / n**0.5
    # the levels' own probabilities, the first and last bin open: no bound beats their entropy, on average (Gibbs)
    edges = np.concatenate([[-np.inf], values[1:] - 0.25, [np.inf]])
    probability = np.diff(stats.norm.cdf(edges))
    assert (probability * expected).sum() < (probability * np.log(probability)).sum()
    assert (probability * expected).sum() > (probability * np.log(probability)).sum() - 1.5


def _expected_bound(kind, process, values, steps):
    """E[bound] of each level, by formula and Gauss–Hermite quadrature; ε − ε̂ = α² ε − σ α x."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    alpha, sigma = process.alpha(process.t_min), process.sigma(process.t_min)
    z = alpha * values[:, None] + sigma * nodes
    low, high = process.half_log_snr(process.t_max), process.half_log_snr(process.t_min)
    lambdas = np.linspace(low, high, steps + 1 if kind == "ddpm" else 20001)
    noise_share = 1 / (1 + np.exp(2 * lambdas))  # σ²
    error = (1 - noise_share) ** 2 + np.outer(values**2, noise_share * (1 - noise_share))
    if kind == "ddpm":  # a step from n to n − 1 is charged ½ (e^{2(λ_{n−1} − λ_n)} − 1) at n
        loss = 0.5 * np.expm1(2 * np.diff(lambdas)) @ error[:, :-1].T
        upper, lower = np.append(values[1:] - 0.25, np.inf), np.insert(values[1:] - 0.25, 0, -np.inf)
        below, above = ((edge[:, None] - alpha * z) / sigma for edge in (lower, upper))
        decoded = np.log(np.maximum(stats.norm.cdf(above) - stats.norm.cdf(below), 1e-300))
    else:
        loss = np.trapezoid(error, lambdas, axis=1)
        logits = -0.5 * ((z[..., None] - alpha * values) / sigma) ** 2
        chosen = np.take_along_axis(logits, np.arange(len(values))[:, None, None], 2)[..., 0]
        decoded = chosen - np.logaddexp.reduce(logits, axis=2)
    return decoded @ weights - 0.5 * np.exp(2 * low) * values**2 - loss
