"""Models in folders: what comes back is what was saved, and nothing else can be named in the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import sdekit as sk
from sdekit.model import TIMES
from sdekit.nn import UNet, digits_model, load, save
from sdekit.process.description import PROCESSES

X = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def network(**options: Any) -> UNet:
    """Of random weights: a new U-Net returns 0."""
    net = UNet(widths=(8, 8), embedding=8, groups=2, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net.eval().requires_grad_(False)


def edit(folder: Path, **changes: Any) -> None:
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**about, **changes}))


@pytest.mark.parametrize("name", list(PROCESSES))
def test_a_saved_model_gives_the_same_to_the_bit(tmp_path: Path, name: str) -> None:
    process = PROCESSES[name](**({"betas": [0.1, 0.2, 0.3]} if name == "DiscreteVP" else {}))
    time = "index" if name == "DiscreteVP" else "half-log-snr"
    model = sk.ScoreModel(network(), process, "x0", time)
    save(model, tmp_path)
    again = load(tmp_path)
    assert again.process == process
    t = 0.6 * process.t_max
    assert torch.equal(again.score(X, t), model.score(X, t))
    assert not again.net.training  # type: ignore[union-attr]


@pytest.mark.parametrize("time", [name for name in TIMES if name not in ("index", "entry")])
def test_every_time_comes_back(tmp_path: Path, time: str) -> None:
    save(sk.ScoreModel(network(), sk.VP(), "eps", time), tmp_path)
    assert load(tmp_path).time is TIMES[time]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_networks_own_precision_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    model = sk.ScoreModel(network().to(dtype), sk.VP(), "v")
    save(model, tmp_path)
    again = load(tmp_path)
    assert again.dtype == dtype
    assert {parameter.dtype for parameter in again.net.parameters()} == {dtype}  # type: ignore[union-attr]
    assert torch.equal(again.x0(X, 0.5), model.x0(X, 0.5))


def test_labels_and_the_compiled_come_back(tmp_path: Path) -> None:
    net = network(classes=3)
    save(sk.ScoreModel(torch.compile(net, backend="eager"), sk.VP(), "v"), tmp_path)
    label = torch.tensor([0, 2])
    assert torch.equal(load(tmp_path).v(X, 0.5, label=label), sk.ScoreModel(net, sk.VP(), "v").v(X, 0.5, label=label))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: sk.ScoreModel(torch.nn.Linear(2, 2), sk.VP()), "Linear cannot be stored"),
        (lambda: sk.ScoreModel(network(), sk.VP(), "eps", lambda process, t: t), "function of its own"),
        (lambda: sk.targets.Gaussian(torch.zeros(2), torch.eye(2)).model(sk.VP()), "cannot be stored"),
        (lambda: type("Guided", (sk.ScoreModel,), {})(network(), sk.VP()), "Guided"),
        (lambda: sk.ScoreModel(network(), type("VP", (sk.VP,), {})()), "model.process: VP cannot be stored"),
    ],
)
def test_what_cannot_be_saved_is_refused_and_nothing_written(tmp_path: Path, make: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        save(make(), tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"format": "other"}, "format"),
        ({"network": "os.system"}, "unknown network 'os.system'"),
        ({"process": {"name": "subprocess.run"}}, "unknown process"),
        ({"process": {}}, "process or dtype"),
        ({"process": {"name": "VP", "gamma": 1}}, "gamma"),
        ({"predicts": "noise"}, "unknown prediction 'noise'"),
        ({"time": "t + 1"}, "unknown time"),
        ({"dtype": "object"}, "unknown dtype"),
        ({"arguments": {"width": 3}}, "make no unet"),
        ({"arguments": {"widths": [16, 16], "embedding": 8, "groups": 2}}, "make no unet"),
        ({"arguments": []}, "a dict is needed"),
        ({"weights_sha256": "0"}, "other weights"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_file_that_names_anything_else_is_refused(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    save(sk.ScoreModel(network(), sk.VP()), tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(ValueError, match=word):
        load(tmp_path)


def test_damaged_and_mixed_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.json: it cannot be read"):
        load(tmp_path)
    save(sk.ScoreModel(network(), sk.VP()), tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="save the model again"):
        load(tmp_path)
    edit(tmp_path, weights_sha256=None)  # a folder written by hand
    with pytest.raises(ValueError, match="make no unet"):
        load(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="no readable safetensors"):
        load(tmp_path)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        load(tmp_path)


def test_the_shipped_digits_go_through_a_folder(tmp_path: Path) -> None:
    save(digits_model(), tmp_path)
    both = [sk.sample(model, (4, 1, 8, 8), nfe=5, seed=0).x for model in (digits_model(), load(tmp_path))]
    assert torch.equal(*both)
