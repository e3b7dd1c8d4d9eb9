r"""Distances between two sets of samples, and the table of those that a comparison measures.

Each is a pure function of samples x [n, *event] and y [m, *event] that returns a 0-d float64 tensor on
their device; all but the paired ones allow n ≠ m and ignore the order. They work in float64, so that the distance of
near-equal sets is not rounding. A set drawn twice from one law is not at distance 0: compare with ``floor`` of a
comparison, the same distance between two sets of real data of the same sizes.

``METRICS`` is the table: by its names ``compare(metrics=[...])`` chooses, ``DEFAULT`` are those that it measures else.
"""

from sdekit.metrics.classifier import classifier_accuracy
from sdekit.metrics.features import frechet_distance, frechet_infinity, vendi_gap, vendi_score
from sdekit.metrics.kernels import cmmd, energy_distance, kernel_distance, mmd
from sdekit.metrics.laws import mode_weights_error, negative_log_likelihood, nll_gap
from sdekit.metrics.neighbours import PRDC, authenticity, ct_statistic, prdc
from sdekit.metrics.paired import quantile_error, rmse
from sdekit.metrics.table import DEFAULT, METRICS, Metric
from sdekit.metrics.transport import sliced_wasserstein, wasserstein

__all__ = [
    "DEFAULT",
    "METRICS",
    "PRDC",
    "Metric",
    "authenticity",
    "classifier_accuracy",
    "cmmd",
    "ct_statistic",
    "energy_distance",
    "frechet_distance",
    "frechet_infinity",
    "kernel_distance",
    "mmd",
    "mode_weights_error",
    "negative_log_likelihood",
    "nll_gap",
    "prdc",
    "quantile_error",
    "rmse",
    "sliced_wasserstein",
    "vendi_gap",
    "vendi_score",
    "wasserstein",
]
