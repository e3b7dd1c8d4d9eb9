"""``check_process``: it passes every process of the package, and fails each formula that is wrong."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from strategies import PROCESSES

from sdekit.elementwise import exp, log, log1p, sqrt
from sdekit.process import VP, Process
from sdekit.testing import check_process
from sdekit.testing.process_laws import PROCESS_LAWS

SMALL_STARTS = {"VP from 1e-5": VP(t_min=1e-5)}


@pytest.mark.parametrize("law", PROCESS_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", [*PROCESSES, *SMALL_STARTS])
def test_law(name, law):
    law({**PROCESSES, **SMALL_STARTS}[name])


@dataclass(frozen=True)
class Noise(Process):
    """α = 1, σ = t (Karras et al. 2022)."""

    t_min: float = 0.002
    t_max: float = 80.0

    def log_alpha(self, t):
        return 0.0 * t

    def log_sigma(self, t):
        return log(t)

    def drift_rate(self, t):
        return 0.0 * t

    def diffusion(self, t):
        return sqrt(2 * t)

    def t_of_half_log_snr(self, half_log_snr):
        return exp(-half_log_snr)


def test_a_process_without_a_range_of_times_is_named():
    class Endless(Process):
        log_alpha, log_sigma = Noise.log_alpha, Noise.log_sigma
        drift_rate, diffusion, t_of_half_log_snr = Noise.drift_rate, Noise.diffusion, Noise.t_of_half_log_snr

    with pytest.raises(AssertionError, match="Endless has no t_min and no t_max"):
        check_process(Endless())


def test_a_right_process_passes():
    check_process(Noise())


def _cancelling(self, t):
    alpha = torch.exp(VP.log_alpha(self, t)) if isinstance(t, torch.Tensor) else math.exp(VP.log_alpha(self, t))
    return 0.5 * log(1 - alpha**2)


@pytest.mark.parametrize(
    ("base", "wrong", "message"),
    [
        (Noise(), {"t_min": -1.0}, "t_min=-1.0"),
        (Noise(), {"t_min": 0.0}, "math domain error|at t=0.0"),
        (Noise(), {"__hash__": None}, "unhashable"),
        (Noise(), {"log_sigma": lambda self, t: log1p(-t / 81) + 5}, "half_log_snr must fall with t"),
        (Noise(), {"t_of_half_log_snr": lambda self, level: exp(level)}, "t_of_half_log_snr: "),
        (Noise(), {"log_sigma": lambda self, t: math.log(t)}, "log_sigma: .* a tensor .*sdekit.elementwise"),
        (Noise(), {"log_alpha": lambda self, t: torch.tensor(0.0) * t}, "log_alpha: a float must give a float"),
        (Noise(), {"log_alpha": lambda self, t: 0.0}, "log_alpha: .* a tensor"),
        (Noise(), {"diffusion": lambda self, t: sqrt(t)}, r"diffusion\(.* but sqrt"),
        (Noise(), {"drift_rate": lambda self, t: 0.01 + 0.0 * t}, r"drift_rate\(.* but d log_alpha/dt"),
        (VP(), {"drift_rate": lambda self, t: 1.001 * VP.drift_rate(self, t)}, r"drift_rate\("),
        (VP(t_min=1e-5), {"log_sigma": _cancelling}, r"sigma\(.* in float32"),
        (Noise(), {"transition": lambda self, s, t: (1.0, t - s)}, "transition: "),
        (VP(), {"knot": lambda self, t: replace(VP().knot(t), sigma=1.1 * VP().sigma(t))}, "ddim: errors"),
    ],
)
def test_a_wrong_formula_is_named(base, wrong, message):
    process = object.__new__(type("Mutant", (type(base),), wrong))
    process.__dict__.update({**base.__dict__, **{name: wrong[name] for name in wrong if name in base.__dict__}})
    with pytest.raises((AssertionError, TypeError, ValueError), match=message):
        check_process(process)
