"""One set of samples, whatever the number of processes: real ones, joined by gloo."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import sdekit as sk

N = 20
OPTIONS: dict[str, Any] = {"solver": "dpmpp-2m-sde", "nfe": 6, "keep": "all"}


def model() -> sk.ScoreModel:
    """Sums and products alone round alike in any batch."""
    return sk.ScoreModel(lambda x, t, label: x * 0.5 + (label[:, None] % 3 - 1) * 0.01, sk.VP())


def _work(rank: int, size: int, folder: str, options: dict[str, Any]) -> None:
    os.environ.pop("WORLD_SIZE", None)
    dist.init_process_group("gloo", init_method=f"file://{folder}/joined", rank=rank, world_size=size)
    found = sk.distributed.sample(model(), (N, 3), label=torch.arange(N), **options)
    torch.save({"x": found.x, "trajectory": found.trajectory, "seed": found.seed}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def run(size: int, folder: Path, **options: Any) -> list[dict[str, Any]]:
    context = multiprocessing.get_context("fork")
    folder.mkdir()
    workers = [context.Process(target=_work, args=(r, size, str(folder), OPTIONS | options)) for r in range(size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]


@pytest.mark.filterwarnings("ignore:.*fork.*")
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_any_number_of_processes_draws_the_same_set(tmp_path: Path, size: int) -> None:
    alone = sk.sample(model(), (N, 3), seed=5, label=torch.arange(N), **OPTIONS)
    for found in run(size, tmp_path / "seeded", seed=5):
        assert torch.equal(found["x"], alone.x)
        assert torch.equal(found["trajectory"], alone.trajectory)


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_starts_are_shared_out_and_the_first_process_draws_the_seed(tmp_path: Path) -> None:
    start = torch.arange(N * 3.0).reshape(N, 3)
    found = run(3, tmp_path / "free", start=start, batch_size=4)
    assert len({one["seed"] for one in found}) == 1
    alone = sk.sample(model(), (N, 3), seed=found[0]["seed"], start=start, label=torch.arange(N), **OPTIONS)
    assert all(torch.equal(one["x"], alone.x) for one in found)


def test_parts_of_a_set_are_drawn_by_their_first_number() -> None:
    whole = sk.sample(model(), (N, 3), seed=5, label=torch.arange(N), **OPTIONS).x
    part = sk.sample(model(), (4, 3), seed=5, first=7, label=torch.arange(7, 11), **OPTIONS).x
    assert torch.equal(part, whole[7:11])


def test_what_cannot_be_shared_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="first=-1"):
        sk.sample(model(), (4, 3), nfe=5, first=-1, label=torch.zeros(4))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"WORLD_SIZE=2: .*init_process_group"):
        sk.distributed.sample(model(), (4, 3), nfe=5)
