"""Many small cells on one folder by several processes, some of them killed: are all there, once, and what does it cost?

    python benchmarks/workers.py                   # 5,000 cells by 1, 2 and 8 processes, then 8 with random kills
    python benchmarks/workers.py --cells 500
    python benchmarks/workers.py --samples 64      # smaller cells

A cell is some 35 ms of one core: 128 samples in two dimensions, the default metrics with their jackknife. "outside" is
the share of the processes' wall time in ``compare`` that is neither evaluation nor metrics: keys, claims, records,
waiting for others; "of CPU" is the same share of their processor time, which tells more where there are more processes
than cores, and a process that is outside may just wait for its turn. Imports come before it. Both are told by clocks in
the processes that ended by themselves. The load is of the machine before.
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
from typing import Any


def work(cells: int, samples: int, folder: Path) -> None:
    """One process: prints its seconds of wall and processor, those of evaluation and metrics, and those of imports."""
    began = time.perf_counter()
    import torch

    import sdekit as sk
    from sdekit.comparison import ruler, sweep

    imports = time.perf_counter() - began
    torch.set_num_threads(1)
    inside, depth = [0.0, 0.0], [0]

    def clocked(holder: Any, name: str) -> None:
        function = getattr(holder, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            depth[0] += 1
            began = time.perf_counter(), time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                depth[0] -= 1
                if depth[0] == 0:
                    # its call into the kernel is where this process is often made to wait for its turn
                    inside[1] += time.process_time() - began[1]
                    inside[0] += time.perf_counter() - began[0]

        setattr(holder, name, timed)

    clocked(sweep, "timed")  # sampling of a cell
    clocked(sweep, "network_seconds")
    clocked(sweep, "_draw")  # of the accurate endpoints
    for name in ("against_data", "left_out", "against_endpoint", "against_endpoint_left_out"):
        clocked(ruler.Ruler, name)
    target = sk.targets.Gaussian(torch.tensor([0.1, -0.2]), torch.tensor([[1.0, 0.6], [0.6, 0.5]]))
    began, busy = time.perf_counter(), time.process_time()
    sk.compare(
        target.model(sk.VP()), target.sample(2 * samples), solvers=["ddim", "dpmpp-2m", "euler", "unipc-2", "ddpm"],
        nfe=range(6, 16), samples=samples, seed=range(cells // 50), out=folder, real=target.sample(2 * samples, seed=1),
    )  # fmt: skip
    wall, busy = time.perf_counter() - began, time.process_time() - busy
    told = {"wall": wall, "inside": inside[0], "cpu": busy, "cpu_inside": inside[1], "imports": imports}
    print(json.dumps(told))


def run(cells: int, samples: int, workers: int, kill: bool) -> set[str]:
    """All processes on one new folder; a line of what they did, and the keys of the records."""
    load, cpu = os.getloadavg()[0], os.times()[2:4]
    with tempfile.TemporaryDirectory() as name:
        folder, began = Path(name), time.perf_counter()
        sizes = ["--cells", str(cells), "--samples", str(samples)]
        command = [sys.executable, __file__, *sizes, "--worker", str(folder)]

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
    busy, inside, imports = (sum(one[name] for one in told) for name in ("wall", "inside", "imports"))
    own, own_inside = (sum(one[name] for one in told) for name in ("cpu", "cpu_inside"))
    cpu = [after - before for before, after in zip(cpu, os.times()[2:4])]
    print(
        f"{workers} processes{f', {killed} killed' * kill}: {len(records)} records of {cells}, {twice} twice;"
        f" {wall:.1f} s, {max(one['wall'] for one in told):.1f} s without imports, CPU {sum(cpu):.1f} s;"
        f" outside {1 - inside / busy:.2%}, of CPU {1 - own_inside / own:.2%}, imports {imports / workers:.1f} s each;"
        f" load {load:.1f}",
        flush=True,
    )
    return {record["key"] for record in records}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", type=int, default=5000)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--worker", type=Path)
    options = parser.parse_args()
    if options.worker:
        from sdekit import claims

        claims.LEASE = float(os.environ.get("SDEKIT_BENCH_LEASE", claims.LEASE))
        work(options.cells, options.samples, options.worker)
        return
    random.seed(0)
    kinds = ((1, False), (2, False), (8, False), (8, True))
    keys = [run(options.cells, options.samples, workers, kill) for workers, kill in kinds]
    print("the same set of records" if all(one == keys[0] for one in keys) else "THE RECORDS DIFFER")


if __name__ == "__main__":
    main()
