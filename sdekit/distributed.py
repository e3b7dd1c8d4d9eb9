"""Sampling shared out among the processes of ``torch.distributed``, as ``torchrun`` starts them.

Noise depends on (seed, sample) alone, so the set is the same for any number of processes: to the bit where the
network's own results do not depend on the batch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sdekit import sampling
from sdekit.sampling import Model, Solution, as_rows, batched


def share(n: int) -> range:
    """The samples of 0 … n − 1 that are this process's: as many as any other's, or one more.

    Raises ValueError where processes were started but not joined.

    >>> share(10)  # alone
    range(0, 10)
    """
    return _share(n, *world())


def _share(n: int, rank: int, size: int) -> range:
    return range(n * rank // size, n * (rank + 1) // size)


def sample(model: Model, shape: Sequence[int], *, seed: int | None = None, **options: Any) -> Solution:
    """``sdekit.sample`` of the whole set, of which each process draws its share: every process gets all of it.

    Args:
        model, shape, seed, options: as in ``sdekit.sample``; shape, ``start`` and conditions are the whole set's,
            ``batch_size`` is a process's own. Without a seed the first process draws one for all.

    For sets that should not be gathered: ``sk.sample(model, (len(mine), …), first=mine.start, seed=0)`` with
    ``mine = share(n)``.

    Raises ValueError as ``sdekit.sample`` does, for fewer samples than processes, and where processes were started but
    ``torch.distributed.init_process_group`` was not called.

    >>> from sdekit import VP, ScoreModel
    >>> sample(ScoreModel(lambda x, t: x, VP()), (4, 2), nfe=5, seed=0).x.shape
    torch.Size([4, 2])
    """
    n, *event = sampling.check_shape(shape, options.get("start"))
    _, size = world()
    if n < size:
        raise ValueError(f"shape={tuple(shape)}: {n} samples for {size} processes: each needs at least 1")
    mine = share(n)
    rows = batched(as_rows(model, options, n), n)  # start, and conditions with a row a sample
    own: dict[str, Any] = {**options, **{name: value[mine.start : mine.stop] for name, value in rows.items()}}
    seed = _agreed(seed, model.device) if size > 1 else seed
    part = sampling.sample(model, (len(mine), *event), seed=seed, first=mine.start, **own)
    if size == 1:
        return part
    trajectory = None if part.trajectory is None else _gathered(part.trajectory.transpose(0, 1), n).transpose(0, 1)
    return replace(part, x=_gathered(part.x, n), trajectory=trajectory)


def world() -> tuple[int, int]:
    """This process's number and how many there are.

    Raises ValueError where processes were started but not joined.

    >>> world()  # alone
    (0, 1)
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: processes were started together, but not joined: call"
            ' torch.distributed.init_process_group("gloo"), or "nccl" on GPUs, first'
        )
    return 0, 1


def _agreed(seed: int | None, device: torch.device) -> int:
    """The first process's seed."""
    drawn = int(torch.randint(2**62, ())) if seed is None else seed
    told = torch.tensor(drawn, dtype=torch.int64, device=device)
    dist.broadcast(told, 0)
    return int(told)


def _gathered(own: Tensor, n: int) -> Tensor:
    """The parts of all processes [n, …], from this one's; the shorter are filled up on the way."""
    size = dist.get_world_size()
    longest = -(-n // size)
    padded = torch.cat([own, own.new_zeros(longest - len(own), *own.shape[1:])]).contiguous()
    parts = [torch.empty_like(padded) for _ in range(size)]
    dist.all_gather(parts, padded)
    return torch.cat([part[: len(_share(n, rank, size))] for rank, part in enumerate(parts)])
