"""The metrics that a comparison can measure, by name, and those that it measures unasked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from sdekit.door import door
from sdekit.metrics.classifier import MOST, classifier_accuracy
from sdekit.metrics.features import frechet_distance, frechet_infinity, vendi_gap
from sdekit.metrics.kernels import cmmd, energy_distance, kernel_distance, mmd
from sdekit.metrics.laws import mode_weights_error, nll_gap
from sdekit.metrics.neighbours import authenticity, prdc
from sdekit.metrics.paired import quantile_error, rmse
from sdekit.metrics.transport import sliced_wasserstein, wasserstein
from sdekit.targets import Target


@door
@dataclass(frozen=True)
class Metric:
    """One column of a comparison.

    Attributes:
        label: what tables and pictures call it.
        distance: f(samples, reference) -> 0-d tensor, smaller is better.
        paired: True: measured against the accurate endpoint of the same start, deterministic solvers
            only; False: against real data.
        features: True: both sets pass through the feature map first, where one is given.
        needs: what ``distance`` takes besides, by this name, and ``compare`` is given: the data's exact ``law``, or the
            data that the network was ``train``ed on, which pass through the feature map too.
        jackknife: False where the jackknife's standard error is more than twice what it should be.

    >>> METRICS["rmse"].paired
    True
    """

    label: str
    distance: Callable[..., Tensor]
    paired: bool = False
    features: bool = False
    needs: Literal["", "law", "train"] = ""
    jackknife: bool = True


def _missed(x: Tensor, y: Tensor, *, share: str, k: int) -> Tensor:
    """What a share of ``prdc`` lacks to 1."""
    return 1 - getattr(prdc(x, y, k), share)


def _density_gap(x: Tensor, y: Tensor) -> Tensor:
    return (1 - prdc(x, y, 5).density).abs()


def _copied(x: Tensor, _: Tensor, train: Tensor) -> Tensor:
    return 1 - authenticity(x, train)


def _mode_weights(x: Tensor, _: Tensor, law: Target) -> Tensor:
    return mode_weights_error(x, law)


_of_features = partial(Metric, features=True)

METRICS: dict[str, Metric] = {
    "rmse": Metric("RMSE to the exact ODE endpoint", rmse, paired=True),
    "median_error": Metric("median error to the exact ODE endpoint", quantile_error, paired=True),
    "q90_error": Metric("90% quantile of errors to the exact ODE endpoint", partial(quantile_error, q=0.9), True),
    "sliced_wasserstein": Metric("sliced Wasserstein to the data", sliced_wasserstein),
    "energy": Metric("energy distance to the data", energy_distance),
    "frechet": _of_features("Fréchet distance to the data", frechet_distance),
    "frechet_infinity": _of_features("Fréchet distance, extrapolated in samples", frechet_infinity, jackknife=False),
    "wasserstein": Metric("Wasserstein-2 distance to the data", wasserstein),
    "kernel": _of_features("kernel distance to the data (KID)", kernel_distance),
    "mmd": _of_features("squared mean discrepancy (Gaussian kernel)", mmd),
    "cmmd": _of_features("CMMD to the data", cmmd),
    "1-precision": _of_features("samples outside the data (1 − precision)", partial(_missed, share="precision", k=3)),
    "1-recall": _of_features("data that samples do not reach (1 − recall)", partial(_missed, share="recall", k=3)),
    "1-coverage": _of_features("data without a sample near (1 − coverage)", partial(_missed, share="coverage", k=5)),
    "density_gap": _of_features("|1 − density| of samples among data", _density_gap, jackknife=False),
    "classifier": _of_features(
        f"accuracy of telling samples from data (of at most {MOST:,} each)", classifier_accuracy, jackknife=False
    ),
    "vendi_gap": _of_features("|log Vendi score − the data's|", vendi_gap),
    "copied": _of_features("samples that are copies (1 − authenticity)", _copied, needs="train"),
    "nll_gap": Metric("|negative log-likelihood − the data's|, nats", nll_gap, needs="law"),
    "mode_weights": Metric("samples in the wrong mode", _mode_weights, needs="law"),
}
DEFAULT = ("rmse", "median_error", "q90_error", "sliced_wasserstein", "energy", "frechet")
