r"""A whole run as one CUDA graph: recorded once, launched by the host as one thing, for any seed.

A plan is static and no step reads the device, so nothing in a run depends on numbers that a replay does not have. What
depends on the seed, the start and the counters and keys of the noise, lies in buffers that are filled before a replay.
At batch 1 the host's launches, some ten a step beside the network's, are what a sampler's time is made of; a graph has
one. On devices without graphs the same buffers and the same run are used, launched as ever: for tests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sdekit.door import Evaluations, FloatDtype, Seed, Shape, bare, door
from sdekit.grid import GridSpec
from sdekit.model import evaluating
from sdekit.noise import from_ingredients, ingredients
from sdekit.sampling import Model, as_rows, check_conditions, check_shape, march, start_of
from sdekit.solvers import Solver, get
from sdekit.solvers.tableau import Plan

Replay = Callable[..., Float[Tensor, "n *event"]]
_WARM_UPS = 2  # runs before a recording: libraries choose their kernels in the first


@door
@torch.no_grad()
def capture(
    model: Model,
    shape: Shape,
    *,
    solver: str | Solver = "auto",
    nfe: Evaluations | None = None,
    steps: Evaluations | None = None,
    grid: GridSpec = "auto",
    final: str = "auto",
    dtype: FloatDtype = torch.float32,
    **conditions: Any,
) -> Replay:
    """``replay(seed=…, start=None)``: the samples that ``sample`` gives with the same arguments and that seed.

    Args:
        model, shape, solver, nfe, steps, grid, final, dtype, conditions: as in ``sample``, whose noise is
            ``"independent"``. Conditions are recorded:
            change the numbers of the tensors that were given, in place, for others.

    The network must be one that a graph can hold: the same operations at every call, none that reads the device. Its
    weights may change in place between replays. ``model.nfe`` counts the recording alone.

    Raises ValueError as ``sample``.

    >>> from sdekit import ScoreModel, VP, sample
    >>> model = ScoreModel(lambda x, t: 0.5 * x, VP())
    >>> replay = capture(model, (4, 2), solver="ddpm", nfe=5)
    >>> torch.equal(replay(seed=3), sample(model, (4, 2), solver="ddpm", nfe=5, seed=3).x)
    True
    """
    n, *event = check_shape(shape, None)
    check_conditions(model, conditions, capture)
    where, conditions = model.device, as_rows(model, conditions, n)
    plan = get(solver).plan(model.process, nfe=nfe, steps=steps, grid=grid, final=final).to(where, dtype, event)
    samples = torch.arange(n, device=where)
    begin = start_of(plan, 0, samples, event, dtype)
    buffers = (begin, *ingredients(0, plan.intervals, samples, event))

    def run() -> Tensor:
        with torch.no_grad(), evaluating(model):
            draw = from_ingredients(plan.intervals, *buffers[1:], event, dtype)
            states = bare(march)(plan.fused, model, begin.clone(), draw, None, False, **conditions)
            return deque(states, maxlen=1).pop()[1]

    launch = GRAPHS[where.type](run) if where.type in GRAPHS else run
    return _replay(plan, launch, buffers, samples, event)


def _replay(
    plan: Plan, launch: Callable[[], Tensor], buffers: tuple[Tensor, ...], samples: Tensor, event: list[int]
) -> Replay:
    @door
    @torch.no_grad()
    def replay(*, seed: Seed = 0, start: Tensor | None = None) -> Tensor:
        begin = buffers[0]
        if start is not None and start.shape != begin.shape:
            raise ValueError(f"start has shape {list(start.shape)}: the run was captured for {list(begin.shape)}")
        fresh = start_of(plan, seed, samples, event, begin.dtype) if start is None else start
        for buffer, new in zip(buffers, (fresh, *ingredients(seed, plan.intervals, samples, event))):
            buffer.copy_(new)
        return launch().clone()

    return replay


def _recorded(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """``run`` as a CUDA graph, after it ran beside the current stream, as torch asks."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(_WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def launch() -> Tensor:
        graph.replay()
        return out

    return launch


GRAPHS: dict[str, Callable[[Callable[[], Tensor]], Callable[[], Tensor]]] = {"cuda": _recorded}
"""By type of device: what makes one launch of a run."""
