"""What training takes, refuses in a sentence, and does with a network's modes."""

import inspect

import numpy as np
import pytest
import torch
from torch import nn

import sdekit as sk
from sdekit.training import Denoising, Optimisation, train_denoiser


class Labelled(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.embed = nn.Linear(2, 2), nn.Embedding(3, 2)

    def forward(self, x, t, label):
        return self.linear(x) + self.embed(label)


def test_data_and_labels_may_be_arrays():
    data, labels = np.arange(24.0, dtype=np.float32).reshape(12, 2) / 24, np.arange(12) % 3
    data.flags.writeable = False

    def train(data, labels):
        torch.manual_seed(0)
        net = Labelled()
        return train_denoiser(net, sk.VP(), data, labels, plan=Optimisation(3, lr=0.1)).net

    for array, tensor in [(data, data.copy()), (data[::-1], data[::-1].copy())]:
        one, other = train(array, labels), train(torch.tensor(tensor), torch.tensor(labels))
        assert torch.equal(one.linear.weight, other.linear.weight)


@pytest.mark.parametrize(
    ("data", "labels", "words"),
    [
        (torch.zeros(5), None, r"\[5\].*\[n, \*event\].*\[:, None\]"),
        (torch.tensor(1.0), None, r"\[n, \*event\]"),
        (np.zeros((5, 2), dtype=np.uint8), None, "uint8.*floating"),
        (torch.zeros(5, 2), torch.zeros(6, dtype=torch.int64), "labels.*6.*5"),
        (np.zeros((0, 4), dtype=np.float32), None, "empty"),
    ],
)
def test_data_that_cannot_be_trained_on_are_refused_in_a_sentence(data, labels, words):
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(train_denoiser)(nn.Linear(2, 2), sk.VE(), data, labels)


@pytest.mark.parametrize("net", [sk.nn.UNet(widths=(8, 8), embedding=8, groups=2, classes=3), sk.nn.MLP(4, 8, 1, 3)])
def test_labels_that_are_no_classes_are_refused_by_their_numbers(net):
    data = torch.zeros(6, 1, 4, 4) if isinstance(net, sk.nn.UNet) else torch.zeros(6, 4)
    plan = Optimisation(1, lr=0.1)
    for labels in (torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([0, 1, -1, 3, 2, 0])):
        with pytest.raises(
            ValueError, match=rf"labels run from {labels.min()} to {labels.max()}: the network takes 0 … 3"
        ):
            train_denoiser(net, sk.VP(), data, labels, plan=plan)
    train_denoiser(net, sk.VP(), data, torch.tensor([0, 1, 2, 3, 3, 0]), plan=plan)


def test_a_network_without_anything_to_train_is_refused():
    with pytest.raises(ValueError, match="requires_grad_"):
        train_denoiser(nn.Linear(2, 2).requires_grad_(False), sk.VE(), torch.zeros(5, 2))


def test_a_time_map_of_one_s_own_reaches_the_network_and_the_model():
    seen = []

    class Net(nn.Linear):
        def forward(self, x, times):
            seen.append(times)
            return super().forward(x)

    task = Denoising(time=lambda process, t: 7 + t, batch=4)
    model = train_denoiser(Net(2, 2), sk.VP(), torch.ones(4, 2), task=task, plan=Optimisation(1, lr=0.1))
    assert (seen[0] > 7).all()
    assert (seen[0] <= 8).all()
    model.x0(torch.ones(1, 2), 0.5)
    assert seen[-1].tolist() == [7.5]


class Modes(nn.Module):
    """Batch norm, dropout, and a note of the mode in which each call was made."""

    def __init__(self):
        super().__init__()
        self.norm, self.dropout, self.linear = nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 2)
        self.modes = []

    def forward(self, x, t):
        self.modes.append(self.training)
        return self.linear(self.dropout(self.norm(x)))


@pytest.mark.filterwarnings("ignore::sdekit.misfit.MisfitWarning")  # the data are away from 0 for batch norm's sake
@pytest.mark.parametrize("mode", [True, False])
def test_a_network_trains_in_training_mode_and_returns_in_evaluation_mode(tmp_path, mode):
    net = Modes().train(mode)
    data = 3 + torch.linspace(0, 1, 32).reshape(16, 2)
    model = train_denoiser(net, sk.VP(), data, plan=Optimisation(5, lr=0.1))
    assert net.modes == [True] * 5
    assert [part.training for part in net.modules()] == [mode] * 4
    assert not any(part.training for part in model.net.modules())
    # what evaluation mode reads belongs to the weights: the running moments are the trained network's
    assert net.norm.num_batches_tracked == 5
    assert all(torch.equal(one, other) for one, other in zip(model.net.buffers(), net.buffers()))
    x = torch.randn(8, 2)
    assert torch.equal(model.x0(x, 0.5), model.x0(x, 0.5))


def test_parts_that_were_frozen_in_evaluation_mode_stay_so():
    net = Modes()
    net.norm.eval()
    train_denoiser(net, sk.VP(), torch.ones(16, 2), plan=Optimisation(3, lr=0.1))
    assert net.norm.num_batches_tracked == 0
    assert net.training
    assert not net.norm.training


def test_dropout_is_drawn_for_the_seed_and_leaves_the_global_generator_alone():
    def train(seed, elsewhere):
        torch.manual_seed(0)
        net = Modes()
        torch.manual_seed(elsewhere)
        state = torch.get_rng_state()
        model = train_denoiser(net, sk.VP(), torch.ones(16, 2), task=Denoising(seed=seed), plan=Optimisation(3, lr=0.1))
        assert torch.equal(state, torch.get_rng_state())
        return model.net.linear.weight

    assert torch.equal(train(0, elsewhere=1), train(0, elsewhere=2))
    assert not torch.equal(train(0, elsewhere=1), train(1, elsewhere=1))
