"""When data are said to be far from standardised, and when not."""

import warnings

import pytest
import torch

import sdekit as sk
from sdekit.misfit import Misfit, MisfitWarning, warn_of_data, warn_of_start

PROCESSES = [sk.VP(), sk.SubVP(), sk.VE(), sk.CosineVP(), sk.Flow(), sk.DiscreteVP()]
each = pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)


def normal(n, *event, mean=0.0, std=1.0):
    return mean + std * torch.randn(n, *event, generator=torch.Generator().manual_seed(n))


@each
def test_standardised_data_warn_of_nothing(process):
    """Nor do images in [0, 1] or [−1, 1]: warnings are errors here."""
    dark = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0)) ** 3
    for n in (16, 100, 5000):
        near = (normal(n), normal(n, 2), normal(n, 300), normal(n, 3, mean=1.5), normal(n, 2, std=2.0))  # scalars too
        for x in (*near, dark, 2 * dark - 1):
            warn_of_start(process, x)
            warn_of_data(process, x, "x")


def test_the_mean_of_samples_is_short_by_what_the_warning_says():
    """N(8, 1) under VE: 8/50 of a standard deviation, whatever the solver."""
    target = sk.targets.Gaussian(torch.tensor([8.0]), torch.eye(1))
    with pytest.warns(MisfitWarning, match=r"start from N\(0, σ²\) of VE have a mean that is short by 0\.2 "):
        out = sk.sample(target.model(sk.VE()), (4000, 1), nfe=30, seed=0)
    assert 8 - out.x.mean().item() == pytest.approx(8 / 50, abs=0.05)
    misfit = Misfit.of(sk.VE(), target.sample(4000))
    assert misfit.shift == pytest.approx(8 / 50, abs=0.003)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sk.sample(target.model(sk.VP()), (4000, 1), nfe=10, seed=0)  # 0.05 of one
        sk.sample(target.model(sk.VE()), (4, 1), nfe=10, seed=0)  # four samples tell nothing


def test_compare_warns_of_its_reference():
    target = sk.targets.Gaussian(torch.tensor([20.0, 0.0]), torch.eye(2))
    with pytest.warns(MisfitWarning):
        sk.compare(target.model(sk.VE()), target.sample(40), solvers=["ddim"], nfe=[3], samples=8)


@pytest.mark.parametrize(
    ("x", "process", "message"),
    [
        (normal(100, 1, mean=8.0), sk.VE(), "costs 0.2 of their standard deviations"),
        (normal(100, 1, mean=8.0), sk.VP(), "root mean square is (7.9|8)"),
        (normal(100, 1, mean=8.0, std=0.1), sk.Flow(), "root mean square is (7.9|8)"),
        (normal(100, 2, std=0.05), sk.VE(), "left at t_min is 0.2"),
        (normal(100, 2, std=25.0), sk.VE(), "costs 0.1"),
    ],
)
def test_training_data_far_from_standardised(x, process, message):
    with pytest.warns(MisfitWarning, match=message):
        warn_of_data(process, x, "images")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_data(process, sk.data.Standardise.of(x).apply(x), "images")


def test_training_warns_once():
    from sdekit.nn import UNet
    from sdekit.training import Optimisation, train_denoiser

    net = UNet(widths=(8, 8), embedding=8, groups=2)
    with pytest.warns(MisfitWarning, match="data: far from standardised for VP") as seen:
        train_denoiser(net, sk.VP(), normal(20, 1, 4, 4, mean=8.0), plan=Optimisation(steps=2, lr=1e-3))
    assert len(seen) == 1
