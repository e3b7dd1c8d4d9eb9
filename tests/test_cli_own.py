"""The command on models, data and features of one's own: what it measures and draws, and how it refuses."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import sdekit as sk
from sdekit import cli
from sdekit.data import BYTES, digits
from sdekit.likelihood import log_prob
from sdekit.nn import digits_features, digits_model

PAGE = (Path(__file__).parents[1] / "docs" / "command.md").read_text(encoding="utf-8")

MODULE = """
import sdekit as sk
import torch
from sdekit.nn import digits_features, digits_model

class Kit:
    @staticmethod
    def make():
        return digits_model()

class Guided:  # any object with the model's four names
    def __init__(self):
        self.inner, self.nfe = digits_model(), 0
        self.process, self.device = self.inner.process, self.inner.device

    def predict(self, kind, x, t, /, **conditions):
        self.nfe += 2
        return self.inner.predict(kind, x, t, **conditions)

model, bare, number = digits_model(), digits_model().net, 3
features = digits_features()

def scaled(): return sk.ScoreModel(lambda x, t, gain=1.0: gain * x, sk.VP(), "x0")
def fails(): raise RuntimeError("out of luck")
def needs(path): return model
def nothing(): pass
def flat(x): return x.sum()
def breaks(x): return x.reshape(3)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a module, a saved model, the held-out digits in every form."""
    path = tmp_path_factory.mktemp("user")
    (path / "own_models.py").write_text(MODULE)
    (path / "broken_models.py").write_text("import torch\nimport no_such_library\n")
    sk.nn.save(digits_model(), path / "saved")
    x = digits().held_out
    np.save(path / "digits.npy", x.numpy())
    np.save(path / "bytes.npy", x.add(1).mul(127.5).round().byte().numpy())
    np.savez(path / "digits.npz", images=x.numpy(), labels=np.zeros((3, 1)))
    (path / "images").mkdir()
    for i, image in enumerate(np.load(path / "bytes.npy")[:20, 0]):
        Image.fromarray(image).save(path / "images" / f"{i:02}.png")
    (path / "empty").mkdir()
    (path / "weights.pt").write_bytes(b"")
    return path


@pytest.fixture(autouse=True)
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(folder)])
    yield
    for name in ("own_models", "broken_models"):
        sys.modules.pop(name, None)


def sdekit(*words: str) -> Any:
    return CliRunner().invoke(cli.app, [*words])


def drawn(out: Path, *words: str) -> torch.Tensor:
    done = sdekit("sample", *words, "--n", "4", "--nfe", "5", "--out", str(out))
    assert done.exit_code == 0, done.output
    assert (out / "samples.png").stat().st_size > 200
    return load_file(out / "samples.safetensors")["x"]


@pytest.mark.parametrize(
    "spec", ["own_models:model", "own_models:Kit.make", "own_models:Guided", "saved", "sdekit.nn:digits_model"]
)
def test_a_model_by_name_or_folder_draws_what_it_draws_in_python(tmp_path: Path, spec: str) -> None:
    expected = sk.sample(digits_model(), (4, 1, 8, 8), nfe=5, seed=0).x
    assert torch.equal(drawn(tmp_path, "--model", spec, "--shape", "1,8,8"), expected)
    assert torch.equal(drawn(tmp_path, "--model", spec, "--data", "digits.npz:images", "--batch-size", "4"), expected)


def test_a_folder_of_diffusers_is_read_by_its_own_loader(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "pipeline")
    expected = sk.sample(sk.interop.diffusers.load(tmp_path / "pipeline"), (4, 1, 8, 8), nfe=5, seed=0).x
    found = drawn(tmp_path / "out", "--model", str(tmp_path / "pipeline"), "--shape", "1,8,8")
    assert torch.equal(found, expected)


def test_conditions_reach_the_network(tmp_path: Path) -> None:
    saved = ("--model", "saved", "--shape", "1,8,8")
    for value, label in {"3": [3] * 4, "classes:3": [0, 1, 2, 0]}.items():
        expected = sk.sample(digits_model(), (4, 1, 8, 8), nfe=5, seed=0, label=torch.tensor(label)).x
        found = drawn(tmp_path, *saved, "--condition", f"label={value}", "--batch-size", "3")
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)  # convolutions sum by the batch's size
    target = drawn(tmp_path, "--condition", "label=3")  # of the shipped network too
    assert torch.equal(target, sk.sample(digits_model(), (4, 1, 8, 8), nfe=5, seed=0, label=torch.full((4,), 3)).x)
    scaled = ("--model", "own_models:scaled", "--shape", "2")
    for gain in (0.0, 0.5):
        expected = sk.sample(sk.ScoreModel(lambda x, t: gain * x, sk.VP(), "x0"), (4, 2), nfe=5, seed=0).x  # noqa: B023
        assert torch.equal(drawn(tmp_path, *scaled, "--condition", f"gain={gain}"), expected)


def test_compare_measures_what_compare_does_in_python(tmp_path: Path) -> None:
    words = ("--solvers", "ddim", "--nfe", "4", "--samples", "16", "--condition", "gain=0.5")
    options = ("--model", "own_models:scaled", "--data", "digits.npy", "--features", "own_models:features")
    done = sdekit("compare", *options, *words, "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    (record,) = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    expected = sk.compare(
        sk.ScoreModel(lambda x, t: 0.5 * x, sk.VP(), "x0"), digits().held_out, solvers=["ddim"], nfe=[4], samples=16,
        features=digits_features(),
    )  # fmt: skip
    assert record["metrics"] == pytest.approx(dict(expected.cells[0].metrics))
    assert record["floor"] == pytest.approx(dict(expected.cells[0].floor))
    assert "digits.npy: 596 samples of shape [1, 8, 8], from -1 to 1" in done.stderr


def test_samples_are_bounded_by_half_of_the_data(tmp_path: Path) -> None:
    words = ("compare", "--model", "own_models:scaled", "--solvers", "ddim", "--nfe", "2", "--out", str(tmp_path))
    for data, limit, size in (("images", "4096", 10), ("bytes.npy", "40", 20), ("bytes.npy", "0", 298)):
        done = sdekit(*words, "--data", data, "--data-limit", limit)
        assert done.exit_code == 0, done.output
        assert json.loads((tmp_path / "results.jsonl").read_text().splitlines()[-1])["samples"] == size
        assert "uint8 scaled to [−1, 1]" in done.stderr


def test_likelihood_of_own_images_is_log_probs(tmp_path: Path) -> None:
    words = ("--samples", "2", "--method", "unipc-3", "--steps", "10", "--out", str(tmp_path))
    done = sdekit("likelihood", "--model", "saved", "--data", "images", *words)
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "likelihood.json").read_text())
    x = BYTES.values(torch.tensor(np.load("bytes.npy")[[0, 10]].astype(np.int64)))
    expected = log_prob(digits_model(), x, quantization=BYTES, method="unipc-3", steps=10).bits_per_dim
    assert record["bits_per_dim"] == pytest.approx(expected.mean().item(), rel=1e-6)
    assert "bits/dim over 2 samples" in done.stdout


def test_train_images_makes_a_model_that_the_command_takes(tmp_path: Path) -> None:
    out = tmp_path / "trained"
    words = ("train", "images", "--data", "images", "--widths", "8,8", "--steps", "2", "--batch", "4")
    assert sdekit(*words, "--out", str(out)).exit_code == 0
    assert {path.name for path in out.iterdir()} == {"model.json", "weights.safetensors", "train.jsonl", "samples.png"}
    assert drawn(tmp_path, "--model", str(out), "--data", "images").shape == (4, 1, 8, 8)
    before = (out / "weights.safetensors").read_bytes()
    assert sdekit(*words, "--out", str(tmp_path / "again")).exit_code == 0
    assert (tmp_path / "again" / "weights.safetensors").read_bytes() == before


@pytest.mark.parametrize("size", [1, 2, 3])
def test_train_vectors_makes_a_model_and_a_picture(tmp_path: Path, size: int) -> None:
    x = np.random.default_rng(0).normal(size=(300, size)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    out = tmp_path / "trained"
    words = ("train", "vectors", "--data", str(tmp_path / "x.npy"), "--width", "16", "--steps", "40", "--batch", "32")
    done = sdekit(*words, "--out", str(out))
    assert done.exit_code == 0, done.output
    files = {"model.json", "weights.safetensors", "train.jsonl"} | {1: {"paths.png"}, 2: {"score.png"}, 3: set()}[size]
    assert {path.name for path in out.iterdir()} == files
    assert drawn(tmp_path, "--model", str(out), "--data", str(tmp_path / "x.npy")).shape == (4, size)
    assert [json.loads(line)["step"] for line in (out / "train.jsonl").read_text().splitlines()] == [20, 40]


def test_train_stops_where_the_loss_on_what_is_kept_out_does_not_fall(tmp_path: Path) -> None:
    """Ten samples of noise in 20 dimensions are soon known by heart."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(20, 20)).astype(np.float32))
    words = ("train", "vectors", "--data", str(tmp_path / "x.npy"), "--width", "64", "--steps", "1000", "--batch", "32")
    out = tmp_path / "trained"
    done = sdekit(*words, "--lr", "0.01", "--held-out", "0.5", "--out", str(out))
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    looks = [(line["watched"], line["step"]) for line in lines if "watched" in line]
    assert looks[-1][1] == min(looks)[1] + 5 * 50 < 1000


SAVED = ("--model", "saved", "--shape", "1,8,8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sample --model own_models:modle --shape 2", "did you mean 'model'?"),
        ("sample --model own_model:model --shape 2", "there is no module 'own_model'"),
        ("sample --model broken_models:model --shape 2", "no_such_library"),
        ("sample --model own_models --shape 2", "no package.module:name"),
        ("sample --model os.system('x'):y --shape 2", "no package.module:name"),
        ("sample --model own_models:bare --shape 2", "bare network, UNet"),
        ("sample --model own_models:number --shape 2", "of type int"),
        ("sample --model own_models:nothing --shape 2", "of type NoneType"),
        ("sample --model own_models:fails --shape 2", "RuntimeError: out of luck"),
        ("sample --model own_models:needs --shape 2", "missing 1 required positional argument"),
        ("sample --model weights.pt --shape 2", "pickles"),
        ("sample --model empty --shape 2", "holds neither model.json"),
        ("sample --model bytes.npy --shape 2", "no readable safetensors file"),
        ("sample --model saved", "Give --data, or --shape"),
        ("sample --model saved --shape 3,8,8", "fails on x of shape [2, 3, 8, 8]"),
        ("sample --model saved --shape 1,8,x", "--shape '1,8,x': whole numbers"),
        ("sample --model saved --shape 0", "at least 1"),
        ("sample --model saved --shape 1,8,9 --data images", "have the shape [1, 8, 8]"),
        ("sample --model saved --target digits", "give one of them"),
        ("sample --shape 2", "--shape goes with --model"),
        ("sample --data images", "--data goes with --model"),
        ("sample --n 0", "--n 0"),
        ("sample --condition label", "write it as name=value"),
        ("sample --condition label=three", "a whole number, a number with a point"),
        ("sample --condition label=classes:0", "classes:K"),
        ("sample --condition label=1 --condition label=2", "each name once"),
        ("sample --condition label=11", "label=[11, 11]: IndexError"),
        ("sample --condition labl=1", "labl"),
        ("sample --condition nfe=3", "an argument of the run"),
        ("sample --batch-size 0", "batch_size=0"),
        ("compare --model saved", "give --data"),
        ("compare --model saved --data absent.npy", "no such file"),
        ("compare --model saved --data digits.npz", "holds 2 arrays"),
        ("compare --model saved --data digits.npz:image", "did you mean 'images'?"),
        ("compare --model saved --data own_models.py", ".py"),
        ("compare --model saved --data images --data-limit -1", "--data-limit -1"),
        ("compare --model saved --data images --data-limit 3", "at least 2"),
        ("compare --model saved --data images --samples 0", "samples=0"),
        ("compare --features own_models:flat", "it must give floats [n, k]"),
        ("compare --features own_models:breaks", "RuntimeError"),
        ("compare --features own_models:Kit", "the class Kit"),
        ("compare --features dinov2:empty", "config.json"),
        ("compare --features inception:absent.pth", "no such file"),
        ("compare --features absent", "no package.module:name"),
        ("likelihood --data images", "give both of them"),
        ("likelihood --model saved --data digits.npy", "bits/dim count levels"),
        ("likelihood --samples 0", "samples=0"),
        ("likelihood --batch-size 0 --samples 1", "batch_size=0"),
        ("train images --data empty", "holds no images"),
        ("train images --data digits.npz:labels", "images [channels, height, width]"),
        ("train images --data images --steps 0", "--steps 0"),
        ("train images --data images --lr -1", "--lr -1"),
        ("train images --data images --held-out 1", "--held-out 1"),
        ("train images --data images --held-out 0.01", "some on both sides"),
        ("train vectors --data images", "vectors [d] are needed"),
        ("train vectors --data images --width 0", "--width 0"),
        ("train images --data images --widths 8,9", "not divisible"),
    ],
)  # fmt: skip
def test_a_mistake_is_a_sentence_and_exit_2(tmp_path: Path, words: str, message: str) -> None:
    out = [] if words.startswith("compare --features") else ["--out", str(tmp_path / "out")]
    done = sdekit(*words.split(), *out)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("sdekit: ")
    assert "Traceback" not in done.output
    assert not done.stdout


def test_every_command_of_the_page_is_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's own files, then its commands, word for word but for the sizes."""
    (tmp_path / "mine.py").write_text(next(re.finditer(r"```python\n(# mine\.py.*?)```", PAGE, re.DOTALL))[1])
    monkeypatch.chdir(tmp_path)
    for name in ("images", "digits.npz"):
        (tmp_path / name).symlink_to(folder / name)
    commands = re.findall(r"^sdekit (.*)$", PAGE, re.MULTILINE)
    assert len(commands) >= 8
    small = {
        "compare": ["--samples", "8", "--nfe", "2", "--solvers", "ddim"],
        "likelihood": ["--samples", "2", "--method", "unipc-3", "--steps", "4"],
    }
    for command in commands:
        words = command.split()
        if "/path/to" in command:  # weights that are not here
            continue
        more = small.get(words[0], []) if words[:2] != ["train", "images"] else ["--steps", "2"]
        done = sdekit(*words, *more)
        assert done.exit_code == 0, f"{command}: {done.output}"
    sys.modules.pop("mine", None)
