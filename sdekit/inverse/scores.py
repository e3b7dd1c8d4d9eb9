"""How good samples of a posterior are: against the truth, the measurement, and the exact law where it is known."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from jaxtyping import Float
from torch import Tensor

from sdekit.door import Positive, door
from sdekit.inverse.measurement import GaussianNoise, Measurement
from sdekit.metrics import mode_weights_error, sliced_wasserstein
from sdekit.targets import GaussianMixture, Target


@door
def psnr(x: Float[Tensor, "..."], truth: Float[Tensor, "..."], span: Positive = 2.0) -> float:
    """10 log10(span²/mean |x − truth|²) in decibels; ``span`` is that of the data, 2 for pixels from −1 to 1.

    >>> import torch
    >>> round(psnr(torch.zeros(4), torch.full((4,), 0.2)), 6)
    20.0
    """
    _check_same(x.shape, truth)
    error = (x - truth).double().square().mean().item()
    return 10 * math.log10(span**2 / error) if error else math.inf


@door
def ssim(x: Float[Tensor, "..."], truth: Float[Tensor, "..."], span: Positive = 2.0) -> float | None:
    """Structural similarity of two pictures [channels, height, width] (Wang et al. 2004), by scikit-image.

    None where scikit-image is not installed, and for what is no picture of at least 7 × 7.

    >>> import torch
    >>> from importlib.util import find_spec
    >>> x = torch.rand(1, 8, 8)
    >>> round(ssim(x, x), 6) if find_spec("skimage") else 1.0
    1.0
    """
    _check_same(x.shape, truth)
    if find_spec("skimage") is None or x.ndim != 3 or min(x.shape[1:]) < 7:
        return None
    metrics: Any = importlib.import_module("skimage.metrics")
    pair = (value.detach().double().cpu().numpy() for value in (x, truth))
    return float(metrics.structural_similarity(*pair, data_range=span, channel_axis=0))


@door
def coverage(
    x: Float[Tensor, "problems samples elements"], truth: Float[Tensor, "problems elements"], level: float
) -> float:
    """How often the truth lies in the central credible interval of that level: the share over problems and elements.

    x [problems, K, D] are K samples of each, truth [problems, D] what was measured. The interval is that between two of
    the ordered samples, so that samples of the posterior cover with the probability ``level`` exactly, for any K.

    Raises ValueError where no pair of K samples has the level.

    >>> import torch
    >>> x = torch.arange(1.0, 20.0).reshape(1, 19, 1)
    >>> coverage(x, torch.tensor([[18.5]]), 0.9), coverage(x, torch.tensor([[19.5]]), 0.9)
    (1.0, 0.0)
    """
    _check_same((len(x), x.shape[2]), truth)
    count = x.shape[1] + 1
    outside = round(count * (1 - level) / 2)
    if outside < 1 or abs(1 - 2 * outside / count - level) > 1e-9:
        raise ValueError(
            f"x, level={level}: no interval between two of {count - 1} samples has it; 19, 39 or 199 samples have 0.9"
        )
    rank = (x < truth[:, None]).sum(1)
    return ((rank >= outside) & (rank <= count - 1 - outside)).double().mean().item()


def _check_same(shape: Sequence[int], truth: Tensor) -> None:
    if tuple(shape) != tuple(truth.shape):
        raise ValueError(f"x, truth: truth has shape {list(truth.shape)}, for this x it must be {list(shape)}")


@door
def scores(
    x: Float[Tensor, "n *event"],
    truth: Float[Tensor, "..."] | None,
    measurement: Measurement,
    span: Positive = 2.0,
    law: Target | None = None,
) -> dict[str, float]:
    """Samples x [n, *event] against what is known: the truth [*event], the measurement, the exact posterior.

    ``psnr`` and ``ssim`` are those of the samples' mean, ``psnr_sample`` of a sample; ``misfit`` is the root mean
    square of (y − A x)/σ_y, 1 or a little less for samples of the posterior; ``spread`` the samples' standard
    deviation. To ``law``: ``sliced_wasserstein`` and, of a mixture, ``mode_weights``.

    >>> import torch
    >>> from sdekit.inverse import Mask
    >>> seen = Measurement(Mask(torch.tensor([True, False])), torch.zeros(1), GaussianNoise(0.5))
    >>> scores(torch.tensor([[0.5, 1.0], [-0.5, 1.0]]), torch.zeros(2), seen)["misfit"]
    1.0
    """
    x = x.double().cpu()
    found = {"spread": x.std(0).square().mean().sqrt().item() if len(x) > 1 else 0.0}
    if isinstance(measurement.noise, GaussianNoise) and measurement.noise.std > 0:
        gap = (measurement.rows(x) - measurement.operator(x)) / measurement.noise.std
        found["misfit"] = gap.square().mean().sqrt().item() if gap.numel() else 0.0
    if truth is not None:
        _check_same(x.shape[1:], truth)
        truth = truth.double().cpu()
        found |= {"psnr": psnr(x.mean(0), truth, span), "psnr_sample": psnr(x, truth.expand_as(x), span)}
        likeness = ssim(x.mean(0), truth, span)
        found |= {} if likeness is None else {"ssim": likeness}
    if law is not None:
        found["sliced_wasserstein"] = sliced_wasserstein(x, law.sample(max(len(x), 1000), seed=1)).item()
        if isinstance(law, GaussianMixture):
            found["mode_weights"] = mode_weights_error(x, law).item()
    return found
