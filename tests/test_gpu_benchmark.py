"""The benchmark for real devices, whole and in small, so that it cannot rot where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sdekit as sk
from sdekit.testing import simgpu

FOLDER = Path(__file__).parents[1] / "benchmarks"
BARE = {"torch", "torchdiffeq", "numpy", "scipy", "jaxtyping", "safetensors"}
# what those need, and what they look for and do without
KNOWN = """
import importlib.metadata, re, sys
allowed, left = set(), set(sys.argv[1].split(","))
while left:
    name = left.pop()
    allowed.add(name.lower().replace("-", "_"))
    try:
        needs = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        continue
    found = {re.split(r"[^A-Za-z0-9_.-]", need)[0] for need in needs if "extra ==" not in need}
    left |= {one for one in found if one.lower().replace("-", "_") not in allowed}
modules = {module for module, homes in importlib.metadata.packages_distributions().items()
           if not any(home.lower().replace("-", "_") in allowed for home in homes)}
class Present:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in modules - {"sdekit"} else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Present(finder) for finder in sys.meta_path]
sys.argv = sys.argv[2:]
import runpy
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Its report, from a process that has the packages of ``BARE`` and no other."""
    out = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, "-c", KNOWN, ",".join(BARE), str(FOLDER / "gpu.py"), "--toy", "--device", "cpu"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    page = (out / "gpu.md").read_text()
    assert "Failed" not in page
    assert "| U-Net" in page
    return json.loads((out / "gpu.json").read_text())


def rows(found: dict[str, Any], part: str) -> list[dict[str, Any]]:
    assert found["parts"][part]["failed"] == ""
    return found["parts"][part]["rows"]


def test_every_part_has_its_rows(found: dict[str, Any]):
    assert found["toy"]
    assert {part: len(rows(found, part)) for part in found["parts"]} == {
        "numbers": 9, "waits": 1, "steps": 6, "peers": 2, "noise": 2, "graph": 3, "likelihood": 2, "many": 1,
    }  # fmt: skip


def test_what_it_says_is_so(found: dict[str, Any]):
    assert all(row["largest difference"] == 0 and row["beyond it"] == [] for row in rows(found, "numbers"))
    assert sum(row["cases"] for row in rows(found, "numbers")) > 3 * len(sk.solvers.names()) / 2
    assert rows(found, "waits")[0] | {"check": ""} == {"check": "", "solvers": len(sk.solvers.names()), "waiting": {}}
    assert all(row["difference"] == 0 for row in rows(found, "graph"))
    ours, theirs = rows(found, "likelihood")
    assert ours["mean nats"] == pytest.approx(theirs["mean nats"], rel=0.01)  # one probe each, of 192 dimensions
    assert rows(found, "many")[0]["samples"] == 40
    assert rows(found, "many")[0]["finite"]


def test_a_part_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    gpu = pytest.importorskip("gpu")
    monkeypatch.setattr(gpu, "PARTS", {"broken": lambda device, sizes: [][0], "many": gpu.many})
    found = gpu.measured(torch.device("cpu"), gpu.TOY)
    assert found["parts"]["broken"]["failed"].startswith("IndexError")
    assert found["parts"]["many"]["rows"]
    assert "**Failed**: IndexError" in gpu.page(found)


def test_a_wait_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    gpu = pytest.importorskip("gpu")

    def reads(self: torch.nn.Module, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return x * float(x.mean())

    monkeypatch.setattr(gpu.Net, "forward", reads)
    monkeypatch.setattr(gpu.sk.solvers, "names", lambda: ["ddim"])
    (row,) = gpu.waits(torch.device("cpu"), gpu.TOY)
    assert row["waiting"]["ddim"].startswith(simgpu.HostReadError.__name__)
