"""A folder never gives one model's cells to another, and gives a model its own in a later process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sdekit as sk
from sdekit.comparison import Comparison, compare
from sdekit.data import Quantization
from sdekit.likelihood import measure
from sdekit.targets import Gaussian

PROCESS = sk.VP()
TARGET = Gaussian(torch.tensor([1.0, -0.5]), torch.tensor([[1.0, 0.6], [0.6, 0.5]]))
DATA, MORE = TARGET.sample(40, seed=1), TARGET.sample(30, seed=2)


def run(model: Any, **changes: Any) -> Comparison:
    options = {"solvers": ["ddim"], "nfe": [5], "samples": 16, "real": MORE} | changes
    return compare(model, DATA, **options)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


class Guided:
    """The wrapper of the documentation, without conditions."""

    def __init__(self, model: Any, scale: float) -> None:
        self.model, self.scale, self.process = model, scale, model.process

    @property
    def nfe(self) -> int:
        return self.model.nfe

    @property
    def device(self) -> torch.device:
        return self.model.device

    def predict(self, kind: str, x: torch.Tensor, t: Any) -> torch.Tensor:
        return self.scale * self.model.predict(kind, x, t)


class Timed(nn.Module):
    """A network whose output depends on its time, and on a number that is no parameter."""

    def __init__(self, guidance: float = 1.0, weight: float = 0.5) -> None:
        super().__init__()
        self.guidance, self.layer = guidance, nn.Linear(2, 2)
        for parameter in self.layer.parameters():
            nn.init.constant_(parameter, weight)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.guidance * torch.tanh(self.layer(x) * torch.cos(t)[:, None])


def scaled(scale: float) -> Callable[..., torch.Tensor]:
    return lambda x, t: scale * x


class Bare(sk.Process):
    """VP that is no dataclass: its repr says nothing of its numbers."""

    def __init__(self, rate: float) -> None:
        self.inner = sk.VP(beta_max=14.0 + rate)
        self.t_min, self.t_max = self.inner.t_min, self.inner.t_max

    def log_alpha(self, t: Any) -> Any:
        return self.inner.log_alpha(t)

    def log_sigma(self, t: Any) -> Any:
        return self.inner.log_sigma(t)

    def drift_rate(self, t: Any) -> Any:
        return self.inner.drift_rate(t)

    def diffusion(self, t: Any) -> Any:
        return self.inner.diffusion(t)

    def t_of_half_log_snr(self, half_log_snr: Any) -> Any:
        return self.inner.t_of_half_log_snr(half_log_snr)


MODELS: dict[str, Callable[[float], Any]] = {
    "time": lambda v: sk.ScoreModel(Timed(), PROCESS, time="t" if v == 1 else "999t"),
    "attribute": lambda v: sk.ScoreModel(Timed(v), PROCESS),
    "wrapper": lambda v: Guided(sk.ScoreModel(Timed(), PROCESS), v),
    "network inside": lambda v: Guided(sk.ScoreModel(Timed(weight=v / 2), PROCESS), 2.0),
    "closure": lambda v: sk.ScoreModel(scaled(v), PROCESS),
    "dtype": lambda v: sk.ScoreModel(scaled(0.3), PROCESS, dtype=torch.float32 if v == 1 else torch.bfloat16),
    "process": lambda v: sk.ScoreModel(Timed(), Bare(v)),
}


@pytest.mark.parametrize("name", MODELS)
def test_one_folder_gives_each_model_the_cells_of_a_fresh_run(tmp_path: Path, name: str) -> None:
    kept = [run(MODELS[name](value), out=tmp_path).cells[0].metrics for value in (1.0, 6.0)]
    fresh = [run(MODELS[name](value)).cells[0].metrics for value in (1.0, 6.0)]
    assert kept == fresh
    assert fresh[0] != fresh[1]
    model = MODELS[name](1.0)
    assert run(model, out=tmp_path).cells[0].metrics == fresh[0]  # both live side by side
    assert model.nfe == 0


def test_another_feature_map_is_another_cell(tmp_path: Path) -> None:
    for scale in (1.0, 6.0):
        run(TARGET.model(PROCESS), out=tmp_path, features=lambda x, scale=scale: scale * x)
    first, second = lines(tmp_path)
    assert second["metrics"]["frechet"] == pytest.approx(36 * first["metrics"]["frechet"], rel=1e-4)


def test_a_solver_value_is_known_by_its_table(tmp_path: Path) -> None:
    def solver(weight: float) -> sk.solvers.Solver:
        def rows(grid: Any) -> Any:
            for s, t, _ in grid:
                step = t.alpha * (t.sigma / t.alpha - s.sigma / s.alpha)
                yield sk.solvers.Row(to=t, anchor=t.alpha / s.alpha, history=(weight * step,))

        return sk.solvers.Solver("own", rows, 1, "eps", 1, "an example", lambda n: [1] * n)

    for weight in (1.0, 0.5):
        run(TARGET.model(PROCESS), out=tmp_path, solvers=[solver(weight)])
    first, second = lines(tmp_path)
    assert first["metrics"] != second["metrics"]


def test_behaviour_tells_what_the_identity_does_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return float(os.environ["GUIDANCE"]) * x

    found = []
    for value in ("1", "6", "1"):
        monkeypatch.setenv("GUIDANCE", value)
        model = sk.ScoreModel(hidden, PROCESS)
        found.append((run(model, out=tmp_path).cells[0].metrics, model.nfe))
    assert found[0][0] != found[1][0]
    assert found[2] == (found[0][0], 0)
    first, second = lines(tmp_path)
    assert first["network"] == second["network"]
    assert first["behaviour"] != second["behaviour"]


def test_what_cannot_be_identified_is_computed_again_and_said(tmp_path: Path) -> None:
    model = sk.ScoreModel(scaled(0.3), PROCESS)
    model.net.source = torch.Generator()  # pyright: ignore
    fresh = run(model)
    for _ in range(2):
        before = model.nfe
        with pytest.warns(UserWarning, match=r"model: net.source is a Generator, .* computed again") as told:
            again = run(model, out=tmp_path)
        assert len(told) == 1
        assert model.nfe > before
        assert again.cells[0].metrics == fresh.cells[0].metrics
    first, second = lines(tmp_path)
    assert first["network"].startswith("unidentified-")
    assert first["key"] != second["key"]


SCRIPT = """
import torch, sdekit as sk
from sdekit.targets import Gaussian

SCALE = 0.3

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.names = {"a", "b", "c"}
        self.layer = torch.nn.Linear(2, 2)
        torch.nn.init.constant_(self.layer.weight, 0.2), torch.nn.init.zeros_(self.layer.bias)

    def forward(self, x, t):
        return SCALE * self.layer(x)

class Guided:
    def __init__(self, model):
        self.model, self.process, self.device, self.nfe = model, model.process, model.device, 0

    def predict(self, kind, x, t):
        self.nfe += 1
        return 2 * self.model.predict(kind, x, t)

class Bare(sk.VP):
    pass

inner = sk.ScoreModel(Net(), Bare())
model = Guided(inner)
data = Gaussian(torch.zeros(2), torch.eye(2)).sample(40)
sk.compare(model, data, solvers=["ddim", "dpmpp-2m"], nfe=[5], samples=16, out="kept", features=lambda x: SCALE * x)
print(model.nfe, inner.nfe)
"""


def test_a_fresh_process_takes_its_cells_from_the_folder(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    counts = []
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": seed}
        command = [sys.executable, "script.py"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        counts.append([int(word) for word in done.stdout.split()])
    assert min(counts[0]) >= 10
    assert counts[1] == [0, 0]


# -- the file of results --------------------------------------------------------------------------


def test_a_line_cut_off_leaves_the_file_and_the_others_stay_as_they_are(tmp_path: Path) -> None:
    path, model = tmp_path / "results.jsonl", TARGET.model(PROCESS)
    run(model, out=tmp_path, nfe=[5, 6, 8], target="a\u2028b é")  # an end of line to str.splitlines, not to JSON lines
    first, second, third = path.read_bytes().splitlines(keepends=True)
    other = b'{"written": "by another tool"}\n'
    at_e = third.index("é".encode()) + 1  # within a letter
    path.write_bytes(first + second[:50] + b"\n" + other + second + third[:at_e])
    before = model.nfe
    run(model, out=tmp_path, nfe=[5, 6, 8], target="a\u2028b é")
    assert model.nfe == before + 8
    now = path.read_bytes().splitlines(keepends=True)
    assert now[:3] == [first, other, second]
    assert len(now) == 4
    assert json.loads(now[3])["metrics"] == json.loads(third)["metrics"]


def test_lines_of_an_older_version_are_kept_and_not_taken(tmp_path: Path) -> None:
    path, model = tmp_path / "results.jsonl", TARGET.model(PROCESS)
    run(model, out=tmp_path)
    old = {name: value for name, value in lines(tmp_path)[0].items() if name != "behaviour"} | {"key": "0" * 16}
    path.write_text(json.dumps(old) + "\n")
    run(model, out=tmp_path)
    assert lines(tmp_path)[0] == old
    assert len(lines(tmp_path)) == 2


# -- the record of a likelihood -------------------------------------------------------------------

QUANTIZATION = Quantization(bins=16, scale=0.125)
X = QUANTIZATION.values(torch.randint(4, 12, (3, 2), generator=torch.Generator().manual_seed(0)))


def record(out: Path, model: Any = None, x: torch.Tensor = X, **changes: Any) -> dict[str, Any]:
    arguments = {"batch_size": 2, "method": "unipc-3", "steps": 6} | changes
    return measure(model or TARGET.model(PROCESS), x, out, quantization=QUANTIZATION, **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": Gaussian(torch.zeros(2), torch.eye(2)).model(PROCESS)}, "another model;"),
        ({"model": sk.ScoreModel(TARGET.model(PROCESS).net, PROCESS, time="999t")}, "another model;"),
        ({"x": X.flip(0)}, "other data;"),
        ({"steps": 7}, "other arguments: .*'steps': 6"),
        ({"x": X[:2]}, "other data and other arguments: .*'samples': 3"),
    ],
)
def test_a_record_of_another_run_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    record(tmp_path)
    kept = (tmp_path / "batches.jsonl").read_bytes()
    with pytest.raises(ValueError, match=f"holds a run with {message}"):
        record(tmp_path, **change)
    assert (tmp_path / "batches.jsonl").read_bytes() == kept


def test_a_record_tells_what_the_identity_does_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return float(os.environ["GUIDANCE"]) * x

    monkeypatch.setenv("GUIDANCE", "0.5")
    first = record(tmp_path, sk.ScoreModel(hidden, PROCESS))
    assert record(tmp_path, sk.ScoreModel(hidden, PROCESS)) == first
    monkeypatch.setenv("GUIDANCE", "0.6")
    with pytest.raises(ValueError, match="another model"):
        record(tmp_path, sk.ScoreModel(hidden, PROCESS))


def test_a_record_of_a_model_that_cannot_be_identified_cannot_be_gone_on_from(tmp_path: Path) -> None:
    model = TARGET.model(PROCESS)
    model.net.source = torch.Generator()  # pyright: ignore
    with pytest.warns(UserWarning, match="net.source is a Generator, .* cannot be gone on from"):
        found = record(tmp_path, model)
    assert found["bits_per_dim"] == record(tmp_path / "fresh")["bits_per_dim"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with pytest.raises(ValueError, match="another model"):
            record(tmp_path, model)
