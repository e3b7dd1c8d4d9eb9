"""Flow networks of both conventions, data at t = 0 and data at t = 1: each has one way in, and a mixture is refused."""

import math

import pytest
import torch

import sdekit as sk
from sdekit.prediction import PREDICTIONS

WEIGHTS, MEANS, STDS = (torch.tensor(values, dtype=torch.float64) for values in ([0.8, 0.2], [4.0, -2.0], [0.3, 0.5]))


def lipman(x, s):
    """E[x_1 − x_0 | x_s = x], x_s = s x_1 + (1 − s) x_0, for noise x_0 and data x_1 from the mixture of the constants.

    Lipman et al. 2023, eq. 8, for the path of eq. 20 with σ_min = 0. Within a component all is jointly normal.
    """
    s = s[:, None]
    variances = (s * STDS) ** 2 + (1 - s) ** 2
    offsets = x - s * MEANS
    shares = torch.softmax(WEIGHTS.log() - variances.log() / 2 - offsets**2 / variances / 2, dim=1)
    covariances = s * STDS**2 - (1 - s)  # of x_1 − x_0 with x_s
    return (shares * (MEANS + covariances / variances * offsets)).sum(1, keepdim=True)


def esser(x, t):
    """The same data with z_t = (1 − t) x_0 + t ε (Esser et al. 2024): E[ε − x_0 | z_t]."""
    return -lipman(x, 1 - t)


def drawn(net, predicts, **arguments):
    model = sk.ScoreModel(net, sk.Flow(), predicts=predicts, **arguments)
    return sk.sample(model, (4000, 1), solver="heun", nfe=81, grid="logsnr", seed=0, dtype=torch.float64).x


def distance(x):
    """The largest gap between the samples' distribution function and the mixture's (Kolmogorov)."""
    points = x.flatten().sort().values
    parts = 0.5 * (1 + torch.erf((points[:, None] - MEANS) / STDS / math.sqrt(2)))
    steps = torch.arange(len(points) + 1) / len(points)
    truth = (WEIGHTS * parts).sum(1)
    return torch.maximum((truth - steps[:-1]).abs(), (truth - steps[1:]).abs()).max().item()


CHANCE = 1.95 / math.sqrt(4000)  # exceeded once in a thousand


def test_data_at_one_is_one_setting():
    assert distance(drawn(lipman, "flow-to-data")) < CHANCE


def test_data_at_zero_is_one_setting():
    assert distance(drawn(esser, "flow")) < CHANCE


@pytest.mark.parametrize(("net", "predicts"), [(lipman, "flow"), (esser, "flow-to-data")])
def test_the_other_convention_is_far_off(net, predicts):
    assert distance(drawn(net, predicts)) > 5 * CHANCE


def test_a_network_of_another_kind_with_data_at_one_needs_the_clock_alone():
    def x1(x, s):  # E[x_1 | x_s] = x + (1 − s) u
        return x + (1 - s[:, None]) * lipman(x, s)

    assert distance(drawn(x1, "x0", time="1-t")) < CHANCE
    assert distance(drawn(x1, "x0")) > 5 * CHANCE


def test_the_density_of_a_network_with_data_at_one():
    x = torch.tensor([[4.1], [3.0], [-2.5]], dtype=torch.float64)
    process = sk.Flow(t_min=1e-5, t_max=1 - 1e-5)
    model = sk.ScoreModel(lipman, process, predicts="flow-to-data")
    found = sk.log_prob(model, x, divergence="exact", rtol=1e-8, atol=1e-8).nats
    truth = torch.logsumexp(WEIGHTS.log() + torch.distributions.Normal(MEANS, STDS).log_prob(x), dim=1)
    assert torch.allclose(found, truth, atol=2e-3)


def test_the_velocity_towards_the_data_is_the_other_with_its_sign_turned():
    for process in (sk.Flow(), sk.VP()):
        forth, back = (PREDICTIONS[name](process, 0.3) for name in ("flow", "flow-to-data"))
        assert back == (-forth[0], -forth[1])
    assert PREDICTIONS["flow-to-data"](sk.Flow(), 0.3) == pytest.approx((1.0, -1.0), rel=1e-12)


@pytest.mark.parametrize(
    ("predicts", "time"),
    [
        ("flow", "1-t"),
        ("flow", lambda process, t: 1 - t),
        ("flow", lambda process, t: 1000 * (1 - t)),
        ("flow", lambda process, t: torch.as_tensor(999 * (1 - t)).round().long()),
        ("flow-to-data", "t"),
        ("flow-to-data", "1000t"),
        ("flow-to-data", lambda process, t: 1000 * t),
        ("flow-to-data", lambda process, t: round(1000 * t)),
    ],
)
def test_half_of_a_convention_is_refused(predicts, time):
    with pytest.raises(ValueError, match=rf'predicts="{predicts}" .*time=.* predicts="flow.*"'):
        sk.ScoreModel(lipman, sk.Flow(), predicts=predicts, time=time)


@pytest.mark.parametrize("process", [sk.VP(), sk.VE(), sk.CosineVP(), sk.EDM()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("predicts", ["flow", "flow-to-data"])
def test_a_clock_that_is_not_linear_in_t_serves_both(process, predicts):
    for time in ("half-log-snr", "edm", lambda process, t: process.sigma(t) ** 2):
        sk.ScoreModel(lipman, process, predicts=predicts, time=time)


def test_other_predictions_take_either_clock():
    for predicts in ("eps", "x0", "score", "v"):
        for time in ("t", "1-t", lambda process, t: 1000 * (1 - t)):
            sk.ScoreModel(lipman, sk.Flow(), predicts=predicts, time=time)
