"""``check_process``: it passes every process of the package, and fails each formula that is wrong."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from strategies import PROCESSES

import sdekit as sk
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


@dataclass
class Learned(Process):
    """σ = t^power, as a schedule that is being learned: its numbers change, and it has no hash."""

    power: float = 1.0
    t_min: float = 0.002
    t_max: float = 80.0

    log_alpha = drift_rate = Noise.drift_rate

    def log_sigma(self, t):
        return self.power * log(t)

    def diffusion(self, t):
        return sqrt(2 * self.power * exp((2 * self.power - 1) * log(t)))

    def t_of_half_log_snr(self, half_log_snr):
        return exp(-half_log_snr / self.power)


def test_a_process_that_changes_is_asked_again():
    process, x = Learned(), torch.ones(1, 2, dtype=torch.float64)
    check_process(process)
    model = sk.ScoreModel(lambda x, t: 0.1 * x, process)
    kwargs = {"solver": "unipc-2", "nfe": 6, "start": x}
    before = (sk.sample(model, (1, 2), **kwargs).x, model.score(x, 0.7), sk.encode(model, x, method="ddim", steps=4))
    process.power, process.t_max = 1.3, 40.0
    after = (sk.sample(model, (1, 2), **kwargs).x, model.score(x, 0.7), sk.encode(model, x, method="ddim", steps=4))
    fresh = sk.ScoreModel(lambda x, t: 0.1 * x, Learned(1.3, 0.002, 40.0))
    truth = (sk.sample(fresh, (1, 2), **kwargs).x, fresh.score(x, 0.7), sk.encode(fresh, x, method="ddim", steps=4))
    for old, new, right in zip(before, after, truth):
        assert torch.equal(new, right)
        assert not torch.equal(old, new)


class Stale(Noise):
    """Frozen by inheritance alone: ``scale`` can be set, and decides σ."""

    def log_sigma(self, t):
        return log(t) + getattr(self, "scale", 0.0)

    def t_of_half_log_snr(self, half_log_snr):
        return exp(-half_log_snr - getattr(self, "scale", 0.0))


def test_an_attribute_set_later_counts():
    process = Stale()
    before = sk.solvers.get("ddim").plan(process, steps=2)
    object.__setattr__(process, "scale", 1.0)
    assert sk.solvers.get("ddim").plan(process, steps=2).start.sigma == pytest.approx(math.e * before.start.sigma)


def _cancelling(self, t):
    alpha = torch.exp(VP.log_alpha(self, t)) if isinstance(t, torch.Tensor) else math.exp(VP.log_alpha(self, t))
    return 0.5 * log(1 - alpha**2)


@pytest.mark.parametrize(
    ("base", "wrong", "message"),
    [
        (Noise(), {"t_min": -1.0}, "t_min=-1.0"),
        (Noise(), {"t_min": 0.0}, "math domain error|at t=0.0"),
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
