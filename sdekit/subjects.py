"""What the command runs on: a model, data to measure against, and a feature map, shipped or of the user's own.

torch is imported by the functions, not here: ``sdekit --help`` names the targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sdekit.data import Quantization
    from sdekit.readers import DataSet
    from sdekit.sampling import Model
    from sdekit.targets import Target

DEFAULT_TARGET = "digits"


@dataclass(frozen=True)
class Subject:
    """What a command runs on.

    Attributes:
        name: what records call it.
        model: what is sampled.
        event: shape of one sample.
        reference: data to measure against [m, *event]; None where none were given.
        real: more data, for the floor; None has the reference split in halves.
        features: the feature map of the metrics that use one.
        quantization: how levels became the reference; None for data without levels.
        note: what is to be told about the data before the run.
        law: the data's exact law, where it is known.
    """

    name: str
    model: Model
    event: tuple[int, ...]
    reference: Tensor | None = None
    real: Tensor | None = None
    features: Callable[[Tensor], Tensor] | None = None
    quantization: Quantization | None = None
    note: str = ""
    law: Target | None = None

    @property
    def measured(self) -> int:
        """How many samples a set to measure against has."""
        if self.reference is None:
            return 0
        return len(self.reference) if self.real is not None else len(self.reference) // 2


def target(name: str, device: torch.device) -> Subject:
    """The shipped subject of that name. Raises ValueError for a name that is not in ``TARGETS``."""
    from sdekit.names import lookup

    return lookup("target", name, TARGETS)(device)


def own(
    model: str, device: torch.device, data: str = "", shape: Sequence[int] = (), limit: int | None = None
) -> Subject:
    """A model of the user's (``loading.model_of``), with data from files (``readers.read``) or only a shape.

    Raises ValueError as those, and where neither data nor a shape are given or they differ.
    """
    from sdekit.loading import model_of
    from sdekit.readers import read

    if not data and not shape:
        raise ValueError("--model: what shape has a sample? Give --data, or --shape as in --shape 3,32,32")
    found = read(data, limit) if data else None
    if found is not None and shape and tuple(shape) != tuple(found.x.shape[1:]):
        raise ValueError(f"--shape {list(shape)}: samples in --data {data} have the shape {list(found.x.shape[1:])}")
    event = tuple(shape) if found is None else tuple(found.x.shape[1:])
    subject = Subject(model, model_of(model, device), event)
    return subject if found is None else with_data(subject, data, found)


def with_data(subject: Subject, name: str, data: DataSet) -> Subject:
    """The subject, measured against ``data`` alone."""
    used = len(data.x)
    count = f"{used} samples" if used == data.total else f"{used} of {data.total} samples"
    low, high = data.x.min().item(), data.x.max().item()
    facts = [f"{count} of shape {list(data.x.shape[1:])}", f"from {low:.3g} to {high:.3g}", *filter(None, [data.note])]
    return replace(
        subject, reference=data.x, real=None, quantization=data.quantization, note=f"{name}: {', '.join(facts)}"
    )


def with_features(subject: Subject, features: str, device: torch.device) -> Subject:
    """The subject with another feature map (``loading.features_of``)."""
    from sdekit.loading import features_of

    if subject.reference is None:
        raise ValueError("--features: there are no data whose features could be compared; give --data")
    return replace(subject, features=features_of(features, subject.reference, device))


def _digits(device: torch.device) -> Subject:
    """The shipped network, trained on real digits."""
    from sdekit.data import DIGITS, digits
    from sdekit.nn import digits_features, digits_model

    data = digits()
    return Subject("digits", digits_model(device), (1, 8, 8), data.held_out, data.train, digits_features(), DIGITS)


def _digits_mixture(device: torch.device) -> Subject:
    """The same digits as a mixture: the exact network of the training set blurred by 0.1."""
    from sdekit.data import digits
    from sdekit.nn import digits_features
    from sdekit.targets import Empirical

    return _exact("digits-mixture", Empirical(digits().train, 0.1), device, digits_features())


def _mixture_2d(device: torch.device) -> Subject:
    """Eight Gaussians on a circle, exact."""
    import torch

    from sdekit.targets import GaussianMixture

    angles = torch.arange(8) * (torch.pi / 4)
    mixture = GaussianMixture(torch.stack([angles.cos(), angles.sin()], dim=1), 0.1)
    return _exact("mixture-2d", mixture, device)


def _gaussian(device: torch.device) -> Subject:
    """A correlated Gaussian in two dimensions, exact."""
    import torch

    from sdekit.targets import Gaussian

    gaussian = Gaussian(torch.tensor([1.0, -0.5]), torch.tensor([[1.0, 0.6], [0.6, 0.5]]))
    return _exact("gaussian", gaussian, device)


def _exact(name: str, target: Target, device: torch.device, features: Any = None) -> Subject:
    from sdekit.process import VP

    data, more = target.sample(2048, seed=1), target.sample(2048, seed=2)
    law = target.to(device)
    return Subject(name, law.model(VP()), tuple(data.shape[1:]), data, more, features, law=law)


TARGETS: dict[str, Callable[[torch.device], Subject]] = {
    "digits": _digits,
    "digits-mixture": _digits_mixture,
    "mixture-2d": _mixture_2d,
    "gaussian": _gaussian,
}
