"""Processes that share a folder: each cell once, whoever is killed, whenever."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from sdekit.claims import claim
from sdekit.results import Cell, Store


def test_a_claim_is_held_by_one_and_given_back(tmp_path: Path) -> None:
    with claim(tmp_path, "a") as first, claim(tmp_path, "a") as second, claim(tmp_path, "b") as other:
        assert (first, second, other) == (True, False, True)
    with claim(tmp_path, "a") as again:
        assert again
    assert not list(tmp_path.iterdir())


def test_a_claim_lives_while_it_is_renewed_and_is_taken_over_after(tmp_path: Path) -> None:
    with claim(tmp_path, "a", lease=0.5) as held:
        time.sleep(1.0)
        with claim(tmp_path, "a", lease=0.5) as other:
            assert (held, other) == (True, False)
    (tmp_path / "a").write_text("one who was killed")
    with claim(tmp_path, "a", lease=60) as early:
        assert not early
    os.utime(tmp_path / "a", (time.time() - 100, time.time() - 100))
    with claim(tmp_path, "a", lease=60) as late:
        assert late
    assert not list(tmp_path.iterdir())


def test_of_many_who_find_a_claim_abandoned_one_takes_it_over(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one who was killed")
    os.utime(tmp_path / "a", (0, 0))
    won, barrier, over = list[bool](), threading.Barrier(8), threading.Event()

    def contend() -> None:
        barrier.wait()
        with claim(tmp_path, "a") as mine:
            won.append(mine)
            over.wait(0.5)

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(won) == 1


def test_records_of_others_are_seen_and_none_is_there_twice(tmp_path: Path) -> None:
    def cell(key: str) -> Cell:
        return Cell("toy", "VP()", "ddim", "logsnr", 5, 8, 0, metrics={"energy": 1.0}, key=key)

    one, other = Store(tmp_path), Store(tmp_path)
    one.add(cell("a"))
    other.add(cell("b"))
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write(cell("torn").to_json()[:30])  # a process that was killed in the middle of a line
    one.refresh()
    assert set(one.cells) == {"a", "b"}
    other.add(cell("a"))
    one.add(cell("c"))
    other.refresh()
    assert set(other.cells) == {"a", "b", "c"}
    assert set(Store(tmp_path).cells) == {"a", "b", "c"}
    keys = [json.loads(line)["key"] for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert keys == ["a", "b", "c"]


SCRIPT = """
import time, torch, sdekit as sk, sdekit.claims
from sdekit.targets import Gaussian

sdekit.claims.LEASE = 1.0
target = Gaussian(torch.tensor([1.0, -0.5]), torch.tensor([[1.0, 0.6], [0.6, 0.5]]))

def sampler(model, start, nfe):
    time.sleep(0.05)
    return start

mine = [sk.comparison.Function(f"f{i}", sampler) for i in range(6)]
print("ready", flush=True)
sk.compare(
    target.model(sk.VP()), target.sample(16), solvers=["ddim", *mine], nfe=range(2, 7), samples=4, seed=[0, 1],
    out="kept", real=target.sample(8),
)
"""


def test_workers_that_are_killed_lose_nothing(tmp_path: Path) -> None:
    """Three processes, two of them killed while they compute, and one that comes later: 70 records, each once."""
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "script.py"], cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    results = tmp_path / "kept" / "results.jsonl"
    workers = [start() for _ in range(3)]
    for worker, enough in zip(workers[:2], (8, 20)):
        while not (results.exists() and results.read_text().count("\n") >= enough):
            time.sleep(0.01)
        worker.send_signal(signal.SIGKILL)
    last = start()
    assert last.wait(timeout=120) == 0
    assert workers[2].wait(timeout=120) == 0
    records = [json.loads(line) for line in results.read_text().splitlines()]
    assert set(Counter(record["key"] for record in records).values()) == {1}
    assert len(records) == 7 * 5 * 2
    assert all(record["metrics"] for record in records)
    assert not (tmp_path / "kept" / "claims").exists()
    for process in (*workers, last):
        process.stdout.close()  # pyright: ignore
        process.wait()
