"""Losses of score matching: one a sample, and their mean over a batch drawn for (seed, step)."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sdekit import noise
from sdekit.divergence import divergence
from sdekit.door import Place, Rows, Seed, door
from sdekit.model import ScoreModel
from sdekit.prediction import PREDICTIONS
from sdekit.process import State as Samples
from sdekit.process import match
from sdekit.training.times import stratified, time_sampler
from sdekit.training.weightings import of_prediction, weighting


@door
def denoising_loss(
    model: ScoreModel, x0: Samples, t: Float[Tensor, "batch"], eps: Samples, **conditions: Any
) -> Float[Tensor, "batch"]:
    r"""‖F(x_t, t) − F*‖² / d per sample: F is what the network predicts, F* = a x_0 + b ε, x_t = α x_0 + σ ε.

    Its minimiser over F is E[F* | x_t], for eps −σ times the score (Vincent 2011; Ho et al. 2020, eq. 14).

    Args:
        x0: clean data [batch, *event].
        t: times [batch].
        eps: standard normal noise of x0's shape.
        conditions: passed to the network.

    >>> from sdekit.process import VP
    >>> model = ScoreModel(lambda x, t: torch.zeros_like(x), VP(), predicts="eps")
    >>> denoising_loss(model, torch.zeros(2, 4), torch.tensor([0.1, 0.9]), torch.full((2, 4), 2.0))
    tensor([4., 4.])
    """
    check_rows(x0, eps, t=t)
    a, b = PREDICTIONS[model.predicts](model.process, t)
    target = match(a, x0) * x0 + match(b, x0) * eps
    output = model.predict(model.predicts, model.process.perturb(x0, t, eps), t, **conditions)
    return (output - target).square().flatten(1).mean(1)


@door
def score_matching_loss(
    model: ScoreModel,
    x0: Annotated[Samples, Rows()],
    t: Float[Tensor, "batch"],
    eps: Samples,
    probes: Float[Tensor, "probes batch *event"] | None = None,
    **conditions: Any,
) -> Float[Tensor, "batch"]:
    r"""1 + (‖σ s‖² + 2 σ² ∇·s)/d at x_t = α x_0 + σ ε: its mean is that of ‖ε̂ − ε‖²/d, without looking at ε.

    Implicit score matching (Hyvärinen 2005, theorem 1), whose ½‖s‖² + ∇·s this is in units of the ε-loss; with
    ``probes`` of ``divergence.draw_probes`` the trace is an estimate of it: sliced score matching (Song et al. 2020,
    Sliced score matching, the form with reduced variance). One backward pass for each dimension, or each probe.

    >>> from sdekit.process import VE
    >>> model = ScoreModel(lambda x, t: -x, VE(), predicts="score")  # of N(0, 1)
    >>> score_matching_loss(model, torch.zeros(1, 2), torch.tensor([0.0]), torch.zeros(1, 2)).item() < 1
    True
    """
    check_rows(x0, eps, t=t)

    def score(x: Tensor) -> Tensor:
        return model.score(x, t, **conditions)

    method = "exact" if probes is None else "hutchinson"
    s, traces = divergence(score, model.process.perturb(x0, t, eps), probes, method)
    variance = model.process.sigma(t) ** 2
    return 1 + variance * (s.square().flatten(1).sum(1) + 2 * traces.mean(1)) / x0[0].numel()


def check_rows(x0: Tensor, eps: Tensor, **times: Tensor) -> None:
    """Raise ValueError where noise or times do not fit the data."""
    if x0.ndim < 1 or x0.shape != eps.shape or any(t.shape != x0.shape[:1] for t in times.values()):
        shapes = {"x0": x0, **times, "eps": eps}
        names, sizes = ", ".join(shapes), ", ".join(str(list(one.shape)) for one in shapes.values())
        raise ValueError(f"{names}: shapes {sizes}: eps needs that of x0, and {' and '.join(times)} one time a row")


@door
def denoising_risk(
    model: ScoreModel,
    x0: Annotated[Samples, Rows()],
    times: str,
    seed: Seed,
    step: Place,
    weights: str | None = None,
    **conditions: Any,
) -> Float[Tensor, ""]:
    """Mean of w · ``denoising_loss`` over a batch, its times and noise drawn for (seed, step).

    An estimate of what the time sampler ``times`` states, the same at every call; ``weights`` names a weight of
    ``WEIGHTINGS``, with which it is the mean of w times the ε-loss, whatever the network predicts.

    >>> from sdekit.process import VE
    >>> model = ScoreModel(lambda x, t: torch.zeros_like(x), VE(), predicts="x0")
    >>> denoising_risk(model, torch.ones(64, 2), "uniform", seed=0, step=0)
    tensor(1.)
    """
    u = stratified(len(x0), seed, step, x0.device)
    eps = noise.normal(seed, step, torch.arange(len(x0), device=x0.device), x0.shape[1:], x0.dtype)
    return risk_at(model, x0, u, eps, times, weights, **conditions)


def risk_at(
    model: ScoreModel, x0: Samples, u: Tensor, eps: Tensor, times: str, weights: str | None, **conditions: Any
) -> Float[Tensor, ""]:
    """``denoising_risk`` at given quantiles of the times, and noise."""
    t, w = time_sampler(times)(model.process, u)
    if weights is not None:
        w = w * of_prediction(weighting(weights), model.predicts, model.process, t)
    return (w * denoising_loss(model, x0, t.to(x0.dtype), eps, **conditions)).mean()
