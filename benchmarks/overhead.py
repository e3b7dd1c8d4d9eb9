"""What the loop costs beside the network: sdekit and the peers that are installed, in one run.

    python benchmarks/overhead.py            # every library that is installed
    python benchmarks/overhead.py --repeats 50

Four tables. The first uses a trivial ε network of a DDPM's table (0.1 x, state 16×3×8×8, one
thread), so that what is left is each library's own host cost; each row is the best of the repeats, taken in turn with
the others so that a busy machine slows all alike. k-diffusion is measured with its own wrapper of such a network, and
with a bare function in place of it, which leaves the time map and the input scaling to the user.
The second is a draw of noise beside ``torch.randn``, as a run makes it: the setting up shared by 50 draws.
The third is what reading the arguments adds to a call of ``sample``, however many steps it has.
The last uses the digits U-Net, where the bound is NFE × the bare network. Peers: pip install -e '.[bench]'.
"""

from __future__ import annotations

import argparse
import inspect
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import get_type_hints

import torch
from torch import Tensor

import sdekit as sk
from sdekit.door import door
from sdekit.interop.peers import k_diffusion_sampling

STEPS = 50
SHAPE = (16, 3, 8, 8)


def trivial(x: Tensor, t: Tensor, **_: object) -> Tensor:
    return x * 0.1


def best_of(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Least seconds of each run, the runs taken in turn, each after one that is not timed."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(repeats):
        for name, run in runs.items():
            run()
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def bare(net: Callable[..., Tensor], x: Tensor, t: Tensor, calls: int) -> Callable[[], object]:
    @torch.no_grad()
    def run() -> None:
        for _ in range(calls):
            net(x, t)

    return run


def ours(solver: str, predicts: str) -> Callable[[], object]:
    model = sk.ScoreModel(trivial, sk.DiscreteVP(), predicts=predicts, time="index")
    start = torch.randn(SHAPE)
    return lambda: sk.sample(model, SHAPE, solver=solver, steps=STEPS, start=start, seed=0, final="none")


def k_diffusion() -> dict[str, Callable[[], object]]:
    if find_spec("k_diffusion") is None:
        return {}
    sampling = k_diffusion_sampling()  # which makes the package importable without its evaluation code
    from k_diffusion import external

    alphas_bar = (1 - torch.tensor(sk.DiscreteVP().betas)).cumprod(0)
    denoiser = external.DiscreteEpsDDPMDenoiser(trivial, alphas_bar, quantize=False)
    sigmas, x = denoiser.get_sigmas(STEPS), torch.randn(SHAPE) * 50
    names = {"sample_euler": "Euler", "sample_dpmpp_2m": "DPM++ 2M", "sample_euler_ancestral": "Euler ancestral"}
    models = {"": denoiser, ", bare function": trivial}

    def run(name: str, model: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: getattr(sampling, name)(model, x, sigmas, disable=True)

    return {
        f"k-diffusion {label}{suffix}": run(name, model)
        for suffix, model in models.items()
        for name, label in names.items()
    }


def diffusers() -> dict[str, Callable[[], object]]:
    if find_spec("diffusers") is None:
        return {}
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

    def run(kind: type, x: Tensor) -> None:
        scheduler = kind(num_train_timesteps=1000)
        scheduler.set_timesteps(STEPS)
        with torch.no_grad():
            for t in scheduler.timesteps:
                x = scheduler.step(trivial(x, t), t, x).prev_sample

    kinds = {"DDIM": DDIMScheduler, "DPM++ 2M": DPMSolverMultistepScheduler, "UniPC": UniPCMultistepScheduler}
    x = torch.randn(SHAPE)
    return {f"diffusers {label}": partial(run, kind, x) for label, kind in kinds.items()}


def azula() -> dict[str, Callable[[], object]]:
    if find_spec("azula") is None:
        return {}
    from azula.denoise import Denoiser, DiracPosterior
    from azula.noise import VPSchedule
    from azula.sample import DDIMSampler

    class Trivial(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = VPSchedule()

        def forward(self, x_t: Tensor, t: Tensor, **_: object) -> DiracPosterior:
            return DiracPosterior(mean=trivial(x_t, t))

    sampler, x = DDIMSampler(Trivial(), steps=STEPS, silent=True), torch.randn(SHAPE)
    return {"azula DDIM": torch.no_grad()(lambda: sampler(x))}


def table(title: str, unit: str, best: dict[str, float], calls: int) -> None:
    """Each beside the first."""
    first, base = next(iter(best.items()))
    print(f"\n{title}\n{'':34}{unit:>14}{'× ' + first.split()[0]:>14}")
    for name, seconds in best.items():
        print(f"{name:34}{seconds / calls * 1e6:14.1f}{seconds / base:14.2f}")


def host_cost(repeats: int) -> dict[str, float]:
    torch.set_num_threads(1)
    runs = {"bare network": bare(trivial, torch.randn(SHAPE), torch.ones(SHAPE[0]), STEPS)}
    for solver, predicts in (("ddim", "eps"), ("dpmpp-2m", "x0"), ("unipc-2", "x0"), ("ddpm", "eps")):
        runs[f"sdekit {solver}"] = ours(solver, predicts)
    for peer in (k_diffusion, diffusers, azula):
        try:
            runs |= peer()
        except Exception as error:  # a peer that cannot run here is a line, not the end
            print(f"{peer.__name__}: not measured ({type(error).__name__}: {error})")
    return best_of(runs, repeats)


def noise_cost(shape: tuple[int, ...], repeats: int) -> dict[str, float]:
    torch.set_num_threads(1)
    knots = [knot.half_log_snr for knot in sk.Grid.make(sk.VP(), "logsnr", STEPS).knots]
    intervals, samples = list(zip(knots, knots[1:])), torch.arange(shape[0])

    def run(source: str) -> None:
        draw = sk.noise.SOURCES[source](0, intervals, samples, shape[1:], torch.float32)
        for interval in intervals:
            draw(*interval)

    def randn() -> None:
        for _ in intervals:
            torch.randn(shape)

    return best_of(
        {"torch.randn": randn, **{f"sdekit {name}": partial(run, name) for name in sk.noise.SOURCES}}, repeats
    )


def door_cost(repeats: int, calls: int = 1000) -> dict[str, float]:
    """A function of ``sample``'s arguments that does nothing, without and with the door, for few and all arguments."""
    inner = inspect.unwrap(sk.sample)
    hints, model = get_type_hints(inner, include_extras=True), sk.ScoreModel(trivial, sk.VP())
    few = {"solver": "ddim", "nfe": 10, "seed": 0}
    every = few | {
        "steps": None, "grid": "auto", "noise": "independent", "corrector": None, "start": None, "final": "auto",
        "keep": "last", "callback": None, "progress": False, "batch_size": 4, "first": 0, "dtype": torch.float32,
        "device": "cpu",
    }  # fmt: skip

    def nothing(*_: object, **__: object) -> None:
        return None

    nothing.__signature__, nothing.__annotations__ = inspect.signature(inner), hints  # pyright: ignore
    behind = door(nothing)

    def run(function: Callable[..., object], arguments: dict[str, object]) -> None:
        for _ in range(calls):
            function(model, (4, 2), **arguments)

    return best_of(
        {
            f"{name}, {many}": partial(run, function, arguments)
            for many, arguments in (("few arguments", few), ("all arguments", every))
            for name, function in (("no door", nothing), ("door", behind))
        },
        repeats,
    )


def digits_cost(repeats: int, threads: int) -> dict[str, float]:
    from sdekit.nn import digits_model

    torch.set_num_threads(threads)
    model, shape, nfe = digits_model(), (64, 1, 8, 8), 20
    start = torch.randn(shape)
    runs = {"bare network": bare(model.net, start, torch.ones(64), nfe)}
    for solver in ("ddim", "dpmpp-2m", "unipc-2", "ddpm"):
        runs[f"sdekit {solver}"] = partial(sk.sample, model, shape, solver=solver, nfe=nfe, start=start, seed=0)
    return best_of(runs, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2, help="for the digits network")
    options = parser.parse_args()
    best = host_cost(options.repeats)
    table("Trivial network, 16×3×8×8, 50 steps, one thread", "µs per step", best, STEPS)
    for name in ("k-diffusion Euler", "k-diffusion Euler, bare function"):
        if name in best:
            print(f"{name} takes {best[name] / best['sdekit ddim']:.1f} times sdekit's ddim (the same update) per step")
    for shape in ((16, 3, 8, 8), (64, 3, 32, 32), (64, 3, 64, 64)):
        cost = noise_cost(shape, max(2, options.repeats // 4))
        table(f"Noise, {'×'.join(map(str, shape))}, one thread", "µs per draw", cost, STEPS)
    table("Reading the arguments of sample", "µs per call", door_cost(max(5, options.repeats // 4)), 1000)
    table("Digits U-Net, 64 samples, NFE 20", "µs per NFE", digits_cost(options.repeats, options.threads), 20)


if __name__ == "__main__":
    main()
