"""Real data to measure samples against, and what the same measures give on more real data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sdekit.data import as_tensor
from sdekit.identity import identify
from sdekit.jackknife import left_out, standard_error
from sdekit.metrics import DEFAULT, METRICS, Metric
from sdekit.model import evaluating
from sdekit.names import lookup
from sdekit.noise import normal

Features = Callable[[Tensor], Tensor]
FLOOR_DRAWS = 8  # subsets of the real data over which the floor is averaged


@dataclass(frozen=True)
class Ruler:
    """The reference, its features, and its floor: ``Comparison.floor`` and ``spread``.

    Attributes:
        digest: of the data and the feature map, whose own digest the caller gives.
        metrics: those that are measured, by name.
        given: what some of them need, by its name.
    """

    data: Tensor
    embedded: Tensor
    features: Features | None
    digest: str
    floor: Mapping[str, float]
    spread: Mapping[str, float]
    metrics: Mapping[str, Metric]
    given: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def make(
        cls,
        reference: Tensor,
        real: Tensor | None,
        features: Features | None,
        samples: int,
        embedding: str,
        metrics: Mapping[str, Metric],
        given: Mapping[str, Any],
    ) -> Ruler:
        if real is None:
            reference, real = reference[::2], reference[1::2]
        if min(len(reference), len(real)) < 2:
            raise ValueError(f"reference, real: {len(reference)} and {len(real)} samples: each needs at least 2")
        reference, real = reference.cpu(), real.cpu()
        given = {name: _embed(features, thing.cpu()) if name == "train" else thing for name, thing in given.items()}
        bare = cls(reference, _embed(features, reference), features, "", {}, {}, metrics, given)
        # one subset where it takes all of the real data: any other would be the same
        subsets = range(FLOOR_DRAWS if len(real) > samples else 1)
        orders = [normal(i, 0, torch.arange(len(real)), (), torch.float64).argsort() for i in subsets]
        values = [bare.against_data(real[order[:samples]]) for order in orders]
        table = {name: torch.tensor([value[name] for value in values], dtype=torch.float64) for name in values[0]}
        floor = {name: row.mean().item() for name, row in table.items()}
        if len(real) > samples:  # subsets share samples, and differ by less than sets drawn anew
            spread = {name: row.std().item() / math.sqrt(1 - samples / len(real)) for name, row in table.items()}
        else:
            spread = {name: standard_error(rest) for name, rest in bare.left_out(real).items() if rest}
        return replace(bare, digest=identify((reference, real, embedding)), floor=floor, spread=spread)

    @property
    def paired(self) -> Mapping[str, Metric]:
        return {name: metric for name, metric in self.metrics.items() if metric.paired}

    def against_data(self, x: Tensor) -> dict[str, float]:
        """Every metric that is not paired."""
        return {name: self._distance(metric)(*sets).item() for name, (metric, sets) in self._sets(x).items()}

    def left_out(self, x: Tensor) -> dict[str, list[float]]:
        """The same without each group of the jackknife in turn."""
        found = {name: both for name, both in self._sets(x).items() if both[0].jackknife}
        return {name: left_out(self._distance(metric), *sets, paired=False) for name, (metric, sets) in found.items()}

    def against_endpoint(self, x: Tensor, endpoint: Tensor) -> dict[str, float]:
        """Every paired metric."""
        return {name: metric.distance(x, endpoint).item() for name, metric in self.paired.items()}

    def against_endpoint_left_out(self, x: Tensor, endpoint: Tensor) -> dict[str, list[float]]:
        """The same without each group of the jackknife in turn."""
        return {name: left_out(metric.distance, x, endpoint, paired=True) for name, metric in self.paired.items()}

    def _sets(self, x: Tensor) -> dict[str, tuple[Metric, tuple[Tensor, Tensor]]]:
        """What each metric that is not paired compares."""
        pairs = {False: (x, self.data), True: (_embed(self.features, x), self.embedded)}
        return {name: (metric, pairs[metric.features]) for name, metric in self.metrics.items() if not metric.paired}

    def _distance(self, metric: Metric) -> Callable[[Tensor, Tensor], Tensor]:
        needed = {metric.needs: self.given[metric.needs]} if metric.needs else {}
        return partial(metric.distance, **needed)


def chosen(names: str | Sequence[str] | None, given: Mapping[str, Any]) -> dict[str, Metric]:
    """The metrics of those names, each once; what they need must be given."""
    names = DEFAULT if names is None else [names] if isinstance(names, str) else names
    found = {name: lookup("metric", name, METRICS) for name in names}
    if not found:
        raise ValueError("metrics: none given, at least 1 is needed")
    for name, metric in found.items():
        if metric.needs and metric.needs not in given:
            raise ValueError(f"metrics: {name!r} needs {metric.needs}=..., which is not given")
    return found


def checked_data(name: str, given: Tensor | np.ndarray) -> Tensor:
    """Real data as a tensor, checked."""
    x = as_tensor(given)
    if x.ndim < 2 or not x.is_floating_point():
        raise ValueError(
            f"{name} has shape {list(x.shape)} and dtype {x.dtype}: it must be floating-point [m, *event], with [m, 1]"
            " for m numbers"
        )
    if not bool(x.isfinite().all()):
        raise ValueError(f"{name} holds NaN or infinity: every entry must be finite")
    return x


def _embed(features: Features | None, x: Tensor) -> Tensor:
    if features is None:
        return x
    parameter = next(features.parameters(), x) if isinstance(features, nn.Module) else x
    with evaluating(features):
        return torch.cat([features(part.to(parameter)).cpu() for part in x.split(1024)])
