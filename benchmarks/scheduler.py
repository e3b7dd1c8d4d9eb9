"""What the two doors to diffusers cost beside its own: wrapping a network, and stepping a pipeline's scheduler.

    python benchmarks/scheduler.py               # both tables, one thread
    python benchmarks/scheduler.py --repeats 50

All rows of a table are measured in one run, taken in turn, the best of the repeats each, so that a busy machine slows
all alike: ratios and differences count, not microseconds. The network is a trivial one with diffusers' calling
convention, so that what is left is host cost. Needs diffusers: pip install -e '.[bench]'.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import torch
from overhead import SHAPE, STEPS, best_of
from torch import Tensor

import sdekit as sk
from sdekit.prediction import convert

LIKE, CLIPPING = diffusers.DDPMScheduler(clip_sample=False), diffusers.DDPMScheduler()
SOLVERS = ("ddim", "dpmpp-2m", "dpmpp-3m-corrected", "unipc-3", "heun", "ddpm")


class Trivial(torch.nn.Module):
    """0.1 x, called as networks of diffusers are."""

    def __init__(self, classes: int | None = None) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.1))
        self.config = {"in_channels": SHAPE[1], "out_channels": SHAPE[1], "num_class_embeds": classes}

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> tuple[Tensor]:
        return (sample * self.scale,)


@torch.no_grad()
def calls(function: Callable[..., Any], x: Tensor, *arguments: Any, **named: Any) -> None:
    for _ in range(STEPS):
        function(x, *arguments, **named)


def wrapping(repeats: int) -> dict[str, float]:
    """Seconds of 50 calls: the bare network, inside ``wrap``'s adapter, and as a model that is asked for ε."""
    network, x, times = Trivial(), torch.randn(SHAPE), torch.full((SHAPE[0],), 499.0)
    labelled, labels = Trivial(classes=10), torch.zeros(SHAPE[0], dtype=torch.long)
    wrap: Any = sk.interop.diffusers.wrap
    model, clipped, conditional = wrap(network, LIKE), wrap(network, CLIPPING), wrap(labelled, LIKE)

    c_x, c_F = convert("eps", "x0", model.process, 0.5)  # noqa: N806

    def eps(model: Any, x: Tensor, **conditions: Any) -> Tensor:
        return model.predict("eps", x, 0.5, **conditions)

    def clip(x: Tensor) -> Tensor:
        """What ``clip_sample`` has to compute, with all coefficients ready; the times are made, as ``predict`` does."""
        output = network(x, timestep=x.new_full((len(x),), 499.0), return_dict=False)[0]
        x0 = torch.add(x * c_x, output, alpha=c_F)
        return torch.add(output, x0.clamp(-1.0, 1.0) - x0, alpha=1 / c_F)

    return best_of(
        {
            "bare network": partial(calls, network, x, timestep=times, return_dict=False),
            "wrap's adapter": partial(calls, model.net, x, times),
            "wrap's adapter, with labels": partial(calls, conditional.net, x, times, class_labels=labels),
            "wrap, model.predict": partial(calls, partial(eps, model), x),
            "wrap, model.predict with labels": partial(calls, partial(eps, conditional), x, class_labels=labels),
            "clipping written by hand": partial(calls, clip, x),
            "wrap with clip_sample": partial(calls, partial(eps, clipped), x),
        },
        repeats,
    )


@torch.no_grad()
def loop(scheduler: Any, x: Tensor, count: int) -> None:
    scheduler.set_timesteps(count)
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(x, t)
        x = scheduler.step(given * 0.1, t, x, return_dict=False)[0]


def stepping(repeats: int) -> dict[str, float]:
    """Seconds of 50 steps: ``set_timesteps``, the scaling, 0.1 x for a network, and the step."""
    x = torch.randn(SHAPE)
    names = ("DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
    theirs = {name: getattr(diffusers, name).from_config(LIKE.config) for name in names}
    ours = {f"Scheduler({name!r})": sk.interop.diffusers.Scheduler(name, like=LIKE) for name in SOLVERS}
    return best_of({name: partial(loop, one, x, STEPS) for name, one in {**theirs, **ours}.items()}, repeats)


def table(title: str, best: dict[str, float], base: str) -> None:
    print(f"\n{title}\n{'':36}{'µs':>10}{'− base':>10}{'× base':>10}")
    for name, seconds in best.items():
        each = 1e6 / STEPS
        print(f"{name:36}{seconds * each:10.1f}{(seconds - best[base]) * each:10.1f}{seconds / best[base]:10.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table(f"One call, x {list(SHAPE)}", wrapping(options.repeats), "bare network")
    best = stepping(options.repeats)
    plainest = min(("DDIMScheduler", "EulerDiscreteScheduler"), key=best.__getitem__)
    table(f"One step of {STEPS}, x {list(SHAPE)}; base: diffusers' plainest", best, plainest)


if __name__ == "__main__":
    main()
