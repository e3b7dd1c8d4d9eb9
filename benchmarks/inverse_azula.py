"""The methods that azula has too, by its own code, on the problems of ``inverse.py`` with as many evaluations.

    pip install azula
    python benchmarks/inverse_azula.py                  # some two minutes of one core

Each of azula's runs has this package's model as its denoiser, starts from the same law, and takes as many evaluations
on azula's times, uniform in t, the last at t_min; ours are on their own grid. Both with their defaults.
Columns as in ``inverse.py``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from inverse import CASES, ONE, Case, K, covered, kept, run
from torch import Tensor

import sdekit as sk
from sdekit import inverse
from sdekit.metrics import mode_weights_error, sliced_wasserstein

denoise, guidance, sample = (import_module(f"azula.{name}") for name in ("denoise", "guidance", "sample"))
linalg = import_module("azula.linalg.covariance")
PAIRS = {"mmps": "mmps", "tmpd": "tmpd", "diffpir": "diffpir", "dps": "dps", "pigdm": "pgdm"}


def denoiser_of(model: sk.ScoreModel) -> Any:
    process = model.process

    class Schedule:
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return process.alpha(t), process.sigma(t)

    class Denoiser(denoise.Denoiser):
        schedule = Schedule()

        def forward(self, x_t: Tensor, t: Tensor, **_: object) -> Any:
            return denoise.DiracPosterior(model.predict("x0", x_t, t.item()))

    return Denoiser()


def theirs(case: Case, model: sk.ScoreModel, name: str, y: Tensor) -> Tensor:
    """A sample for each row of y, in azula's steps; the last evaluation takes off what noise is left."""
    bare, variance, process = denoiser_of(model), case.noise**2, model.process
    ends = {"start": process.t_max, "stop": process.t_min, "steps": case.nfe - 1, "silent": True}
    A = case.operator.apply  # noqa: N806
    spectrum = inverse.Spectrum.of(case.operator)
    pseudo = (spectrum.v / spectrum.s @ spectrum.u.T).float()
    wrapped: dict[str, Callable[[], Any]] = {
        "mmps": lambda: guidance.MMPSDenoiser(bare, y, A, linalg.IsotropicCovariance(torch.tensor(variance))),
        "tmpd": lambda: guidance.TMPDenoiser(bare, y, A, variance),
        "diffpir": lambda: guidance.DiffPIRDenoiser(bare, y, A, variance),
    }
    if name in wrapped:
        given = wrapped[name]()
        sampler = sample.DDIMSampler(given, eta=1.0, **ends)
    elif name == "dps":
        given, sampler = bare, guidance.DPSSampler(bare, y, A, **ends)
    else:
        given, sampler = bare, guidance.PGDMSampler(bare, y, A, lambda y: y @ pseudo.T, **ends)
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(3)
    start = process.prior_std * torch.randn(len(y), *case.prior.event, generator=generator)
    x = sampler(start)
    return given(x, torch.tensor(process.t_min)).mean.detach()


def row(name: str, x: Tensor, one: Tensor, truth: Tensor, law: Any, reference: Tensor, seconds: float) -> None:
    fine = bool(x.isfinite().all() and one.isfinite().all())
    shares = [covered(x, truth, level) if fine else "n/a" for level in (0.5, 0.9)]
    distance = sliced_wasserstein(one, reference).item() if fine else math.nan
    modes = mode_weights_error(one, law).item() if fine else math.nan
    print(f"| {name} | {shares[0]} | {shares[1]} | {distance:.3f} | {modes:.3f} | {seconds:.1f} |", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    for make in (CASES["plane"], CASES["sixteen"]):
        case = make()
        model, truth = case.prior.model(sk.VP()), case.prior.sample(case.problems, seed=11)
        noise = inverse.GaussianNoise(case.noise)
        y = inverse.draw(truth, case.operator, noise, seed=5)
        law = inverse.posterior(case.prior, inverse.Measurement(case.operator, y[0], noise))
        reference = law.sample(4000, seed=1)
        print(f"\n{case.about}, {case.nfe} evaluations\n")
        print("| | in 50% | in 90% | sliced W | modes | s |\n|---|---|---|---|---|---|")
        for name in PAIRS:
            began = time.process_time()
            many, one = run(case, model, name, y, K), run(case, model, name, y[:1], ONE)
            row(name, kept(many, case.problems, K), one.even(), truth, law, reference, time.process_time() - began)
            began = time.process_time()
            x = theirs(case, model, name, y.repeat_interleave(K, 0)).reshape(case.problems, K, -1)
            single = theirs(case, model, name, y[:1].expand(ONE, -1))
            row(f"azula {PAIRS[name]}", x, single, truth, law, reference, time.process_time() - began)


if __name__ == "__main__":
    main()
