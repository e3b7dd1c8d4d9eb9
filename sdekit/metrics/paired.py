"""Distances of each sample from its own reference: the accurate endpoint of the same start."""

from __future__ import annotations

from torch import Tensor

from sdekit.door import door
from sdekit.metrics.sets import Distance, Samples


def _check(x: Tensor, reference: Tensor) -> None:
    if x.shape != reference.shape or not x.numel():
        raise ValueError(f"x, reference: shapes {list(x.shape)} and {list(reference.shape)}: equal ones are needed")


@door
def rmse(x: Samples, reference: Samples) -> Distance:
    r"""Root mean square error √(mean (x − r)²) over all samples and elements, sample i against reference i.

    Units of the data; no bias in n; O(n d).

    Raises ValueError for shapes that differ or empty sets.

    >>> import torch
    >>> rmse(torch.tensor([[1.0, 8.0]]), torch.tensor([[0.0, 1.0]])).item()
    5.0
    """
    _check(x, reference)
    return (x.double() - reference.double()).square().mean().sqrt()


@door
def quantile_error(x: Samples, reference: Samples, q: float = 0.5) -> Distance:
    r"""The q-quantile over samples of each one's root mean square error √(mean_elements (x_i − r_i)²).

    Half of the samples are nearer than the median; one that crosses a watershed between modes, which decides a root
    mean square over few samples, does not move it. Linear between order statistics. Units of the data; bias O(1/n).

    Raises ValueError for shapes that differ, empty sets, and q outside 0 to 1.
    Source: Hyndman & Fan 1996, definition 7.

    >>> import torch
    >>> x = torch.tensor([[1.0], [2.0], [90.0]])
    >>> quantile_error(x, 0 * x).item(), quantile_error(x, 0 * x, q=0.75).item()
    (2.0, 46.0)
    """
    _check(x, reference)
    if not 0 <= q <= 1:
        raise ValueError(f"q={q}: it must be from 0 to 1")
    errors = (x.double() - reference.double()).reshape(len(x), -1).square().mean(1).sqrt().sort().values
    # by hand: torch.quantile refuses more than 16 million samples
    place = q * (len(errors) - 1)
    below = int(place)
    above = min(below + 1, len(errors) - 1)
    return errors[below] + (place - below) * (errors[above] - errors[below])
