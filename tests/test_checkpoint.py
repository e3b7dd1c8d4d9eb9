"""A run goes on from its own checkpoint, to the bit, and from no other's; each difference is named."""

import threading
from dataclasses import replace

import pytest
import torch
from torch import nn

import sdekit as sk
from sdekit.training import Checkpoint, Denoising, Optimisation, fit, loop, train_denoiser

# a short table of large betas, and data away from 0, are far from standardised: not what is tested here
pytestmark = pytest.mark.filterwarnings("ignore::sdekit.misfit.MisfitWarning")
DATA = torch.linspace(-1, 1, 48).sin().reshape(24, 2)
PLAN = Optimisation(6, lr=1e-2, warmup=2)
TASK = Denoising(predicts="eps", batch=8)
VP = sk.VP()
BETAS = [0.1, 0.2, 0.3, 0.2]


class Net(nn.Module):
    """A network without ``config``: its layers, its gain and its code say what it computes."""

    def __init__(self, width=6, act=nn.SiLU, gain=1.0, dropout=0.0, norm=False):
        super().__init__()
        self.gain = gain
        middle = nn.BatchNorm1d(width) if norm else nn.Identity()
        self.layers = nn.Sequential(nn.Linear(3, width), middle, act(), nn.Dropout(dropout), nn.Linear(width, 2))

    def forward(self, x, t, label=None):
        return self.gain * self.layers(torch.cat([x, t[:, None]], dim=1))


class OtherCode(Net):
    def forward(self, x, t, label=None):
        return self.gain * self.layers(torch.cat([x, -t[:, None]], dim=1))


OtherCode.__name__ = OtherCode.__qualname__ = "Net"


def build(cls=Net, seed=0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return cls(**options)


def train(path=None, net=None, process=VP, data=DATA, labels=None, task=TASK, plan=PLAN):
    checkpoint = None if path is None else Checkpoint(path, every=0)
    return train_denoiser(net or build(), process, data, labels, task, plan, checkpoint)


def weights(model):
    return model.net.state_dict()


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def stop_at(monkeypatch):
    """``stop_at(step)``: the next run is killed before that step's update."""
    update = loop._update

    def stop(step):
        def killed(state, loss_at, plan, at):
            if at == step:
                monkeypatch.setattr(loop, "_update", update)
                raise KeyboardInterrupt
            return update(state, loss_at, plan, at)

        monkeypatch.setattr(loop, "_update", killed)

    return stop


def one_bit_off(data):
    other = data.clone()
    other[3, 1] = other[3, 1].nextafter(torch.tensor(9.0))
    return other


LABELS = torch.arange(24) % 3
OTHERS = {
    "scaled data": ("data", {"data": DATA * 0.1 + 5}),
    "one bit of data": ("data", {"data": one_bit_off(DATA)}),
    "data in float64": ("data", {"data": DATA.double()}),
    "no labels": ("labels", {"labels": None}),
    "other labels": ("labels", {"labels": 2 - LABELS}),
    "another number of the process": ("process", {"process": sk.DiscreteVP([0.1, 0.2, 0.3, 0.4])}),
    "entries of the table exchanged": ("process", {"process": sk.DiscreteVP([0.2, 0.1, 0.3, 0.2])}),
    "another process": ("process", {"process": sk.VP()}),
    "prediction": ("predicts was 'eps', is 'v'", {"task": replace(TASK, predicts="v")}),
    "a time map of one's own": ("time", {"task": replace(TASK, time=lambda process, t: 2 * t)}),
    "seed": ("seed was 0, is 1", {"task": replace(TASK, seed=1)}),
    "learning rate": ("lr was 0.01, is 0.02", {"plan": replace(PLAN, lr=0.02)}),
    "width": ("network", {"net": build(width=7)}),
    "activation": ("network", {"net": build(act=nn.Tanh)}),
    "a number in the network": ("network", {"net": build(gain=2.0)}),
    "dropout": ("network", {"net": build(dropout=0.5)}),
    "dtype": ("network", {"net": build().double()}),
    "code of the same name": ("", {"net": build(OtherCode)}),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_another_run_is_refused_by_what_differs(tmp_path, stop_at, name):
    path, (words, change) = tmp_path / "run.ckpt", OTHERS[name]
    own = {"process": sk.DiscreteVP(BETAS), "labels": LABELS}
    stop_at(3)
    with pytest.raises(KeyboardInterrupt):
        train(path, **own)
    written = path.read_bytes()
    with pytest.raises(ValueError, match=f"(?s)another run.*{words}"):
        train(path, **{**own, **change})
    assert path.read_bytes() == written
    train(path, **own)


def test_a_network_of_another_width_is_refused_in_one_sentence(tmp_path):
    path = tmp_path / "run.ckpt"
    train(path)
    with pytest.raises(ValueError, match="another run") as error:
        train(path, build(width=7))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("options", [{}, {"dropout": 0.5}, {"norm": True}], ids=["plain", "dropout", "batch norm"])
def test_a_run_goes_on_to_the_bit_whatever_the_new_network_s_weights(tmp_path, stop_at, options):
    path = tmp_path / "run.ckpt"
    whole = train(net=build(**options))
    stop_at(4)
    with pytest.raises(KeyboardInterrupt):
        train(path, build(**options))
    torch.rand(5)  # the global generator is elsewhere in the process that goes on
    with pytest.warns(UserWarning, match="other initial weights"):
        resumed = train(path, build(seed=1, **options))
    assert_equal(weights(whole), weights(resumed))


def test_the_same_network_goes_on_without_a_word(tmp_path, stop_at):
    path, net = tmp_path / "run.ckpt", build()
    stop_at(4)
    with pytest.raises(KeyboardInterrupt):
        train(path, net)
    assert_equal(weights(train(path, net)), weights(train()))  # as a cell of a notebook that is run once more
    train(path, build())


def quadratic(target):
    return lambda net, step: (net.weight - target).square().sum()


def test_a_loss_of_one_s_own_is_told_by_its_identity(tmp_path):
    checkpoint, plan = Checkpoint(tmp_path / "run.ckpt", every=0), Optimisation(3, lr=0.1)
    net, target = nn.Linear(2, 2), torch.ones(2, 2)
    fit(net, quadratic(target), plan, {"target": target, "batch": 3}, checkpoint)
    fit(net, quadratic(target), plan, {"target": target.clone(), "batch": 3}, checkpoint)
    with pytest.raises(ValueError, match="target"):
        fit(net, quadratic(target), plan, {"target": 2 * target, "batch": 3}, checkpoint)
    with pytest.raises(ValueError, match="batch was 3, is 4"):
        fit(net, quadratic(target), plan, {"target": target, "batch": 4}, checkpoint)
    with pytest.raises(ValueError, match="batch was 3, is not given"):
        fit(net, quadratic(target), plan, {"target": target}, checkpoint)


def test_another_loss_under_the_same_identity_is_found_by_what_it_computes(tmp_path):
    checkpoint, plan = Checkpoint(tmp_path / "run.ckpt", every=0), Optimisation(3, lr=0.1)
    net = nn.Linear(2, 2)
    fit(net, quadratic(1.0), plan, {}, checkpoint)
    with pytest.raises(ValueError, match=r"another run.*loss of step 0"):
        fit(net, quadratic(1.5), plan, {}, checkpoint)


def test_what_cannot_be_identified_is_refused_before_the_first_step(tmp_path):
    lock = threading.Lock()

    def time(process, t):
        with lock:
            return t

    path = tmp_path / "run.ckpt"
    with pytest.raises(ValueError, match=r"time.*cannot be"):
        train(path, task=replace(TASK, time=time))
    assert not path.exists()
    train(task=replace(TASK, time=time))  # without a checkpoint nothing needs to be told apart


def test_a_checkpoint_takes_a_string(tmp_path):
    path = tmp_path / "run.ckpt"
    train_denoiser(build(), sk.VP(), DATA, task=TASK, plan=PLAN, checkpoint=Checkpoint(str(path), every=0))
    assert path.exists()
