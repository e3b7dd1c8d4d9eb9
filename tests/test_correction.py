"""Langevin corrections: the published algorithm, budgets, batches, devices, and what they do to a distribution."""

import math

import pytest
import torch

import sdekit as sk
from sdekit.correction import _STREAM
from sdekit.grid import Grid
from sdekit.noise import key, normal
from sdekit.testing import simgpu
from sdekit.testing.laws import _mixture


def elementwise(x, t):
    return torch.tanh(x) * (1 + t[:, None])


@pytest.mark.parametrize("norms", ["batch", "sample"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", ["VE", "VP"])
def test_it_is_the_published_algorithm(name, count, norms):
    """Song et al. 2021, algorithms 2, 4 (VE) and 3, 5 (VP): reverse diffusion, then ε = 2 α (r ‖z‖/‖s‖)²."""
    process, n, r = (sk.VE(sigma_max=10.0) if name == "VE" else sk.DiscreteVP.linear(30)), 29, 0.2
    model = _mixture().model(process)
    knots = Grid.make(process, "time", n).knots
    samples, draws = torch.arange(5), iter(range(n * count))
    x = start = process.prior_std * torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    for i, (s, t) in enumerate(zip(knots, knots[1:])):
        z = normal(0, i + 1, samples, (1,), torch.float64)
        if name == "VE":
            kept, gap = 1.0, s.sigma**2 - t.sigma**2
            x = x + gap * model.score(x, s.t) + math.sqrt(gap) * z
        else:
            kept, gap = 1 - process.betas[n - i], process.betas[n - i]
            x = (2 - math.sqrt(1 - gap)) * x + gap * model.score(x, s.t) + math.sqrt(gap) * z
        for _ in range(count):
            z = normal(key(0, _STREAM), next(draws), samples, (1,), torch.float64)
            g = model.score(x, t.t)
            sizes = [z.norm(dim=1), g.norm(dim=1)]
            above, below = [size.mean() for size in sizes] if norms == "batch" else [size[:, None] for size in sizes]
            eps = 2 * kept * (r * above / below) ** 2
            x = x + eps * g + torch.sqrt(2 * eps) * z
    corrector = sk.Langevin(snr=r, steps=count, norms=norms)
    out = sk.sample(
        model, (5, 1), solver="reverse-diffusion", steps=n, grid="time", corrector=corrector, start=start, seed=0,
        final="none",
    )  # fmt: skip
    assert out.nfe == n * (1 + count)
    assert torch.allclose(out.x, x, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("solver", ["reverse-diffusion", "ddim", "dpmpp-2m", "ipndm-4"])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("final", ["denoise", "none"])
def test_every_budget_is_exact(solver, count, final):
    for nfe in range(3, 20):
        model = sk.ScoreModel(elementwise, sk.VP())
        corrector = sk.Langevin(steps=count)
        out = sk.sample(model, (2, 2), solver=solver, nfe=nfe, corrector=corrector, final=final, seed=0)
        assert out.nfe == model.nfe == nfe


def test_a_sample_does_not_depend_on_its_batch():
    model = sk.ScoreModel(elementwise, sk.VP())
    arguments = {"solver": "ddim", "nfe": 9, "seed": 4, "corrector": sk.Langevin(steps=2)}
    whole = sk.sample(model, (7, 3), **arguments).x
    assert torch.equal(whole, sk.sample(model, (7, 3), batch_size=3, **arguments).x)
    assert torch.equal(whole[:2], sk.sample(model, (2, 3), **arguments).x)


def test_conditions_reach_the_correction():
    seen = []

    def net(x, t, label):
        seen.append(len(label))
        return 0.5 * x

    model = sk.ScoreModel(net, sk.VP())
    sk.sample(model, (5, 2), solver="ddim", nfe=7, corrector=sk.Langevin(), batch_size=3, label=torch.arange(5))
    assert seen == [3] * 7 + [2] * 7


def test_corrections_mend_a_wrong_distribution():
    """From starts that are half as wide as they should be, at a few knots, on N(0, 1) in 500 dimensions.

    There ‖z‖²/‖s‖² is 1/E x² nearly exactly, so that the chain's mean square is a recursion by hand.
    """
    process, r, d = sk.VP(), 0.1, 500
    target = sk.targets.Gaussian(torch.zeros(d), torch.eye(d))
    start = 0.5 * torch.randn(64, d, generator=torch.Generator().manual_seed(0))
    arguments = {"solver": "ddim", "steps": 3, "start": start, "final": "none", "seed": 1}
    plain = sk.sample(target.model(process), (64, d), **arguments).x
    mended = sk.sample(target.model(process), (64, d), corrector=sk.Langevin(snr=r, steps=150), **arguments).x
    # v = 1 at every t; the score is −x. With m = E x², ε = 2 a² r²/m: (1 − ε)² m + 2 ε = m at m = 1 + ε/2 + …
    kept = [(s.alpha / t.alpha) ** 2 for s, t in zip(*(Grid.make(process, "logsnr", 3).knots[i:] for i in (0, 1)))]
    m = 1.0
    for _ in range(2000):
        eps = 2 * kept[-1] * r**2 / m
        m = (1 - eps) ** 2 * m + 2 * eps
    assert plain.square().mean().item() < 0.26  # the flow keeps it too narrow, and three steps add their error
    # 32,000 numbers: the mean square is known to √(2/32,000) = 0.8%
    assert mended.square().mean().item() == pytest.approx(m, rel=0.025)


def test_a_vanishing_score_needs_no_correction():
    model = sk.ScoreModel(lambda x, t: 0 * x, sk.VP())
    out = sk.sample(model, (2, 2), solver="ddim", nfe=5, corrector=sk.Langevin(), seed=0)
    assert torch.equal(out.x, sk.sample(model, (2, 2), solver="ddim", steps=2, seed=0).x)


def test_on_the_simulated_device_it_is_the_cpu_and_reads_nothing():
    arguments = {"solver": "reverse-diffusion", "nfe": 9, "seed": 3, "corrector": sk.Langevin(steps=2)}
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 3)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(3, 3)
            self.inner.load_state_dict(net.state_dict())

        def forward(self, x, t):
            return torch.tanh(self.inner(x))

    here = sk.sample(sk.ScoreModel(Net(), sk.VP()), (5, 3), **arguments).x
    with simgpu.device() as gpu, gpu.forbid_host_reads():
        there = sk.sample(sk.ScoreModel(Net().to(gpu.device), sk.VP()), (5, 3), **arguments).x
    assert there.device.type == "simgpu"
    assert torch.equal(here, there.cpu())


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ({"nfe": 9}, {"snr": 0}, "Langevin: snr=0.0 is not a number from 0.0001 to 1"),
        ({"nfe": 9}, {"snr": math.nan}, "snr=nan"),
        ({"nfe": 9}, {"steps": 0}, "steps=0"),
        ({"nfe": 9}, {"norms": "all"}, "norms='all' is not one of 'sample', 'batch'"),
        ({"nfe": 9, "solver": "heun"}, {}, "solver 'heun' takes .* such as 'reverse-diffusion'"),
        ({"nfe": 2}, {}, "nfe=2: it must be a whole number of at least 3"),
        ({}, {}, "give one of them"),
        ({"nfe": 5, "steps": 3}, {}, "give one of them"),
        ({"nfe": 9, "final": "nothing"}, {}, "unknown final"),
    ],
)
def test_bad_input_is_named(arguments, options, message):
    model = sk.ScoreModel(elementwise, sk.VP())
    with pytest.raises(ValueError, match=message):
        sk.sample(model, (2, 2), **{"solver": "ddim", **arguments}, corrector=sk.Langevin(**options))
