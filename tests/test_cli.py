"""The command as a user meets it: what it prints, what it writes, how it fails."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

import sdekit as sk
from sdekit import cli, solvers
from sdekit.data import DIGITS, digits
from sdekit.likelihood import log_prob
from sdekit.nn import digits_model

SMALL = ["--solvers", "ddim,heun", "--nfe", "4,5", "--samples", "16"]


def sdekit(*words: str) -> Any:
    return CliRunner().invoke(cli.app, [*words])


def test_compare_prints_the_table_and_writes_the_files(tmp_path: Path) -> None:
    done = sdekit("compare", "--target", "gaussian", *SMALL, "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    assert {path.name for path in tmp_path.iterdir()} == {
        "results.jsonl", "table.txt", "steps-vs-quality.png", "samples.png", "report.html", "tensors",
    }  # fmt: skip
    assert (tmp_path / "table.txt").read_text(encoding="utf-8") in done.stdout
    assert "\x1b" not in done.output
    assert done.stdout.splitlines()[-1] == str(tmp_path / "report.html")
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(record["nfe"], record["solver"]) for record in records] == [
        (4, "ddim"), (4, "heun"), (5, "ddim"), (5, "heun"),
    ]  # fmt: skip
    for record in records:
        assert f"{record['metrics']['rmse']:.3f}"[:4] in done.stdout


def test_ctrl_c_prints_what_is_finished_and_exits_130(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = sk.sample

    def sample(model, shape, **options):
        if (options["solver"].name, options["nfe"]) == ("ddim", 5):
            raise KeyboardInterrupt
        return draw(model, shape, **options)

    monkeypatch.setattr(import_module("sdekit.comparison.contenders"), "sample", sample)
    done = sdekit("compare", "--target", "gaussian", *SMALL, "--out", str(tmp_path))
    assert done.exit_code == 130
    assert re.search(r"^heun +\d", done.stdout, re.MULTILINE)
    assert (tmp_path / "steps-vs-quality.png").exists()
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2
    assert "2 cells were finished" in done.stderr


def test_likelihood_prints_what_it_records_and_goes_on(tmp_path: Path) -> None:
    words = ("likelihood", "--samples", "6", "--out", str(tmp_path))
    done = sdekit(*words)
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "likelihood.json").read_text())
    assert f"{record['bits_per_dim']:.4f} ± {record['standard_error']:.4f} bits/dim over 6 digits" in done.stdout
    assert record["error_dequantisation"] is None
    assert "dequantisation unknown" in done.stdout  # one draw does not tell
    assert f"probes {record['error_probes']:.2g}" in done.stdout  # the default's are enough for it
    batches = (tmp_path / "batches.jsonl").read_text()
    assert sdekit(*words).stdout == done.stdout
    assert (tmp_path / "batches.jsonl").read_text() == batches  # nothing was computed again
    assert sdekit("likelihood", "--samples", "0").exit_code == 2


def test_likelihood_by_a_solver_of_the_registry(tmp_path: Path) -> None:
    words = ("likelihood", "--samples", "4")
    assert sdekit(*words, "--out", str(tmp_path / "adaptive")).exit_code == 0
    plan = ("--method", "unipc-3", "--steps", "40", "--grid", "vp-time(power=8, blend=0.3)")
    assert sdekit(*words, *plan, "--out", str(tmp_path / "table")).exit_code == 0
    adaptive, table = (
        json.loads((tmp_path / name / "likelihood.json").read_text())["bits_per_dim"] for name in ("adaptive", "table")
    )
    assert table == pytest.approx(adaptive, abs=2e-3)  # the same probes and points in the bins
    refused = sdekit(*words, "--method", "heun", "--steps", "4", "--out", str(tmp_path / "refused"))
    assert refused.exit_code == 2
    assert "gives no density" in refused.stderr


def test_a_killed_likelihood_loses_no_finished_batch(tmp_path: Path) -> None:
    words = ("likelihood", "--samples", "66", "--out", str(tmp_path))
    script = "from sdekit.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen([sys.executable, "-c", script, *words], env=environment, stderr=subprocess.DEVNULL)
    batches, deadline = tmp_path / "batches.jsonl", time.monotonic() + 240
    while not batches.exists() or batches.read_text().count("\n") < 2:  # what the run is, and the first 64 digits
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait(timeout=60) == -signal.SIGKILL
    finished = batches.read_text()
    assert not (tmp_path / "likelihood.json").exists(), "it had ended before it was killed"
    assert sdekit(*words).exit_code == 0
    whole = batches.read_text()
    assert whole.startswith(finished)
    last = log_prob(digits_model(), digits().held_out[64:66], quantization=DIGITS, first=64)
    assert json.loads(whole.splitlines()[2])["bits_per_dim"] == last.bits_per_dim.tolist()
    assert json.loads((tmp_path / "likelihood.json").read_text())["samples"] == 66


def test_solvers_lists_the_registry_and_explains_one() -> None:
    listed = sdekit("solvers")
    assert listed.exit_code == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == solvers.names()
    one = sdekit("solvers", "ddim")
    assert solvers.get("ddim").reference in one.stdout
    assert "option eta=0.0" in one.stdout


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--order", "3", "--deterministic"], lambda one: one.order == 3 and not one.stochastic),
        (["--stochastic", "--evaluations", "2"], lambda one: one.stochastic and one.evaluations == 2),
        ([], lambda one: True),
    ],
)
def test_solvers_are_chosen_by_what_they_are_and_told_to_programs(words: list[str], kept: Any) -> None:
    expected = [name for name in solvers.names() if kept(solvers.get(name))]
    listed = sdekit("solvers", *words)
    assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == expected
    told = json.loads(sdekit("solvers", *words, "--json").stdout)
    assert [one["name"] for one in told] == expected
    for one in told:
        solver = solvers.get(one["name"])
        facts = (solver.order, solver.evaluations, solver.stochastic, solver.reference)
        assert (one["order"], one["evaluations"], one["stochastic"], one["source"]) == facts
        assert {*one["options"]} == {*solver.available}


TOLD = {
    "sample": (["--target", "gaussian", "-n", "3", "--nfe", "4"], {"n": 3, "nfe": 4, "target": "gaussian", "seed": 0}),
    "invert": (["--target", "gaussian", "-n", "3", "--nfe", "4", "--method", "pigdm"], {"nfe": 4, "method": "pigdm"}),
    "likelihood": (["--samples", "1", "--probes", "1", "--draws", "1", "--seed", "3"], {"samples": 1, "seed": 3}),
    "compare": (["--target", "gaussian", "--solvers", "ddim", "--nfe", "3,4", "--samples", "4"], {}),
    "tune": (["--target", "gaussian", "--nfe", "2,3", "--starts", "40", "--budget", "100"], None),
}


@pytest.mark.parametrize("command", TOLD)
def test_every_command_tells_programs(command: str, tmp_path: Path) -> None:
    words, known = TOLD[command]
    done = sdekit(command, *words, "--out", str(tmp_path), "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)  # nothing else is there
    if known is None:
        assert [plan["starts"]["train"] for plan in told] == [20, 20]
        files = [plan["file"] for plan in told]
    else:
        assert {name: told[name] for name in known} == known
        files = told["files"]
    assert files
    assert all(Path(file).exists() for file in files)
    if command == "compare":
        assert [(cell["solver"], cell["nfe"]) for cell in told["cells"]] == [("ddim", 3), ("ddim", 4)]
        page = sdekit("report", str(tmp_path), "--json")
        assert json.loads(page.stdout)["files"] == [str(tmp_path / "report.html")]


@pytest.mark.parametrize("target", list(cli.TARGETS))
def test_sample_writes_what_sample_returns(tmp_path: Path, target: str) -> None:
    words = ["--solver", "ddim(eta=0.5)", "--nfe", "3", "--n", "5", "--seed", "7", "--grid", "time"]
    done = sdekit("sample", "--target", target, *words, "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    subject = cli.TARGETS[target](torch.device("cpu"))
    shape = (5, *subject.reference.shape[1:])
    again = sk.sample(subject.model, shape, solver="ddim(eta=0.5)", nfe=3, seed=7, grid="time")
    with safe_open(tmp_path / "samples.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("x"), again.x)
        assert file.metadata() == {
            "target": target, "solver": "ddim(eta=0.5)", "nfe": "3", "seed": "7", "grid": "time",
        }  # fmt: skip
    assert (tmp_path / "samples.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "--target", "gausian"], "unknown target 'gausian': did you mean 'gaussian'?"),
        (["compare", "--target", "gaussian", "--solvers", "dimm"], "did you mean 'ddim'?"),
        (["compare", "--target", "gaussian", "--grid", "logsnrr"], "did you mean 'logsnr'?"),
        (["compare", "--target", "gaussian", "--nfe", "5,ten"], "--nfe '5,ten'"),
        (["compare", "--target", "gaussian", "--nfe", "-5"], "--nfe '-5'"),
        (["compare", "--target", "gaussian", "--samples", "1"], "samples=1"),
        (["sample", "--target", "gaussian", "--nfe", "0"], "nfe=0"),
        (["sample", "--target", "gaussian", "--n", "0"], "at least 1"),
        (["sample", "--target", "gaussian", "--device", "abacus"], "--device 'abacus'"),
        (["sample", "--target", "gaussian", "--solver", "ddim(eta="], "cannot read 'ddim(eta='"),
        (["solvers", "huen"], "did you mean 'heun'?"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = sdekit(*words)
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = sdekit("compare", "--target", "gaussian", *SMALL, "--out", str(tmp_path / "file"))
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1


def test_train_digits_is_offered() -> None:
    done = sdekit("train", "digits", "--help")
    assert done.exit_code == 0
    assert "checkpoint" in done.stdout


def test_progress_without_a_terminal_is_a_line_a_cell(tmp_path: Path) -> None:
    done = sdekit("compare", "--target", "gaussian", *SMALL, "--out", str(tmp_path))
    cost, *lines = done.stderr.splitlines()
    assert cost.endswith(" network evaluations, each of one sample")
    assert [line.partition("] ")[2] for line in lines] == [
        "exact endpoint", "check of the endpoint",
        "ddim, auto, NFE 4", "heun, auto, NFE 4", "ddim, auto, NFE 5", "heun, auto, NFE 5",
    ]  # fmt: skip
