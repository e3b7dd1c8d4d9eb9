"""A folder of results that a full disk, a kill or another process has had its way with."""

from __future__ import annotations

import json
import os
import pickle
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import sdekit as sk
from sdekit import report
from sdekit.claims import claim
from sdekit.comparison import Comparison, compare
from sdekit.results import Cell, Store
from sdekit.targets import Gaussian

TARGET = Gaussian(torch.tensor([1.0, -0.5]), torch.tensor([[1.0, 0.6], [0.6, 0.5]]))


def measure(out: Path | None, **options) -> Comparison:
    given = {"solvers": ["ddim", "heun", "ddpm"], "nfe": [4, 8], "samples": 24, **options}
    return compare(TARGET.model(sk.VP()), TARGET.sample(64, seed=1), real=TARGET.sample(64, seed=2), out=out, **given)


def metrics(result: Comparison) -> dict[tuple, dict]:
    return {(c.solver, c.nfe, c.seed): dict(c.metrics) for c in result.cells}


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_full_disk_costs_what_did_not_fit(tmp_path: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))  # two records and a part
    try:
        with pytest.raises(OSError, match="large"):
            measure(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert 0 < len(lines) < 6
    assert all(json.loads(line)["metrics"] for line in lines)
    assert (tmp_path / "results.jsonl").read_text().endswith("\n")
    again = measure(tmp_path)
    assert metrics(again) == metrics(measure(None))
    assert (tmp_path / "results.jsonl").read_text().splitlines()[: len(lines)] == lines  # and those were not made again
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize("left", [1, 400, -3])
def test_a_torn_record_is_made_again(tmp_path: Path, left: int) -> None:
    first = measure(tmp_path)
    contents = (tmp_path / "results.jsonl").read_bytes()
    last = contents.rstrip(b"\n").rfind(b"\n") + 1
    (tmp_path / "results.jsonl").write_bytes(contents[: last + left] if left > 0 else contents[:left])
    again = measure(tmp_path)
    assert metrics(again) == metrics(first)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert len({json.loads(line)["key"] for line in lines}) == len(lines) == 6


def test_the_samples_that_a_kill_cut_off_are_missing_and_no_others(tmp_path: Path) -> None:
    first = measure(tmp_path)
    (file,) = (tmp_path / "tensors").glob("previews-*")
    kept = [first.samples[cell.key] for cell in first.cells]
    assert [x.shape for x in kept] == [(24, 2)] * 6
    os.truncate(file, file.stat().st_size - 10)
    last = max(first.cells, key=lambda cell: int(cell.preview.split(":")[1]))
    (found,) = report.read(tmp_path)
    assert last.key not in found.samples or found.samples.get(last.key) is None
    again = measure(tmp_path)
    for cell, x in zip(again.cells, kept):
        if cell.key != last.key:
            assert torch.equal(again.samples[cell.key], x)
    assert report.write(again, tmp_path)[-1].name == "report.html"


def test_a_record_cannot_name_a_file_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"12345678")
    store = Store(tmp_path / "run")
    for preview in ("../../secret:0:float32:2x1", "x:0:float32:-1", "x", "x:0:object:2x1", "x:0:float32:99999999999x9"):
        cell = Cell("toy", "VP()", "ddim", "auto", 5, 8, 0, key=preview, preview=preview)
        store.add(cell)
        assert store.preview(preview) is None


def test_memory_holds_no_samples_of_a_run_with_a_folder(tmp_path: Path) -> None:
    result = measure(tmp_path, seed=[0, 1])
    store = result.samples._store  # type: ignore[attr-defined]
    assert all(key.startswith("endpoint-") for key in store.tensors)
    assert len(store.tensors) == 2
    assert set(result.samples) == {cell.key for cell in result.cells}
    copy = pickle.loads(pickle.dumps(result))
    assert all(torch.equal(copy.samples[key], x) for key, x in result.samples.items())


def test_of_several_claims_each_is_renewed_as_its_lease_asks(tmp_path: Path) -> None:
    with claim(tmp_path, "long", lease=60.0), claim(tmp_path, "short", lease=0.4):
        time.sleep(0.9)
        with claim(tmp_path, "short", lease=0.4) as other:
            assert not other


def test_what_another_process_is_at_is_gone_round_and_not_waited_for(tmp_path: Path) -> None:
    """Somebody holds the endpoint for a while: rows that need none are measured meanwhile."""
    measure(tmp_path / "other", nfe=[4])
    (name,) = (path.stem for path in (tmp_path / "other" / "tensors").glob("endpoint-*"))
    order, free, folder = list[str](), threading.Event(), tmp_path / "run"

    def progress(what: str, done: int, total: int) -> None:
        order.append(what.split(",")[0])
        if "ddpm" in order:
            free.set()

    def hold() -> None:
        with claim(folder / "claims", name):
            ready.set()
            free.wait(20)

    ready = threading.Event()
    holder = threading.Thread(target=hold)
    (folder / "claims").mkdir(parents=True)
    holder.start()
    ready.wait()
    result = measure(folder, nfe=[4], progress=progress)
    holder.join()
    assert order[0] == "ddpm"
    assert len(result.cells) == 3


def test_a_network_that_gives_nan_costs_its_cells_and_another_model_has_its_own(tmp_path: Path) -> None:
    broken = sk.ScoreModel(lambda x, t: x * float("nan"), sk.VP())
    data = TARGET.sample(64, seed=1)
    bad = compare(broken, data, solvers=["ddim"], nfe=[4], samples=24, out=tmp_path)
    assert [cell.note[:8] for cell in bad.cells] == ["diverged"]
    good = compare(TARGET.model(sk.VP()), data, solvers=["ddim"], nfe=[4], samples=24, out=tmp_path)
    fresh = compare(TARGET.model(sk.VP()), data, solvers=["ddim"], nfe=[4], samples=24)
    assert metrics(good) == metrics(fresh)
    assert len(report.read(tmp_path)) == 2
