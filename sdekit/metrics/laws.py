"""Distances from a law whose density is known: ``sdekit.targets``."""

from __future__ import annotations

from torch import Tensor

from sdekit.door import door
from sdekit.metrics.sets import Distance, Samples
from sdekit.targets import GaussianMixture, Target


def _on(law: Target, x: Tensor) -> Tensor:
    if not isinstance(law, Target):
        raise ValueError(f"law: {type(law).__name__} given: one of sdekit.targets is needed")
    return x.to(law.location.device).double()


@door
def negative_log_likelihood(x: Samples, law: Target) -> Distance:
    r"""−mean_i log p(x_i) in nats, by the law's exact density.

    For the law's own samples it is the entropy; below that, samples keep to the law's peaks, so that it is no distance:
    a comparison shows ``nll_gap``. No bias; the cost of the density. One sample far outside can decide it.

    Raises ValueError where x is not [n, *event] or the law has no density.

    >>> import torch
    >>> import math
    >>> from sdekit.targets import Gaussian
    >>> law = Gaussian(torch.zeros(1), torch.eye(1))
    >>> round(negative_log_likelihood(torch.ones(1, 1), law).item() - math.log(2 * math.pi) / 2, 6)
    0.5
    """
    _check(x)
    return -law.log_prob(_on(law, x)).mean().to(x.device)


@door
def nll_gap(x: Samples, y: Samples, law: Target) -> Distance:
    r"""|mean_i log p(x_i) − mean_j log p(y_j)| in nats: of samples x against data y of that law.

    0 in the limit for equal laws, but not for them alone. Biased upwards by some (1/n + 1/m)^{1/2} times the standard
    deviation of log p.

    Raises ValueError as ``negative_log_likelihood``.

    >>> import torch
    >>> from sdekit.targets import Gaussian
    >>> law = Gaussian(torch.zeros(1), torch.eye(1))
    >>> round(nll_gap(torch.ones(1, 1), torch.zeros(1, 1), law).item(), 6)
    0.5
    """
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"x, y: samples of shapes {list(x.shape[1:])} and {list(y.shape[1:])}: they must be equal")
    return (negative_log_likelihood(x, law) - negative_log_likelihood(y, law)).abs()


@door
def mode_weights_error(x: Samples, law: Target) -> Distance:
    r"""½ Σ_k |mean_i p(k | x_i) − w_k|: what share of x is in another component of the mixture than it should be.

    The total variation between the components' weights w and the samples', with p(k | x) the posterior of component k,
    so that components may overlap. From 0 to 1. Biased upwards, for components far apart by about
    Σ_k (w_k (1 − w_k)/(2πn))^{1/2}.

    Raises ValueError where x is not [n, *event], and for a law that is no ``GaussianMixture``.

    >>> import torch
    >>> law = GaussianMixture(torch.tensor([[-9.0], [9.0]]), 1.0)
    >>> round(mode_weights_error(torch.tensor([[9.0], [9.0], [9.0], [-9.0]]), law).item(), 6)
    0.25
    """
    _check(x)
    if not isinstance(law, GaussianMixture):
        raise ValueError(f"law: {type(law).__name__} has no modes: a GaussianMixture is needed")
    found = law.posterior(_on(law, x)).mean(0)
    return (found - law.weights.to(found)).abs().sum().to(x.device) / 2


def _check(x: Tensor) -> None:
    if not len(x):
        raise ValueError(f"x has shape {list(x.shape)}: at least 1 sample is needed")
