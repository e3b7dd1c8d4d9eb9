"""A network in training mode: sampled in evaluation mode, and given back as it was."""

import functools
import itertools

import pytest
import torch
from torch import nn

import sdekit as sk
from sdekit.model import networks


class Noisy(nn.Module):
    """Dropout and batch normalisation: in training mode both make each call another function."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(2), nn.Dropout(0.5)
        self.calls = []

    def forward(self, x, t):
        self.calls.append(self.training or self.norm.training or self.drop.training)
        return self.drop(self.norm(x))


class Scaled:
    def __init__(self, model):
        self.model, self.process = model, model.process

    nfe = property(lambda self: self.model.nfe)
    device = property(lambda self: self.model.device)

    def predict(self, kind, x, t):
        return 0.5 * self.model.predict(kind, x, t)


class Callables:
    def __init__(self, net):
        self.nets = {"main": [net]}

    def __call__(self, x, t):
        return self.nets["main"][0](x, t)


WRAPPERS = {
    "module": lambda net: sk.ScoreModel(net, sk.VP()),
    "function": lambda net: sk.ScoreModel(lambda x, t: net(x, t), sk.VP()),
    "default": lambda net: sk.ScoreModel(lambda x, t, net=net: net(x, t), sk.VP()),
    "partial": lambda net: sk.ScoreModel(functools.partial(lambda net, x, t: net(x, t), net), sk.VP()),
    "method": lambda net: sk.ScoreModel(net.forward, sk.VP()),
    "object": lambda net: sk.ScoreModel(Callables(net), sk.VP()),
    "wrapper": lambda net: Scaled(sk.ScoreModel(net, sk.VP())),
    "wrapper of wrapper": lambda net: Scaled(Scaled(sk.ScoreModel(net, sk.VP()))),
}
X = torch.linspace(-1, 1, 8).reshape(4, 2)
USES = {
    "sample": lambda model: sk.sample(model, (4, 2), nfe=5, seed=0).x,
    "sample_adaptive": lambda model: sk.sample_adaptive(model, (4, 2), seed=0).x,
    "encode": lambda model: sk.encode(model, X),
    "decode": lambda model: sk.decode(model, X, method="ddim", steps=5),
    "log_prob": lambda model: sk.log_prob(model, X, divergence="exact").nats,
    "elbo": lambda model: sk.elbo(model, X).nats,
    "compare": lambda model: [c.metrics for c in sk.compare(model, X, solvers=["ddim"], nfe=[3], samples=8).cells],
    "fit_gits": lambda model: sk.fit_gits(model, X, 3, teacher_steps=10),
}


@pytest.mark.parametrize("use", USES)
def test_every_use_is_in_evaluation_mode_and_gives_back_the_mode(use):
    net = Noisy()
    net.drop.eval()  # a part that the user has frozen stays so
    first, second = (USES[use](WRAPPERS["module"](net)) for _ in range(2))
    assert net.calls
    assert not any(net.calls)
    assert torch.equal(first, second) if isinstance(first, torch.Tensor) else str(first) == str(second)
    assert (net.training, net.norm.training, net.drop.training) == (True, True, False)
    assert int(net.norm.num_batches_tracked) == 0


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_the_network_is_found_through_every_wrapper(wrap):
    net = Noisy()
    out = sk.sample(WRAPPERS[wrap](net), (4, 2), nfe=5, seed=0)
    again = sk.sample(WRAPPERS[wrap](net), (4, 2), nfe=5, seed=0)
    assert torch.equal(out.x, again.x)
    assert net.training


def test_the_mode_comes_back_after_an_error():
    net = Noisy()
    with pytest.raises(RuntimeError):
        sk.sample(sk.ScoreModel(net, sk.VP()), (4, 3), nfe=5, seed=0)
    assert all(part.training for part in net.modules())


def test_a_feature_map_is_used_in_evaluation_mode_too():
    features = nn.Sequential(nn.Dropout(0.5))
    model = sk.ScoreModel(lambda x, t: x, sk.VP())
    runs = [sk.compare(model, X, solvers=["ddim"], nfe=[3], samples=8, features=features) for _ in range(2)]
    assert runs[0].cells[0].metrics == runs[1].cells[0].metrics
    assert runs[0].floor == runs[1].floor


def test_the_search_for_networks_ends():
    net, loop = nn.Linear(2, 2), []
    loop.extend([loop, net])
    model = Scaled(sk.ScoreModel(Callables(net), sk.VP()))
    model.itself, model.counter = model, itertools.count()
    assert networks([model, loop]) == [net]
