"""A sweep from flags or a file, by several processes, beside other libraries."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import sdekit as sk
from sdekit import cli
from sdekit.cli.workers import is_first
from sdekit.interop import peers
from sdekit.process import Process


def sdekit(*words: str) -> Any:
    return CliRunner().invoke(cli.app, [*words])


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_a_file_gives_the_options_and_what_is_typed_wins(tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(
        """target = "gaussian"\nsolvers = ["ddim(eta=0.0)", "heun"]\nnfe = [4, 5]\nseed = [0, 1]
        samples = 32\ndata-limit = 0"""
    )
    done = sdekit("compare", "--sweep", str(file), "--nfe", "6", "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    axes = [(r["solver"], r["nfe"], r["seed"], r["samples"]) for r in records(tmp_path / "out")]
    assert axes == [(solver, 6, seed, 32) for solver in ("ddim(eta=0.0)", "heun") for seed in (0, 1)]
    assert "means over seeds 0, 1" in done.stdout
    # two solvers, two seeds, six evaluations of 32 samples, and both seeds' endpoints with their checks
    assert f"{2 * 2 * 6 * 32 + 2 * (150 + 200) * 32:,} network evaluations" in done.stderr


def test_metrics_are_chosen_by_name(tmp_path: Path) -> None:
    few = ["--solvers", "ddim", "--nfe", "5", "--samples", "20", "--out", str(tmp_path)]
    assert sdekit("compare", "--target", "gaussian", *few, "--metrics", "energy,1-coverage").exit_code == 0
    assert [set(record["metrics"]) for record in records(tmp_path)] == [{"energy", "1-coverage"}]
    failed = sdekit("compare", "--target", "gaussian", *few, "--metrics", "coverage")
    assert failed.exit_code == 2
    assert "did you mean '1-coverage'" in failed.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nfee = [5]", "unknown option in .*did you mean 'nfe'"),
        ("nfe = [", "is no TOML file"),
        ("sweep = 'x'", "unknown option in .*'sweep'"),
        ("nfe = 'x'", "--nfe 'x': whole numbers"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(text)
    done = sdekit("compare", "--sweep", str(file), "--out", str(tmp_path / "out"))
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert re.search(message, done.stderr)


def test_workers_share_out_the_cells_and_one_tells(tmp_path: Path) -> None:
    code = "from sdekit.cli import main; main()"
    words = ["--target", "gaussian", "--solvers", "ddim,heun,euler", "--nfe", "4,5,6,7", "--samples", "16"]
    (tmp_path / "sweep.toml").write_text("workers = 2")  # which the worker reads, too
    command = [sys.executable, "-c", code, "compare", *words, "--sweep", "sweep.toml", "--out", "kept"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    keys = [record["key"] for record in records(tmp_path / "kept")]
    assert len(keys) == len(set(keys)) == 12
    assert done.stdout.count("kept/results.jsonl") == 1


@pytest.mark.parametrize("name", ["RANK", "SLURM_PROCID", "SDEKIT_WORKER"])
def test_the_first_of_several_processes_is_known(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert is_first()
    monkeypatch.setenv(name, "1")
    assert not is_first()


def test_the_first_of_several_processes_tells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RANK", "1")
    words = ["--target", "gaussian", "--solvers", "ddim", "--nfe", "4", "--samples", "4"]
    done = sdekit("compare", *words, "--out", str(tmp_path))
    assert done.exit_code == 0
    assert not done.stdout
    assert len(records(tmp_path)) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the libraries
def test_other_libraries_stand_beside_ours(tmp_path: Path) -> None:
    found = [one.name for one in peers.installed()]
    words = ["--target", "gaussian", "--solvers", "ddim", "--nfe", "6", "--samples", "32", "--peers"]
    done = sdekit("compare", *words, "--out", str(tmp_path))
    if not found:
        assert done.exit_code == 2
        assert "--peers: none of azula, diffusers, k-diffusion is installed" in done.stderr
        return
    assert done.exit_code == 0, done.output
    cells = {record["solver"]: record for record in records(tmp_path)}
    assert [*cells] == ["ddim", *found]
    for name in found:
        assert cells[name]["note"] == ""
        assert cells[name]["evaluations"] == (5 if name == "EDM Heun" else 6)


_DDIM_FILE = """
import torch


class DPM_Solver:
    \"\"\"A file as the authors' is used: the ε network, the schedule, and DDIM in it.\"\"\"

    def __init__(self, eps, schedule):
        self.eps, self.ns = eps, schedule

    def sample(self, x, steps, t_start, t_end, denoise_to_zero):
        print("steps", steps)
        times = torch.linspace(t_start, t_end, steps + 1)
        alpha, sigma = self.ns.marginal_alpha(times), self.ns.marginal_std(times)
        for i in range(steps):
            eps = self.eps(x, times[i : i + 1])
            x = alpha[i + 1] * (x - sigma[i] * eps) / alpha[i] + sigma[i + 1] * eps
        return (x - sigma[-1] * self.eps(x, times[-1:])) / alpha[-1]
"""


@pytest.mark.parametrize("process", [sk.VP(), sk.VE(0.05, 5.0)], ids=["vp", "ve"])
def test_a_published_file_on_the_path_is_a_peer(
    process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = peers.PEERS["DPM-Solver's file"]
    assert peer.version() == ""
    (tmp_path / "dpm_solver_pytorch.py").write_text(_DDIM_FILE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "dpm_solver_pytorch", raising=False)
    assert len(peer.version()) == 8
    assert "DPM-Solver's file" in [one.name for one in peers.installed()]
    target = sk.targets.Gaussian(torch.zeros(2).double(), torch.diag(torch.tensor([1.0, 0.1])).double())
    model = target.model(process)
    start = process.prior_std * torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theirs = peer.run(model, start, 6)
    assert model.nfe == 6
    assert not capsys.readouterr().out
    ours = sk.sample(model, (8, 2), solver="ddim", nfe=6, grid="time", final="denoise", start=start).x
    torch.testing.assert_close(theirs, ours, atol=2e-6, rtol=2e-6)  # float32 inside
    with pytest.raises(ValueError, match="nfe=2: dpm_solver_pytorch takes two steps at least"):
        peer.run(model, start, 2)
    sys.modules.pop("dpm_solver_pytorch")


def test_a_librarys_ddim_is_ours_on_its_times() -> None:
    """azula's DDIM on uniform times, with the last evaluation at t_min, is ``ddim`` so ended."""
    pytest.importorskip("azula")
    target = sk.targets.Gaussian(torch.zeros(2).double(), torch.diag(torch.tensor([1.0, 0.1])).double())
    start = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theirs = peers.PEERS["azula DDIM"].run(target.model(sk.VP()), start, 6)
    options = {"solver": "ddim", "nfe": 6, "grid": "time", "final": "denoise", "start": start}
    torch.testing.assert_close(theirs, sk.sample(target.model(sk.VP()), (8, 2), **options).x, atol=1e-8, rtol=1e-8)
