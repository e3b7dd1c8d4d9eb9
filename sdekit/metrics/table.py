"""The metrics that a comparison can measure, by name, and those that it measures unasked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from sdekit.metrics.classifier import classifier_accuracy
from sdekit.metrics.features import frechet_distance, frechet_infinity, vendi_gap
from sdekit.metrics.kernels import cmmd, energy_distance, kernel_distance, mmd
from sdekit.metrics.laws import mode_weights_error, nll_gap
from sdekit.metrics.neighbours import authenticity, prdc
from sdekit.metrics.paired import quantile_error, rmse
from sdekit.metrics.transport import sliced_wasserstein, wasserstein
from sdekit.targets import Target


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
        jackknife: False where its values without a group of the samples do not tell its error.

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


METRICS: dict[str, Metric] = {
    "rmse": Metric("RMSE to the exact ODE endpoint", rmse, paired=True),
    "median_error": Metric("median error to the exact ODE endpoint", quantile_error, paired=True),
    "q90_error": Metric(
        "90% quantile of errors to the exact ODE endpoint", partial(quantile_error, q=0.9), paired=True
    ),
    "sliced_wasserstein": Metric("sliced Wasserstein to the data", sliced_wasserstein),
    "energy": Metric("energy distance to the data", energy_distance),
    "frechet": Metric("Fréchet distance to the data", frechet_distance, features=True),
    "frechet_infinity": Metric(
        "Fréchet distance to the data, for infinitely many samples", frechet_infinity, features=True
    ),
    "wasserstein": Metric("Wasserstein-2 distance to the data", wasserstein),
    "kernel": Metric("kernel distance to the data (KID)", kernel_distance, features=True),
    "mmd": Metric("squared mean discrepancy to the data (Gaussian kernel)", mmd, features=True),
    "cmmd": Metric("CMMD to the data", cmmd, features=True),
    "1-precision": Metric(
        "share of samples outside the data (1 − precision)", partial(_missed, share="precision", k=3), features=True
    ),
    "1-recall": Metric(
        "share of data that samples do not reach (1 − recall)", partial(_missed, share="recall", k=3), features=True
    ),
    "1-coverage": Metric(
        "share of data without a sample near (1 − coverage)", partial(_missed, share="coverage", k=5), features=True
    ),
    "density_gap": Metric("|1 − density| of samples among the data", _density_gap, features=True),
    "classifier": Metric("accuracy of telling samples from data (½: by chance)", classifier_accuracy, features=True),
    "vendi_gap": Metric("|log Vendi score − the data's|", vendi_gap, features=True),
    "copied": Metric("share of samples that are copies (1 − authenticity)", _copied, features=True, needs="train"),
    "nll_gap": Metric("|negative log-likelihood − the data's| in nats", nll_gap, needs="law"),
    "mode_weights": Metric("share of samples in the wrong mode", _mode_weights, needs="law"),
}
DEFAULT = ("rmse", "median_error", "q90_error", "sliced_wasserstein", "energy", "frechet")
