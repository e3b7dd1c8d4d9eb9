"""Log densities by the probability-flow ODE and variational bounds, each with the error of its number."""

from sdekit.likelihood.bounds import KINDS, Elbo, elbo
from sdekit.likelihood.density import DEQUANTISATIONS, LogLikelihood, log_prob
from sdekit.likelihood.errors import Spread, StdErr
from sdekit.likelihood.record import measure

__all__ = [
    "DEQUANTISATIONS", "KINDS", "Elbo", "LogLikelihood", "Spread", "StdErr", "elbo", "log_prob", "measure",
]  # fmt: skip
