"""Networks of EDM and score_sde, against the papers' formulas and samplers written out, and their checkpoints."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import sdekit as sk
from sdekit.interop import edm, score_sde
from sdekit.testing import simgpu

F64 = torch.float64


class Raw(nn.Module):
    """F_θ(x, c_noise, labels): small, and not the optimum of anything."""

    def __init__(self, classes: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 3, generator=generator) / 2)
        self.labels = nn.Parameter(torch.randn(classes, 3, generator=generator)) if classes else None

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        h = x @ self.weight + torch.sin(3 * t)[:, None]
        return torch.tanh(h if labels is None else h + labels @ self.labels)


class Precond(nn.Module):
    """EDM's preconditioning (Karras et al. 2022, eq. 7 and table 1), with the interface of the paper's code."""

    def __init__(self, classes: int = 0, sigma_min: float = 0, sigma_max: float = math.inf) -> None:
        super().__init__()
        self.model, self.label_dim = Raw(classes), classes
        self.sigma_min, self.sigma_max, self.sigma_data = sigma_min, sigma_max, 0.5

    def forward(self, x, sigma, class_labels=None, force_fp32=False, **model_kwargs):
        sigma = sigma.reshape(-1, 1)
        if self.label_dim == 0:
            class_labels = None
        elif class_labels is None:
            class_labels = torch.zeros(1, self.label_dim, dtype=x.dtype)
        else:
            class_labels = class_labels.to(x.dtype).reshape(-1, self.label_dim)
        total = sigma**2 + self.sigma_data**2
        inner = self.model(x / total.sqrt(), (sigma.log() / 4).flatten(), class_labels)
        return self.sigma_data**2 / total * x + sigma * self.sigma_data / total.sqrt() * inner


def heun(net, latents, steps, labels=None, sigma_min=0.002, sigma_max=80.0, rho=7.0):
    """Karras et al. 2022, algorithm 1 with the steps of eq. 5."""
    i = torch.arange(steps, dtype=F64)
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas = [*((first + i / (steps - 1) * (last - first)) ** rho).tolist(), 0.0]
    x = latents * sigmas[0]
    for s, t in zip(sigmas, sigmas[1:]):
        slope = (x - net(x, torch.full((len(x),), s, dtype=F64), labels)) / s
        moved = x + (t - s) * slope
        if t > 0:
            other = (moved - net(moved, torch.full((len(x),), t, dtype=F64), labels)) / t
            moved = x + (t - s) * (slope + other) / 2
        x = moved
    return x


def latents(n: int = 6) -> torch.Tensor:
    return sk.noise.normal(3, 0, torch.arange(n), (3,), F64)


@pytest.mark.parametrize("classes", [0, 4])
def test_a_network_predicts_and_samples_as_its_papers_algorithm(classes):
    net = Precond(classes).double()
    model, x = edm.wrap(net), latents()
    numbers = torch.tensor([0, 3, 1, 1, 2, 0])
    rows = torch.eye(4, dtype=F64)[numbers] if classes else None
    given = {"class_labels": numbers} if classes else {}
    for sigma in (0.002, 0.5, 80.0):
        assert torch.equal(model.x0(x, sigma, **given), net(x, torch.full((6,), sigma, dtype=F64), rows))
    arguments = {"solver": "heun", "grid": "karras", "nfe": 35, "final": "denoise"}
    out = sk.sample(model, (6, 3), start=80 * x, batch_size=4, **arguments, **given)
    assert torch.allclose(out.x, heun(net, x, 18, rows), rtol=0, atol=1e-8)
    assert out.nfe == 35
    again = sk.sample(model, (6, 3), start=80 * x, batch_size=4, **arguments, **given)
    assert torch.equal(out.x, again.x)
    if classes:
        same = sk.sample(model, (6, 3), start=80 * x, class_labels=rows, **arguments)
        assert torch.allclose(same.x, out.x, rtol=0, atol=1e-12)


def test_a_network_without_the_attributes_of_the_papers_code_is_one_too():
    net = Precond().double()
    model = edm.wrap(lambda x, sigma: net(x, sigma))
    assert model.process == sk.EDM()
    assert torch.equal(model.x0(latents(), 2.0), net(latents(), torch.full((6,), 2.0, dtype=F64)))


def test_the_range_is_the_networks_where_it_states_one():
    assert edm.wrap(Precond()).process == sk.EDM(0.002, 80.0)
    assert edm.wrap(Precond(sigma_min=0.02, sigma_max=100.0)).process == sk.EDM(0.02, 100.0)  # VEPrecond's
    assert edm.wrap(Precond(sigma_min=0.02, sigma_max=100.0), sigma_max=50.0).process == sk.EDM(0.02, 50.0)
    with pytest.raises(ValueError, match=r"sigma_min=0.01: the network covers σ from 0.02 to 100"):
        edm.wrap(Precond(sigma_min=0.02, sigma_max=100.0), sigma_min=0.01)
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        edm.wrap(Precond(), sigma_min=-1.0)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (None, "class_labels: missing, and the network takes 4 classes"),
        (torch.tensor([0, 1, 2, 3, 4, 0]), "lie from 0 to 3"),
        (torch.tensor([0, 1, 2, 3, -1, 0]), "lie from 0 to 3"),
        (torch.zeros(6), r"shape \[6\] with 6 samples"),
        (torch.zeros(4, dtype=torch.long), r"shape \[4\] with 6 samples"),
        (torch.zeros(6, 3), r"shape \[6, 3\] with 6 samples"),
        (torch.zeros(2, 4), r"shape \[2, 4\] with 6 samples"),
    ],
)
def test_labels_that_the_network_would_misread_are_refused(labels, words):
    given = {} if labels is None else {"class_labels": labels}
    with pytest.raises(ValueError, match=words):
        edm.wrap(Precond(4)).x0(latents().float(), 1.0, **given)


def test_labels_of_a_network_without_classes_are_refused():
    with pytest.raises(ValueError, match="label_dim is 0"):
        edm.wrap(Precond()).x0(latents().float(), 1.0, class_labels=torch.tensor([0] * 6))


def test_one_row_of_labels_serves_every_sample():
    model, x = edm.wrap(Precond(4)), latents().float()
    each = model.x0(x, 1.0, class_labels=torch.full((6,), 2))
    assert torch.allclose(model.x0(x, 1.0, class_labels=torch.tensor([2])), each)
    none = model.x0(x, 1.0, class_labels=torch.zeros(1, 4))
    assert torch.allclose(none, Precond(4)(x, torch.ones(6)))


def test_another_shape_of_result_is_refused():
    with pytest.raises(ValueError, match=r"shape \[6, 2\] for x of shape \[6, 3\]"):
        edm.wrap(lambda x, sigma: x[:, :2]).x0(latents(), 1.0)


def test_labels_on_a_device_are_not_read():
    numbers = torch.tensor([0, 3, 1, 1, 2, 0])
    here = sk.sample(edm.wrap(Precond(4)), (6, 3), nfe=5, seed=0, class_labels=numbers).x
    with simgpu.device() as gpu:
        model, there = edm.wrap(Precond(4).to(gpu.device)), numbers.to(gpu.device)
        with gpu.forbid_host_reads():
            found = sk.sample(model, (6, 3), nfe=5, seed=0, class_labels=there).x
        assert torch.equal(found.cpu(), here)


# score_sde: the score as its get_score_fn states it, and the ODE drift of Song et al. 2021, eq. 13


def beta(t):
    return 0.1 + 19.9 * t


def log_mean(t):  # eq. 33
    return -(t**2) * 19.9 / 4 - t * 0.1 / 2


def vp_score(net, x, t):
    return -net(x, 999 * t) / torch.sqrt(1 - torch.exp(2 * log_mean(t)))[:, None]


def subvp_score(net, x, t):
    return -net(x, 999 * t) / (1 - torch.exp(2 * log_mean(t)))[:, None]


def ve_score(net, x, t):
    return net(x, 0.01 * 5000**t)


SDES = {
    "VP": (sk.VP(), vp_score, lambda x, t: -beta(t) / 2 * x, beta),
    "SubVP": (
        sk.SubVP(),
        subvp_score,
        lambda x, t: -beta(t) / 2 * x,
        lambda t: beta(t) * (1 - math.exp(4 * log_mean(t))),
    ),
    "VE": (sk.VE(), ve_score, lambda x, t: 0 * x, lambda t: (0.01 * 5000**t) ** 2 * 2 * math.log(5000)),
}


@pytest.mark.parametrize("name", SDES)
def test_score_sdes_networks_are_told_the_time_and_scaled_as_there(name):
    process, score, _, _ = SDES[name]
    net, x = Raw().double(), latents()
    model = score_sde.wrap(net, process)
    for t in (process.t_min, 0.3, 1.0):
        truth = score(net, x, torch.full((6,), t, dtype=F64))
        assert torch.allclose(model.score(x, t), truth, rtol=1e-10, atol=1e-10)
    times = torch.linspace(0.1, 0.9, 6, dtype=F64)
    assert torch.allclose(model.score(x, times), score(net, x, times), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", SDES)
def test_score_sdes_ode_ends_where_its_own_drift_leads(name):
    """Euler steps of the drift of eq. 13: the solver ``euler`` is Euler in t."""
    process, score, drift, diffusion2 = SDES[name]
    net, x = Raw().double(), latents() * process.prior_std
    grid = torch.linspace(process.t_max, 0.01, 9, dtype=F64).tolist()
    truth = x
    for s, t in zip(grid, grid[1:]):
        slope = drift(truth, s) - 0.5 * diffusion2(s) * score(net, truth, torch.full((6,), s, dtype=F64))
        truth = truth + (t - s) * slope
    found = sk.sample(score_sde.wrap(net, process), (6, 3), solver="euler", grid=grid, start=x, final="none").x
    assert torch.allclose(found, truth, rtol=1e-8, atol=1e-8)


def test_discrete_networks_get_the_entry_of_their_table():
    seen = []

    def net(x, labels):
        seen.append(labels)
        return x

    process = sk.DiscreteVP()
    x = latents()
    for n in (0, 499, 999):
        kept = math.prod(1 - b for b in process.betas[: n + 1])
        found = score_sde.wrap(net, process).score(x, (n + 1) / 1000)
        assert torch.allclose(seen[-1], torch.full((6,), float(n), dtype=F64), rtol=0, atol=1e-9)
        assert torch.allclose(found, -x / math.sqrt(1 - kept), rtol=1e-9)
    for t, level in ((0.0, 999), (1.0, 0), (0.25, 749)):
        model = score_sde.wrap(net, sk.VE(), labels="level")
        model.score(x, t)
        assert seen[-1].dtype == torch.int64
        assert seen[-1].tolist() == [level] * 6
    model.score(x, torch.tensor([0.0, 1.0, 0.25, 0.25, 0.25, 0.25], dtype=F64))
    assert seen[-1].tolist() == [999, 0, 749, 749, 749, 749]
    score_sde.wrap(net, sk.VE(), labels="log-sigma").score(x, 0.5)
    assert torch.allclose(seen[-1], torch.full((6,), math.log(0.01 * 5000**0.5), dtype=F64))


def test_other_processes_and_labels_are_refused():
    with pytest.raises(ValueError, match=r"score_sde's networks are of VP, SubVP, DiscreteVP, VE"):
        score_sde.wrap(Raw(), sk.Flow())
    with pytest.raises(ValueError, match="unknown labels 'sigma'"):
        score_sde.wrap(Raw(), sk.VP(), labels="sigma")


# checkpoints


def checkpoint(net: nn.Module) -> dict[str, object]:
    """What score_sde's ``save_checkpoint`` writes."""
    averages = [parameter.detach() + 1 for parameter in net.parameters() if parameter.requires_grad]
    return {
        "optimizer": torch.optim.Adam(net.parameters()).state_dict(),
        "model": {f"module.{name}": value for name, value in net.state_dict().items()},
        "ema": {"decay": 0.999, "num_updates": 7, "shadow_params": averages},
        "step": 7,
    }


def net_with_a_fixed_part() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    net[0].weight.requires_grad_(False)  # as score_sde's Fourier features
    return net


def test_score_sdes_averages_are_loaded_in_their_order(tmp_path):
    source = net_with_a_fixed_part()
    torch.save(checkpoint(source), tmp_path / "checkpoint_7.pth")
    found = score_sde.load(net_with_a_fixed_part(), tmp_path / "checkpoint_7.pth")
    assert not found.training
    for (name, own), (_, truth) in zip(found.named_parameters(), source.named_parameters()):
        assert torch.equal(own, truth if name == "0.weight" else truth + 1)
    plain = score_sde.load(net_with_a_fixed_part(), tmp_path / "checkpoint_7.pth", ema=False)
    assert all(torch.equal(own, truth) for own, truth in zip(plain.parameters(), source.parameters()))
    assert all(torch.equal(own, truth) for own, truth in zip(plain.buffers(), source.buffers()))


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_state_dicts_are_loaded(tmp_path, suffix):
    source, path = Precond(4), tmp_path / f"net.{suffix}"
    if suffix == "pt":
        torch.save(source.state_dict(), path)
    else:
        save_file(source.state_dict(), path)
    found = Precond(4)
    with torch.no_grad():
        found.model.weight.zero_()
    edm.load(found, path)
    assert torch.equal(found.model.weight, source.model.weight)


class Trap:
    def __reduce__(self):
        return print, ("this pickle ran",)


def test_pickles_are_refused_with_what_to_do_and_run_nothing(tmp_path, capsys):
    for name, write in {
        "raw.pkl": lambda path: path.write_bytes(pickle.dumps({"ema": Trap()})),
        "whole.pt": lambda path: torch.save(Precond(), path),
        "trap.pt": lambda path: torch.save({"model": {}, "extra": Trap()}, path),
    }.items():
        write(tmp_path / name)
        with pytest.raises(ValueError, match=r"A pickle of objects.*state_dict\(\)"):
            edm.load(Precond(), tmp_path / name)
    assert capsys.readouterr().out == ""


def test_files_that_do_not_fit_are_refused_in_a_sentence(tmp_path):
    cases = {
        "no readable checkpoint": lambda path: None,
        "no file of tensors alone": lambda path: path.write_bytes(b"nonsense"),
        "it holds a list": lambda path: torch.save([torch.zeros(1)], path),
        "no state dict": lambda path: torch.save({"step": 3}, path),
        "lacks model.labels": lambda path: torch.save({"model.weight": torch.zeros(3, 3)}, path),
        "has other": lambda path: torch.save({**Precond(4).state_dict(), "other": torch.zeros(1)}, path),
        r"model.weight has shape \[2, 2\], the network's \[3, 3\]": lambda path: torch.save(
            {**Precond(4).state_dict(), "model.weight": torch.zeros(2, 2)}, path
        ),
        "shadow_params lacks 1": lambda path: torch.save(
            {"model": Precond(4).state_dict(), "ema": {"shadow_params": [torch.zeros(3, 3)]}}, path
        ),
    }
    for number, (words, write) in enumerate(cases.items()):
        path = tmp_path / f"{number}.pt"
        write(path)
        with pytest.raises(ValueError, match=words):
            edm.load(Precond(4), path)
    with pytest.raises(ValueError, match="no readable safetensors file"):
        edm.load(Precond(4), tmp_path / "missing.safetensors")
