"""sbi's score estimators as models of θ, against the library's own scores and probability-flow ODE."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchdiffeq import odeint

import sdekit as sk
from sdekit.interop import sbi

estimators = pytest.importorskip("sbi.neural_nets.estimators.score_estimator", exc_type=ImportError)

F64 = torch.float64
X_O = torch.tensor([[0.5, -1.0, 2.0]], dtype=F64)
PROCESSES = {
    "VPScoreEstimator": sk.VP(0.01, 10.0, 1e-3, 1.0),
    "SubVPScoreEstimator": sk.SubVP(0.01, 10.0, 1e-2, 1.0),
    "VEScoreEstimator": sk.VE(1e-4, 10.0, 1e-3, 1.0),
}


class Net(nn.Module):
    """What an estimator asks of a network: (θ, embedded x, time) → θ's shape."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(2, 2, generator=generator) / 2)
        self.seen = nn.Parameter(torch.randn(3, 2, generator=generator) / 2)
        self.drop = nn.Dropout(0.5)

    def forward(self, theta: torch.Tensor, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self.drop(torch.tanh(theta @ self.weight + x @ self.seen + torch.sin(3 * time)[:, None]))


def estimator(kind: str, **arguments):
    mean, std = torch.tensor([0.3, -0.2]), torch.tensor([0.8, 1.2])
    torch.manual_seed(0)
    made = getattr(estimators, kind)(
        Net(), torch.Size([2]), torch.Size([3]), embedding_net=nn.Linear(3, 3), mean_0=mean, std_0=std, **arguments
    )
    nn.init.normal_(made.embedding_net.weight)
    return made.double().eval()


def start(n: int = 8) -> torch.Tensor:
    return sk.noise.normal(3, 0, torch.arange(n), (2,), F64)


@pytest.mark.parametrize("kind", PROCESSES)
def test_the_process_and_the_score_are_the_estimators(kind):
    own, theta = estimator(kind), start()
    model = sbi.wrap(own, X_O)
    assert model.process == PROCESSES[kind]
    process = sbi.process_of(estimator(kind, t_min=0.02, t_max=0.9))
    assert (process.t_min, process.t_max) == (0.02, 0.9)
    for t in (model.process.t_min, 0.4, 1.0):
        time = torch.full((8,), t, dtype=F64)
        truth = own.score(theta, X_O, time)
        assert torch.allclose(model.score(theta, t), truth, rtol=1e-12, atol=1e-12)
        assert torch.allclose(
            torch.full_like(theta, model.process.alpha(t)), own.mean_t_fn(time).expand(8, 2), rtol=1e-9
        )
        assert torch.allclose(torch.full_like(theta, model.process.sigma(t)), own.std_fn(time).expand(8, 2), rtol=1e-9)
        assert torch.allclose(model.flow(theta, t), own.ode_fn(theta, X_O, time), rtol=1e-8, atol=1e-9)
    assert torch.equal(sbi.wrap(own, X_O.numpy()).score(theta, 0.4), model.score(theta, 0.4))
    assert torch.equal(sbi.wrap(own).score(theta, 0.4, observation=X_O.numpy()), model.score(theta, 0.4))
    rows = torch.cat([X_O + i for i in range(8)])
    given = sbi.wrap(own)
    assert torch.allclose(
        given.score(theta, 0.4, observation=rows), own.score(theta, rows, torch.full((8,), 0.4, dtype=F64))
    )


@pytest.mark.parametrize("kind", PROCESSES)
def test_the_ode_leads_where_sbis_does(kind):
    own = estimator(kind)
    model = sbi.wrap(own, X_O)
    begin = own.mean_base + own.std_base * start()
    span = torch.tensor([model.process.t_max, model.process.t_min], dtype=F64)
    with torch.no_grad():
        inside = {"step_t": span[1:], "first_step": 1e-3}  # else torchdiffeq steps past the end, where σ² < 0
        ode = lambda t, x: own.ode_fn(x, X_O, t.expand(8))  # noqa: E731
        truth = odeint(ode, begin, span, rtol=1e-8, atol=1e-9, options=inside)[-1]
    own.train()  # runs put it into evaluation mode
    found = sk.decode(model, begin, method="dopri5", rtol=1e-8, atol=1e-9)
    assert torch.allclose(found, truth, rtol=0, atol=1e-7)
    assert own.training
    runs = [sk.sample(model, (8, 2), solver="dpmpp-3m", nfe=400, start=begin, final="none").x for _ in range(2)]
    assert torch.allclose(runs[0], truth, rtol=0, atol=2e-3)
    assert torch.equal(*runs)


def test_a_posterior_that_is_known_is_sampled_and_has_its_density():
    """θ ~ N(0, 1), x_o = θ + N(0, 1/4) gives N(0.8 x_o, 0.2): an estimator that is exact, with its own start."""

    class Exact(estimators.VPScoreEstimator):
        def forward(self, input, condition, time):
            alpha, sigma = self.mean_t_fn(time), self.std_fn(time)
            return -(input - alpha * 0.8 * condition) / (alpha**2 * 0.2 + sigma**2)

    own = Exact(
        nn.Identity(), torch.Size([1]), torch.Size([1]), mean_0=torch.tensor([0.8]), std_0=torch.tensor([0.45])
    ).double()
    x_o = torch.tensor([[1.0]], dtype=F64)
    model = sbi.wrap(own, x_o)
    out = sk.sample(model, (4000, 1), nfe=20, start=sbi.start(own, 4000, seed=1))
    assert out.x.mean().item() == pytest.approx(0.8, abs=0.03)
    assert out.x.std().item() == pytest.approx(0.2**0.5, abs=0.02)
    theta = torch.tensor([[0.5], [1.2]], dtype=F64)
    std = own.std_base.double()
    prior = lambda z: torch.distributions.Normal(own.mean_base, std).log_prob(z).sum(1)  # noqa: E731
    truth = torch.distributions.Normal(0.8, 0.2**0.5).log_prob(theta)[:, 0]
    assert torch.allclose(sk.log_prob(model, theta, prior=prior).nats, truth, atol=0.02)


def test_starts_are_sbis_base_distribution():
    own = estimator("VPScoreEstimator")
    x = sbi.start(own, 20000, seed=2)
    assert x.shape == (20000, 2)
    assert torch.allclose(x.mean(0), own.mean_base[0], atol=0.03)
    assert torch.allclose(x.std(0), own.std_base[0], atol=0.03)
    assert torch.equal(x[:5], sbi.start(own, 5, seed=2))


@pytest.mark.parametrize(
    ("bound", "given", "words"),
    [
        (None, None, r"missing: give x_o \[1, 3\] to wrap"),
        (X_O, X_O, "given twice"),
        (None, X_O[0], r"shape \[3\], it must be \[1, 3\] or \[8, 3\]"),
        (None, X_O.expand(4, 3), r"shape \[4, 3\], it must be \[1, 3\] or \[8, 3\]"),
        (None, X_O[:, :2], r"shape \[1, 2\]"),
    ],
)
def test_observations_that_do_not_fit_are_refused(bound, given, words):
    model = sbi.wrap(estimator("VPScoreEstimator"), bound)
    with pytest.raises(ValueError, match=words):
        model.score(start(), 0.4, **({} if given is None else {"observation": given}))


def test_other_estimators_are_refused():
    with pytest.raises(ValueError, match=r"shape \[2, 3\], it must be \[1, 3\]"):
        sbi.wrap(estimator("VPScoreEstimator"), X_O.expand(2, 3))
    with pytest.raises(ValueError, match=r"unknown estimator 'Linear'.*VPScoreEstimator"):
        sbi.wrap(nn.Linear(2, 2))
    own = estimator("VPScoreEstimator")
    own._compose_standardization.fill_(True)
    with pytest.raises(ValueError, match="compose_standardization=True"):
        sbi.wrap(own, X_O)


def test_an_estimator_that_sbi_trained_is_taken_as_it_is(tmp_path, monkeypatch):
    inference = pytest.importorskip("sbi.inference")
    monkeypatch.chdir(tmp_path)  # where sbi writes its logs
    torch.manual_seed(0)
    theta = torch.randn(200, 2)
    x = theta + 0.3 * torch.randn(200, 2)
    trainer = inference.NPSE(
        prior=torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)), show_progress_bars=False
    )
    with pytest.warns(UserWarning, match="not yet fully converged"):
        own = trainer.append_simulations(theta, x).train(max_num_epochs=2)
    model, x_o = sbi.wrap(own, torch.zeros(1, 2)), torch.zeros(1, 2)
    states, t = start().float(), 0.4
    truth = own.score(states, x_o, torch.full((8,), t))
    assert torch.allclose(model.score(states, t), truth, atol=1e-5)
    out = sk.sample(model, (16, 2), nfe=10, start=sbi.start(own, 16))
    assert out.x.isfinite().all()
    with pytest.raises(ValueError, match=r"in torch.bfloat16.*\.float\(\)"):
        sbi.wrap(own.bfloat16(), x_o)
