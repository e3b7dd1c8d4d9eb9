"""What wrapping costs: each wrapper of ``sdekit.interop`` against a bare call of what it wraps, in one run.

    python benchmarks/wrappers.py
    python benchmarks/wrappers.py --repeats 100

The networks are trivial, on a state of 16×3×8×8 and one thread, so that what is left is host cost. The bare call is
what the library itself would call, with times [batch] made for it, as every caller has to. Clipping and guidance are
arithmetic, which no wrapper can leave out: their bare call is the same tensor operations written by hand, with all
coefficients ready, and the network alone stands above them. Each figure is the least CPU time of the repeats, taken in
turn with the others. The last rows are whole runs by k-diffusion's contract, per evaluation. Libraries that are not
installed are left out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import sdekit as sk
from sdekit.interop import azula, edm, flow_matching, k_diffusion, sbi, score_sde, torchcfm
from sdekit.interop.peers import k_diffusion_sampling
from sdekit.prediction import convert
from sdekit.thresholding import Static, Thresholded

SHAPE, CALLS = (16, 3, 8, 8), 100
K_DIFFUSION = find_spec("k_diffusion") is not None
Pair = tuple[Callable[[], object], Callable[[], object]]


class Trivial(nn.Module):
    def __init__(self, predict: Callable[..., Tensor]) -> None:
        super().__init__()
        self.scale, self.predict = nn.Parameter(torch.tensor(0.1)), predict

    def forward(self, *args: Any, **conditions: Any) -> Tensor:
        return self.predict(self.scale, *args, **conditions)


def first(scale: Tensor, x: Tensor, t: Tensor, *_: object, **__: object) -> Tensor:
    return x * scale


def second(scale: Tensor, t: Tensor, x: Tensor, **_: object) -> Tensor:
    return x * scale


def pair(model: sk.ScoreModel, call: Callable[[Tensor, Tensor], object], t: float = 0.5) -> Pair:
    x = torch.randn(SHAPE)
    return lambda: call(x, x.new_full(SHAPE[:1], t)), partial(model.predict, model.predicts, x, t)


def pairs() -> dict[str, Pair]:
    net = Trivial(first).requires_grad_(False)
    swapped = Trivial(second).requires_grad_(False)
    labelled = Trivial(first).requires_grad_(False)
    labelled.label_dim = 10
    rows = torch.zeros(SHAPE[0], 10)
    model = edm.wrap(labelled)
    x = torch.randn(SHAPE)
    found = {
        "ScoreModel itself": pair(sk.ScoreModel(net, sk.EDM(), "x0"), net),
        "edm": pair(edm.wrap(net), net),
        "edm with labels": (
            lambda: labelled(x, x.new_full(SHAPE[:1], 0.5), rows),
            partial(model.predict, "x0", x, 0.5, class_labels=rows),
        ),
        "score_sde VP": pair(score_sde.wrap(net, sk.VP()), net),
        "score_sde VE": pair(score_sde.wrap(net, sk.VE()), net),
        "flow_matching": pair(flow_matching.wrap(net), lambda x, t: net(x=x, t=t)),
        "torchcfm": pair(torchcfm.wrap(swapped), lambda x, t: swapped(t, x)),
    }
    if K_DIFFUSION:
        k_diffusion_sampling()
        from k_diffusion import external

        kept = (1 - torch.tensor(sk.DiscreteVP().betas)).cumprod(0)
        denoiser = external.DiscreteEpsDDPMDenoiser(net, kept, quantize=False)
        found["k_diffusion DiscreteEps"] = pair(k_diffusion.wrap(denoiser), denoiser)
    if find_spec("azula"):
        from azula.denoise import KarrasDenoiser
        from azula.noise import VPSchedule

        posterior = KarrasDenoiser(net, VPSchedule())
        found["azula Karras"] = pair(azula.wrap(posterior), lambda x, t: posterior(x, t).mean)
    found.update(of_diffusers(x))
    try:
        from sbi.neural_nets.estimators.score_estimator import VPScoreEstimator
    except ImportError:
        return found
    one = torch.zeros(1, 3)
    own = VPScoreEstimator(Trivial(lambda scale, theta, x, t: theta * scale), torch.Size(SHAPE[1:]), torch.Size([3]))
    own.requires_grad_(False)
    wrapped, ready = sbi.wrap(own, one), x.new_full(SHAPE[:1], 0.5)
    found["sbi VP"] = pair(wrapped, lambda x, t: own.score(x, one, t))
    found["sbi VP, times ready"] = (lambda: own.score(x, one, ready), partial(wrapped.predict, "score", x, 0.5))
    return found


def of_diffusers(x: Tensor) -> dict[str, Pair]:
    if not find_spec("diffusers"):
        return {}
    import diffusers

    class Called(nn.Module):
        """0.1 x, called as networks of diffusers are."""

        def __init__(self, classes: int | None) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.1), requires_grad=False)
            self.config = {"in_channels": SHAPE[1], "out_channels": SHAPE[1], "num_class_embeds": classes}

        def forward(
            self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
        ) -> tuple[Tensor]:
            return (sample * self.scale,)

    def both(net: nn.Module, like: Any, **conditions: Tensor) -> Pair:
        model: Any = sk.interop.diffusers.wrap(net, like)

        def bare() -> Tensor:
            times = x.new_full(SHAPE[:1], 499.0)
            return net(x, timestep=times, return_dict=False, **conditions)[0]

        return bare, partial(model.predict, model.predicts, x, 0.5, **conditions)

    ddpm, flow = diffusers.DDPMScheduler(clip_sample=False), diffusers.FlowMatchEulerDiscreteScheduler()
    return {
        "diffusers": both(Called(None), ddpm),
        "diffusers with labels": both(Called(10), ddpm, class_labels=torch.zeros(SHAPE[0], dtype=torch.int64)),
        "diffusers, flow matching": both(Called(None), flow),
    }


def arithmetic() -> dict[str, Pair]:
    """Wrappers that compute, against the same operations by hand on the same network and numbers."""
    net, x, label = Trivial(first).requires_grad_(False), torch.randn(SHAPE), torch.zeros(SHAPE[0], dtype=torch.int64)
    model = sk.ScoreModel(net, sk.VP(), "eps")
    c_x, c_F = convert("eps", "x0", model.process, 0.5)  # noqa: N806
    clipped, null = Thresholded(model, Static()), {"label": 10}
    guided, twice = (sk.guidance.ClassifierFree(model, 2.0, null=null, doubled=doubled) for doubled in (True, False))

    def call(x: Tensor, **conditions: Tensor) -> Tensor:
        return net(x, x.new_full((len(x),), 0.5), **conditions)

    def clip() -> Tensor:
        output = call(x)
        x0 = torch.add(x * c_x, output, alpha=c_F)
        return torch.add(output, x0.clamp(-1.0, 1.0) - x0, alpha=1 / c_F)

    def one_call() -> Tensor:
        none = x.new_full((len(x),), 10, dtype=torch.int64)
        good, bad = call(torch.cat([x, x]), label=torch.cat([label, none])).chunk(2)
        return torch.lerp(bad, good, 2.0)

    def two_calls() -> Tensor:
        none = x.new_full((len(x),), 10, dtype=torch.int64)
        return torch.lerp(call(x, label=none), call(x, label=label), 2.0)

    return {
        "the network alone": (lambda: call(x), partial(model.predict, "eps", x, 0.5)),
        "clipping of x_0": (clip, partial(clipped.predict, "eps", x, 0.5)),
        "guidance, doubled batch": (one_call, partial(guided.predict, "eps", x, 0.5, label=label)),
        "guidance, two calls": (two_calls, partial(twice.predict, "eps", x, 0.5, label=label)),
    }


def runs() -> dict[str, Callable[[], object]]:
    """Whole runs of 50 σ by k-diffusion's contract."""
    net = Trivial(first).requires_grad_(False)
    x = torch.randn(SHAPE)
    sigmas = torch.cat([torch.linspace(4, -4, 50).exp(), torch.zeros(1)])
    model = lambda x, sigma: net(x, sigma)  # noqa: E731
    found = {"door ddim": partial(k_diffusion.sampler("ddim"), model, x, sigmas, disable=True)}
    found["door dpmpp-2m"] = partial(k_diffusion.sampler("dpmpp-2m"), model, x, sigmas, disable=True)
    if K_DIFFUSION:
        sampling = k_diffusion_sampling()
        found["k-diffusion Euler"] = partial(sampling.sample_euler, model, x, sigmas, disable=True)
        found["k-diffusion 2M"] = partial(sampling.sample_dpmpp_2m, model, x, sigmas, disable=True)
    return found


def seconds(run: Callable[[], object], calls: int) -> float:
    begin = time.thread_time()
    for _ in range(calls):
        run()
    return (time.thread_time() - begin) / calls


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    libraries, computed = pairs(), arithmetic()
    measured = {**libraries, **computed}
    best = {name: [float("inf")] * 2 for name in measured}
    doors = runs()
    whole = dict.fromkeys(doors, float("inf"))
    for _ in range(options.repeats):
        for name, both in measured.items():
            best[name] = [min(old, seconds(run, CALLS)) for old, run in zip(best[name], both)]
        for name, run in doors.items():
            whole[name] = min(whole[name], seconds(run, 1) / 50)
    for title, base, rows in (("µs a call", "bare", libraries), ("with arithmetic", "by hand", computed)):
        print(f"{title:26}{base:>10}{'wrapped':>10}{'added':>10}{'ratio':>8}")
        for name in rows:
            bare, wrapped = best[name]
            each = "".join(f"{seconds * 1e6:10.1f}" for seconds in (bare, wrapped, wrapped - bare))
            print(f"{name:26}{each}{wrapped / bare:8.2f}")
        print()
    print(f"{'runs of 50 σ':26}{'µs per evaluation':>20}")
    for name, each in whole.items():
        print(f"{name:26}{each * 1e6:20.1f}")


if __name__ == "__main__":
    main()
