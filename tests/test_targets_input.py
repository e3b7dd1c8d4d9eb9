"""What a target accepts and refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from strategies import tensor
from torch.distributions import MultivariateNormal

from sdekit.process import VE, VP, DiscreteVP
from sdekit.targets import Empirical, Gaussian, GaussianMixture

GAUSSIAN = Gaussian(torch.zeros(2, 2), torch.eye(4))
MIXTURE = GaussianMixture(torch.zeros(3, 2, 2), 0.5)


def test_a_singular_covariance_has_a_density_only_under_noise() -> None:
    target, process = Gaussian(tensor([1.0, 2.0]), tensor([[1.0, 1.0], [1.0, 1.0]])), VE()
    x = tensor([[0.3, -0.5]])
    noised = MultivariateNormal(tensor([1.0, 2.0]), tensor([[1.0, 1.0], [1.0, 1.0]]) + 0.25 * torch.eye(2))
    t = process.t_of_half_log_snr(-math.log(0.5))
    torch.testing.assert_close(target.log_prob(x, t, process), noised.log_prob(x), rtol=1e-9, atol=0)
    difference = target.sample(5)
    torch.testing.assert_close(difference[:, 1] - difference[:, 0], torch.ones(5).double(), rtol=0, atol=1e-7)
    with pytest.raises(ValueError, match="t=None: cov is singular"):
        target.log_prob(x)


ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Gaussian(torch.zeros(0), torch.zeros(0, 0)), r"mean=<tensor \[0\].*not empty"),
        (lambda: Gaussian(torch.tensor([math.nan]), torch.eye(1)), "mean=<tensor .* with .*(nan|inf) at "),
        (lambda: Gaussian(torch.zeros(2), torch.eye(3)), r"cov has shape \[3, 3\]: .* must be \[2, 2\]"),
        (lambda: Gaussian(torch.zeros(2), torch.ones(2)), r"cov has shape \[2\]"),
        (lambda: Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "differs from its transpose by 0.5"),
        (lambda: Gaussian(torch.zeros(2), torch.diag(torch.tensor([1.0, -0.1]))), "cov has the eigenvalue -0.1"),
        (lambda: Gaussian(torch.zeros(1), torch.tensor([[math.inf]])), "cov=<tensor .* with .*(nan|inf) at "),
        (lambda: GaussianMixture(torch.zeros(0, 2), 1.0), r"means=<tensor \[0, 2\].*not empty"),
        (lambda: GaussianMixture(torch.zeros(2, 0), 1.0), r"means=<tensor \[2, 0\].*not empty"),
        (lambda: GaussianMixture(torch.tensor(1.0), 1.0), r"means has shape \[\]"),
        (lambda: GaussianMixture(ONES * math.nan, 1.0), "means=<tensor .* with .*(nan|inf) at "),
        (lambda: GaussianMixture(ONES, 0.0), "stds has the entry 0: every one must be positive and finite"),
        (lambda: GaussianMixture(ONES, torch.tensor([1.0, -2.0])), "stds has the entry -2"),
        (lambda: GaussianMixture(ONES, torch.ones(3)), r"stds has shape \[3\]: it must be a number or \[2\]"),
        (lambda: GaussianMixture(ONES, math.nan), "stds=nan: it must be a finite number"),
        (lambda: GaussianMixture(ONES, 1.0, torch.tensor([1.0, 0.0])), "weights has the entry 0"),
        (lambda: GaussianMixture(ONES, 1.0, torch.ones(2, 2)), r"weights has shape \[2, 2\]"),
        (lambda: Empirical(torch.zeros(0, 8, 8), 0.1), r"data=<tensor \[0, 8, 8\].*not empty"),
        (lambda: Empirical(ONES * math.inf, 0.1), "data=<tensor .* with .*(nan|inf) at "),
        (lambda: Empirical(ONES, 0.0), "bandwidth=0.0: it must be a finite number above 0"),
        (lambda: Empirical(ONES, -1.0), "bandwidth=-1.0"),
        (lambda: Empirical(ONES, math.inf), "bandwidth=inf"),
        (lambda: MIXTURE.sample(0), "n=0"),
        (lambda: MIXTURE.sample(2, t=0.5), "t=0.5, process=None: give both"),
        (lambda: MIXTURE.log_prob(ONES.new_zeros(1, 2, 2), process=VP()), "t=None, process=VP"),
        (lambda: MIXTURE.log_prob(ONES), r"x has shape \[2, 3\]: it must be .* event \[2, 2\]"),
        (lambda: GAUSSIAN.score(ONES, 0.5, VP()), r"x has shape \[2, 3\]"),
        (lambda: GAUSSIAN.model(VP()).eps(ONES, 0.5), r"x has shape \[2, 3\]"),
        (lambda: GAUSSIAN.model(VP(), "epsilon"), "unknown prediction 'epsilon': did you mean 'eps'"),
    ],
)
def test_bad_input_is_named(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_an_event_may_be_a_number() -> None:
    target = GaussianMixture(tensor([-1.0, 1.0]), 0.5)
    x = target.sample(4)
    assert x.shape == (4,)
    expected = np.log(0.5 * stats.norm.pdf(x, -1, 0.5) + 0.5 * stats.norm.pdf(x, 1, 0.5))
    assert target.log_prob(x).tolist() == pytest.approx(expected.tolist(), rel=1e-10)
    assert target.model(DiscreteVP()).eps(x, 0.5).shape == (4,)
