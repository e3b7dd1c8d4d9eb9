"""Many small cells on one folder by several processes, some of them killed: are all there, once, and what does it cost?

    python benchmarks/workers.py                   # 5,000 cells by 1, 2 and 8 processes, then 8 with random kills
    python benchmarks/workers.py --cells 500

A cell is some 10 ms of one core: 64 samples in two dimensions. "outside" is the time of the processes that is spent
neither on evaluation nor on metrics: planning, keys, claims, records.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path


def work(cells: int, folder: Path) -> None:
    """One process: prints its seconds, and those inside cells."""
    import torch

    import sdekit as sk
    from sdekit.comparison import sweep

    torch.set_num_threads(1)
    inside, measure = [0.0], sweep._Run.measure

    def timed(*arguments: object) -> object:
        began = time.perf_counter()
        try:
            return measure(*arguments)
        finally:
            inside[0] += time.perf_counter() - began

    sweep._Run.measure = timed
    target = sk.targets.Gaussian(torch.tensor([0.1, -0.2]), torch.tensor([[1.0, 0.6], [0.6, 0.5]]))
    began = time.perf_counter()
    sk.compare(
        target.model(sk.VP()), target.sample(256), solvers=["ddim", "dpmpp-2m", "euler", "unipc-2", "ddpm"],
        nfe=range(6, 16), samples=64, seed=range(cells // 50), out=folder, real=target.sample(256, seed=1),
    )  # fmt: skip
    print(json.dumps({"wall": time.perf_counter() - began, "inside": inside[0]}))


def run(cells: int, workers: int, kill: bool) -> None:
    """All processes on one new folder; a line of what they did."""
    with tempfile.TemporaryDirectory() as name:
        folder, began = Path(name), time.perf_counter()
        command = [sys.executable, __file__, "--cells", str(cells), "--worker", str(folder)]

        def start() -> subprocess.Popen[str]:
            # a claim of one who was killed is free again after two seconds, not sixty
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "SDEKIT_BENCH_LEASE": "2"}
            return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

        processes = [start() for _ in range(workers)]
        killed = 0
        while kill and any(process.poll() is None for process in processes) and killed < 2 * workers:
            time.sleep(random.uniform(2, 6))
            one = random.randrange(workers)
            if processes[one].poll() is None:
                processes[one].kill()
                processes[one].wait()
                killed += 1
                processes[one] = start()
        outputs = [process.communicate()[0] for process in processes]
        wall = time.perf_counter() - began
        told = [json.loads(output) for output in outputs]
        records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    twice = sum(count - 1 for count in Counter(record["key"] for record in records).values())
    busy, inside = sum(one["wall"] for one in told), sum(one["inside"] for one in told)
    print(
        f"{workers} processes{f', {killed} killed' * kill}: {len(records)} records of {cells}, {twice} twice;"
        f" {wall:.0f} s, outside {1 - inside / busy:.1%}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", type=int, default=5000)
    parser.add_argument("--worker", type=Path)
    options = parser.parse_args()
    if options.worker:
        from sdekit import claims

        claims.LEASE = float(os.environ.get("SDEKIT_BENCH_LEASE", claims.LEASE))
        work(options.cells, options.worker)
        return
    random.seed(0)
    for workers, kill in ((1, False), (2, False), (8, False), (8, True)):
        run(options.cells, workers, kill)


if __name__ == "__main__":
    main()
