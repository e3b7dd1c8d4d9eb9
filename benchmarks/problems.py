"""The bench on which the default sampler is chosen: problems with fixed starts and the accurate end of the flow.

    python benchmarks/problems.py             # makes what is missing and prints the table of problems

A problem is a model, an event shape, 256 starts (sample i of seed 0, as ``sample`` draws them) and its truth:
    exact       the probability-flow ODE's end at σ → 0. In x/α the flow depends on σ/α alone, so it is solved under
                ``VE`` from the process's largest σ/α down to 1e-5 and denoised there, whatever the process
    network     the ODE's x at t_min, denoised by one evaluation: below t_min a network has seen nothing
Each is solved in twice as many steps as well, and the difference of the two, per sample, is kept beside the finer as
its error. States are float64; networks compute in float32. All is kept in ``out/problems``, by what decides it.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path

import problem_data as data
import torch
from problem_networks import network
from torch import Tensor

import sdekit as sk
from sdekit.files import read_tensors, write_tensors
from sdekit.model import ScoreModel
from sdekit.nn import digits_model
from sdekit.process import Process
from sdekit.targets import Target

FOLDER = Path("out/problems")
STARTS, HALF = 256, 128
END = 1e-5  # σ/α where the flow of an exact target is taken to have ended
ENDPOINT = ("unipc-4", "vp-time(power=4, blend=0.4)")


@dataclass(frozen=True)
class Problem:
    """One problem of the bench.

    Attributes:
        name: ``data/process``, with ``net`` where a network stands for the data.
        about: one line.
        process: the process that the model is of.
        event: shape of one sample.
        make: the model; a network's weights are read, or trained, at the first call.
        target: the exact target; None for a network.
        classes: labels 0 … classes − 1 are given in turn to the starts; 0 for none.
        steps: evaluations of the finer endpoint.
        count: starts that ``auto.py`` takes: half of them where an evaluation is dear.
    """

    name: str
    about: str
    process: Process
    event: tuple[int, ...]
    make: Callable[[], ScoreModel]
    target: Callable[[], Target] | None = None
    classes: int = 0
    steps: int = 600
    count: int = STARTS

    @cached_property
    def model(self) -> ScoreModel:
        return self.make()

    def starts(self, n: int = STARTS, seed: int = 0) -> Tensor:
        """x at t_max [n, *event], float64."""
        return data.normals(seed, n, *self.event) * self.process.prior_std

    def conditions(self, n: int = STARTS) -> dict[str, Tensor]:
        return {"label": torch.arange(n) % self.classes} if self.classes else {}

    @cached_property
    def key(self) -> str:
        """What decides the endpoint: the flow at three noise levels, the starts, how it is solved."""
        digest = hashlib.sha256(repr((self.process, self.steps, ENDPOINT, END, STARTS)).encode())
        x = self.starts(8)
        for part in (0.2, 0.5, 0.8):
            low, high = (self.process.half_log_snr(t) for t in (self.process.t_max, self.process.t_min))
            knot = self.process.knot_at(low + part * (high - low))
            with torch.no_grad():
                x0 = self.model.x0(x / self.process.prior_std * (knot.alpha + knot.sigma), knot.t, **self.conditions(8))
            digest.update(x0.float().numpy().round(3).tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def endpoint(self) -> tuple[Tensor, Tensor]:
        """The truth [256, *event] and, for each sample, the RMS difference of a solve in half as many steps."""
        path = FOLDER / "endpoints" / f"{self.name.replace('/', '-')}-{self.key}.safetensors"
        if not path.exists():
            began = time.process_time()
            finer, fine = self._solve(self.steps), self._solve(self.steps // 2)
            seconds = f"{time.process_time() - began:.0f}"
            write_tensors(path, {"x": finer, "gap": rms(finer - fine)}, {"problem": self.name, "seconds": seconds})
        found = read_tensors(path)[0]
        return found["x"], found["gap"]

    def _solve(self, nfe: int) -> Tensor:
        start, solver, grid = self.starts(), *ENDPOINT
        run = partial(sk.sample, shape=start.shape, solver=solver, nfe=nfe, grid=grid, final="denoise")
        if self.target is None:
            return run(self.model, start=start, **self.conditions()).x
        first = self.process.knot(self.process.t_max)
        whole = sk.VE(sigma_min=END, sigma_max=first.sigma / first.alpha)
        return run(self.target().model(whole), start=start / first.alpha).x


def rms(x: Tensor) -> Tensor:
    """√(mean over the event of x²) [n]: ``quality.py``'s error, sample by sample."""
    return x.square().flatten(1).mean(1).sqrt()


def _exact(name: str, about: str, process: Process, target: Callable[[], Target], count: int = STARTS) -> Problem:
    kept = cache(target)
    return Problem(name, about, process, tuple(kept().event), lambda: kept().model(process), kept, count=count)


def _points(points: Callable[[], Tensor], bandwidth: float) -> Callable[[], Target]:
    return lambda: data.Points(points(), bandwidth)


def _photographs(count: int, size: int, grey: bool) -> Callable[[], Tensor]:
    return lambda: data.patches(data.photographs(grey), count, size, seed=21)


def _colours() -> Tensor:
    return data.patches(data.colour_photographs(), 500, 32, seed=22)


PROBLEM = {
    "circle/vp": partial(
        _exact, about="8 modes on a circle in 2-D, std 0.1", process=sk.VP(), target=data.circle
    ),
    "lattice/ve": partial(
        _exact, about="100 narrow modes in 2-D, std 0.02", process=sk.VE(), target=data.lattice
    ),
    "unequal/cosine": partial(
        _exact, about="3 modes of weights 0.9, 0.09, 0.01 and stds 0.3, 0.15, 0.05 in 16-D",
        process=sk.CosineVP(), target=data.unequal,
    ),
    "ellipsoids/table": partial(
        _exact, about="6 Gaussians in 8-D with stds from 0.02 to 1 in turned axes", process=sk.DiscreteVP(),
        target=data.ellipsoids,
    ),
    "circle/flow": partial(
        _exact, about="8 modes on a circle in 2-D, std 0.1", process=sk.Flow(), target=data.circle
    ),
    "overlapping/flow": partial(
        _exact, about="10 wide modes in 32-D, std 0.7", process=sk.Flow(), target=data.overlapping
    ),
    "overlapping/vp": partial(
        _exact, about="10 wide modes in 32-D, std 0.7", process=sk.VP(), target=data.overlapping
    ),
    "roll/vp": partial(
        _exact, about="swiss roll of 2,000 points in 64-D, bandwidth 0.02", process=sk.VP(), target=data.rolled
    ),
    "curve/flow": partial(
        _exact, about="closed curve of 1,000 points in 24-D, bandwidth 0.03", process=sk.Flow(),
        target=data.closed_curve,
    ),
    "cancer/flow": partial(
        _exact, about="569 rows × 30 standardised columns of breast_cancer, bandwidth 0.2", process=sk.Flow(),
        target=partial(data.table, "breast_cancer", 0.2),
    ),
    "cancer/vp": partial(
        _exact, about="569 rows × 30 standardised columns of breast_cancer, bandwidth 0.2", process=sk.VP(),
        target=partial(data.table, "breast_cancer", 0.2),
    ),
    "wine/cosine": partial(
        _exact, about="178 rows × 13 standardised columns of wine, bandwidth 0.1", process=sk.CosineVP(),
        target=partial(data.table, "wine", 0.1),
    ),
    "digits/vp": partial(
        _exact, about="1,797 digits 8×8, bandwidth 0.1", process=sk.VP(), target=_points(data.all_digits, 0.1)
    ),
    "digits/ve": partial(
        _exact, about="1,797 digits 8×8, bandwidth 0.1", process=sk.VE(), target=_points(data.all_digits, 0.1)
    ),
    "digits/flow": partial(
        _exact, about="1,797 digits 8×8, bandwidth 0.1", process=sk.Flow(), target=_points(data.all_digits, 0.1)
    ),
    "grey/vp": partial(
        _exact, about="2,000 grey patches 28×28 of two photographs, bandwidth 0.1", process=sk.VP(),
        target=_points(_photographs(2000, 28, True), 0.1), count=HALF,
    ),
    "colour/table": partial(
        _exact, about="2,000 colour patches 3×16×16 of two photographs, bandwidth 0.1", process=sk.DiscreteVP(),
        target=_points(_photographs(2000, 16, False), 0.1), count=HALF,
    ),
    "faces/cosine": partial(
        _exact, about="200 grey pictures 25×25, half of them faces, bandwidth 0.1", process=sk.CosineVP(),
        target=_points(data.faces, 0.1),
    ),
    "colour32/ve": partial(
        _exact, about="500 colour patches 3×32×32 of three other photographs, bandwidth 0.05", process=sk.VE(),
        target=_points(_colours, 0.05), count=HALF,
    ),
    "digits-net/vp": partial(
        Problem, about="the shipped U-Net of the digits, no label, v", process=sk.VP(), event=(1, 8, 8),
        make=digits_model, steps=300, count=HALF,
    ),
    "digits-net-labels/vp": partial(
        Problem, about="the shipped U-Net of the digits, labels in turn, v", process=sk.VP(), event=(1, 8, 8),
        make=digits_model, classes=10, steps=300, count=HALF,
    ),
    "digits-net/ve": partial(
        Problem, about="a small U-Net of the digits, ε", process=sk.VE(), event=(1, 8, 8),
        make=partial(network, "digits"), steps=600, count=HALF,
    ),
    "patches-net/flow": partial(
        Problem, about="a small U-Net of grey patches 16×16, flow", process=sk.Flow(), event=(1, 16, 16),
        make=partial(network, "patches"), steps=300, count=HALF,
    ),
    "faces-net/cosine": partial(
        Problem, about="a small U-Net of faces 12×12, v", process=sk.CosineVP(), event=(1, 12, 12),
        make=partial(network, "faces"), steps=300, count=HALF,
    ),
    "roll-net/table": partial(
        Problem, about="an MLP of the swiss roll in 3-D, ε, told a DDPM table's index", process=sk.DiscreteVP(),
        event=(3,), make=partial(network, "roll"), steps=2400,
    ),
}  # fmt: skip


@cache
def problem(name: str) -> Problem:
    """The problem of that name. Raises ImportError where its data's package is not installed."""
    return PROBLEM[name](name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=list(PROBLEM))
    print(f"{'problem':22}{'event':>12}{'s/eval':>9}{'s':>6}{'median error':>14}{'90%':>10}{'largest':>10}  about")
    for name in parser.parse_args().names:
        one = problem(name)
        began = time.process_time()
        _, gap = one.endpoint
        took = time.process_time() - began
        began = time.process_time()
        with torch.no_grad():
            one.model.x0(one.starts(64), one.process.t_max, **one.conditions(64))
        cost = time.process_time() - began
        event = "×".join(map(str, one.event))
        errors = f"{gap.median():14.1e}{gap.quantile(0.9):10.1e}{gap.max():10.1e}"
        print(f"{name:22}{event:>12}{cost:9.4f}{took:6.0f}{errors}  {one.about}", flush=True)


if __name__ == "__main__":
    main()
