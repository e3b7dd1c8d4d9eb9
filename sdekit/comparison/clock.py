"""What sampling costs: seconds in all, seconds of the bare network, and memory."""

from __future__ import annotations

import time
from statistics import median

import torch

from sdekit.comparison.contenders import Contender, Drawn, Job, Tick
from sdekit.identity import uncounted
from sdekit.noise import normal
from sdekit.sampling import conditions_of

_CALLS = 3


def timed(row: Contender, job: Job, tick: Tick) -> tuple[Drawn, float, int | None]:
    """What ``row.draw`` gives, on the CPU, with its wall seconds and the peak of its device's memory in bytes."""
    device = job.model.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    drawn = row.draw(job, tick)
    drawn = drawn._replace(x=drawn.x.cpu())  # waits for the device
    seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return drawn, seconds, peak


def network_seconds(job: Job) -> float:
    """Seconds that one evaluation of all of the job's samples takes, in its batches: the median of three.

    The calls do not count in the model's ``nfe``.
    """
    model, (n, *event) = job.model, job.shape
    size, t = job.batch_size or job.shape[0], (model.process.t_min + model.process.t_max) / 2
    x = normal(job.seed, 0, torch.arange(min(size, n), device=model.device), event)
    parts = conditions_of(job.conditions, n, 0, size)
    found = list[float]()
    with uncounted(model):
        for _ in range(_CALLS + 1):  # the first is slower
            began = time.perf_counter()
            model.predict("eps", x, t, **parts)[:1].cpu()  # waits for the device
            found.append(time.perf_counter() - began)
    return median(found[1:]) * n / len(x)
