r"""What a metric's value would be with other samples: the delete-a-group jackknife.

The samples, and the data with them, are dealt into ``GROUPS`` groups; the metric is measured GROUPS times, each time
without one group of both. With θ_g the values, the standard error is

    se² = (G − 1)/G Σ_g (θ_g − mean θ)²

(Shao & Tu 1995, section 5.2; leaving out a group of both sets at once gives the sum of both sets' variances, since they
are independent). Two solvers that start from the same noise are measured with the same groups: θ is then the difference
of their values, whose error is smaller than either's own.

The 95% interval of a value is ± t_{0.975, G − 1} se. It stands in place of a bootstrap's, which measures the metric on
some thousand resamplings where this takes ten; which draws samples twice, so that distances of pairs and to nearest
neighbours, 0 for a sample and its copy, are of other sets than those measured; and which would need the samples of
both solvers for an interval of their difference, where this needs ten numbers of each. It holds the metric's mean at
the numbers of samples used, with their bias. A metric that is not smooth in the samples (a quantile, a nearest
neighbour) has a less certain one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sdekit.noise import normal

GROUPS = 10
SIGNIFICANT = 3.25  # standard errors that Student's t with GROUPS − 1 degrees of freedom leaves in 1 of 100 cases
CONFIDENT = 2.262  # and in 1 of 20


def left_out(distance: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, *, paired: bool) -> list[float]:
    """distance(x, y) without each group in turn; ``paired``: sample i of both is in one group.

    Empty where a group would have fewer than two samples.

    >>> x = torch.arange(20.0)[:, None]
    >>> values = left_out(lambda x, y: x.mean() - y.mean(), x, torch.zeros(20, 1), paired=True)
    >>> abs(standard_error(values) / (x.std() / 20**0.5).item() - 1) < 0.3
    True
    """
    if min(len(x), len(y)) < 2 * GROUPS:
        return []
    of_x = _groups(len(x), 0)
    of_y = of_x if paired else _groups(len(y), 1)
    return [distance(x[of_x != group], y[of_y != group]).item() for group in range(GROUPS)]


def _groups(n: int, draw: int) -> Tensor:
    """The group of each of n samples, dealt at random: data may be sorted, or repeat with any period."""
    return normal(0, draw, torch.arange(n), (), torch.float64).argsort().argsort() % GROUPS


def standard_error(values: Sequence[float]) -> float:
    """The standard error of what has these values without each group in turn; infinite where there are none."""
    if not values:
        return math.inf
    mean = math.fsum(values) / len(values)  # a report asks for thousands: no tensors
    variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
    return math.sqrt((len(values) - 1) * variance)


def difference_error(first: Sequence[float], second: Sequence[float]) -> float:
    """The standard error of the difference of two values, from what each is without each group in turn."""
    return standard_error([a - b for a, b in zip(first, second)] if len(first) == len(second) else [])


def half_width(values: Sequence[float]) -> float:
    """Half of the 95% interval of what has these values without each group in turn; infinite where there are none.

    >>> half_width([1.0, 3.0] * 5) == CONFIDENT * 3
    True
    """
    return CONFIDENT * standard_error(values)
