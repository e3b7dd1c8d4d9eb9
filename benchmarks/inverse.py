"""Methods for inverse problems against exact posteriors: the tables of docs/inverse.md.

    python benchmarks/inverse.py                   # all: some eight minutes of one core
    python benchmarks/inverse.py plane sixteen --methods dps,mmps,tds
    python benchmarks/inverse.py --picture docs/images/inverse.png

Each row is a method with its own defaults and solver and about as many network evaluations as the others. In the first
tables the prior is a mixture whose posterior is known: over ``PROBLEMS`` measurements of draws from the prior, K
samples of each, how often the truth lies in the central 50% and 90% credible intervals, element by element (± two
standard errors over the measurements, whose elements are not independent); and of one measurement the sliced
Wasserstein distance to the exact posterior and the error of its mode weights, beside those of as many exact draws. With
the networks the posterior is not known: PSNR and SSIM of the mean of K samples, over ``PICTURES`` held-out images.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

import sdekit as sk
from sdekit import inverse
from sdekit.inverse.registry import Posterior
from sdekit.metrics import mode_weights_error, sliced_wasserstein
from sdekit.targets import Empirical, GaussianMixture

PROBLEMS, K, ONE, PICTURES = 200, 19, 1900, 40
PARTICLES = 152  # of each measurement; K of them are kept
METHODS = (
    "replacement", "repaint", "mcg", "dps", "pigdm", "ddrm", "ddnm", "tmpd", "mmps", "mmps(iterations=5)", "diffpir",
    "daps", "gibbs", "tds",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A prior with what is measured of it."""

    about: str
    prior: GaussianMixture
    operator: inverse.Operator
    noise: float
    nfe: int = 60
    problems: int = PROBLEMS


def plane() -> Case:
    angles = torch.arange(8) * (math.pi / 4)
    law = GaussianMixture(torch.stack([angles.cos(), angles.sin()], dim=1), 0.1)
    seen = inverse.Mask(torch.tensor([True, False]))
    return Case("8 modes on a circle, x measured, σ_y = 0.1", law, seen, 0.1)


def sixteen() -> Case:
    means = torch.randn(6, 16, generator=torch.Generator().manual_seed(1))
    law = GaussianMixture(means, 0.3, torch.tensor([0.3, 0.2, 0.2, 0.1, 0.1, 0.1]))
    return Case("6 modes in 16 dimensions, 4 random products, σ_y = 0.5", law, inverse.Projection((16,), 4), 0.5)


def digits() -> Case:
    law = Empirical(sk.data.digits().train[::4].float(), 0.15)
    seen = inverse.operator("inpaint", (1, 8, 8))
    return Case("a mixture of 300 digits, upper half measured, σ_y = 0.3", law, seen, 0.3, problems=60)


CASES: dict[str, Callable[[], Case]] = {"plane": plane, "sixteen": sixteen, "digits": digits}
TASKS = ("inpaint", "superres", "deblur", "compressed")


def run(case: Case, model: sk.ScoreModel, method: str, y: Tensor, each: int) -> Posterior:
    """``each`` samples of every measurement in y [problems, *measured]; particles in populations of their own."""
    problems = len(y)
    seen = inverse.Measurement(case.operator, y[0], inverse.GaussianNoise(case.noise))
    particles = inverse.method(method.partition("(")[0]).name == "tds"
    n = (max(PARTICLES, each) if particles else each) * problems
    own = y if particles else y.repeat_interleave(each, 0)
    populations = {"populations": problems} if particles else {}
    return inverse.sample_posterior(
        model, seen, (n, *case.prior.event), method=method, nfe=case.nfe, seed=3, measured=own, **populations
    )  # fmt: skip


def kept(found: Posterior, problems: int, each: int) -> Tensor:
    """[problems, each, D]: of particles, even ones in turn."""
    x = found.even().reshape(problems, -1, found.x[0].numel())
    return x[:, :: x.shape[1] // each][:, :each]


def covered(x: Tensor, truth: Tensor, level: float) -> str:
    rows = torch.tensor([inverse.coverage(a[None], b[None], level) for a, b in zip(x, truth)])
    return f"{100 * rows.mean():.0f} ± {200 * rows.std() / len(rows) ** 0.5:.0f}"


def exact(case: Case, methods: Sequence[str]) -> None:
    model = case.prior.model(sk.VP())
    truth = case.prior.sample(case.problems, seed=11)
    noise = inverse.GaussianNoise(case.noise)
    y = inverse.draw(truth, case.operator, noise, seed=5)
    law = inverse.posterior(case.prior, inverse.Measurement(case.operator, y[0], noise))
    reference, floor = law.sample(4000, seed=1), law.sample(ONE, seed=2)
    print(f"\n{case.about}; {case.problems} measurements, {case.nfe} evaluations\n")
    print("| | in 50% | in 90% | sliced W | modes | NFE | gradients | s |\n|---|---|---|---|---|---|---|---|")
    print(
        f"| exact draws | 50 | 90 | {sliced_wasserstein(floor, reference).item():.3f} |"
        f" {mode_weights_error(floor, law).item():.3f} | | | |"
    )
    for name in methods:
        began = time.process_time()
        try:
            found = run(case, model, name, y, K)
            one = run(case, model, name, y[:1], ONE)
        except ValueError as error:
            print(f"| {name} | {str(error).partition(':')[2].strip()[:60]} | | | | | | |")
            continue
        x, flat = kept(found, case.problems, K), truth.flatten(1)
        even = one.even()
        finite = bool(x.isfinite().all() and even.isfinite().all())
        distance = sliced_wasserstein(even, reference).item() if finite else math.nan
        modes = mode_weights_error(even, law).item() if finite else math.nan
        shares = (covered(x, flat, 0.5), covered(x, flat, 0.9)) if finite else ("n/a", "n/a")
        print(
            f"| {name} | {shares[0]} | {shares[1]} | {distance:.3f} | {modes:.3f} | {found.nfe} | {found.gradients} |"
            f" {time.process_time() - began:.1f} |",
            flush=True,
        )


def network(methods: Sequence[str], nfe: int = 60) -> None:
    """The shipped digits network on held-out digits, the mean of 8 samples against the truth."""
    model, truth = sk.nn.digits_model(), sk.data.digits().held_out[:PICTURES].float()
    print(f"\nThe digits network, {PICTURES} held-out digits, means of 8 samples, σ_y = 0.1, {nfe} evaluations\n")
    print(f"| PSNR in dB, SSIM | {' | '.join(TASKS)} | s |\n|---|{'---|' * (len(TASKS) + 1)}")
    for name in methods:
        began, entries = time.process_time(), list[str]()
        for task in TASKS:
            case = Case("", GaussianMixture(truth[:1], 1.0), inverse.operator(task, (1, 8, 8)), 0.1, nfe)
            y = inverse.draw(truth, case.operator, inverse.GaussianNoise(0.1), seed=5)
            try:
                with torch.no_grad():
                    x = kept(run(case, model, name, y, 8), PICTURES, 8).mean(1).reshape(truth.shape)
            except ValueError:
                entries.append("n/a")
                continue
            marks = [(inverse.psnr(a, b), inverse.ssim(a, b)) for a, b in zip(x, truth)]
            likeness = [s for _, s in marks if s is not None]
            entries.append(
                f"{mean(p for p, _ in marks):.1f}, {mean(likeness):.2f}" if likeness else f"{marks[0][0]:.1f}"
            )
        print(f"| {name} | {' | '.join(entries)} | {time.process_time() - began:.0f} |", flush=True)


def picture(path: Path, methods: Sequence[str]) -> None:
    """Of one measurement of a digit: the truth, the exact posterior's draws and mean, each method's."""
    from matplotlib.figure import Figure

    from sdekit.report.inversion import show_image

    case, shown = digits(), 7
    truth = case.prior.sample(4, seed=11)[3:]
    seen = inverse.Measurement.of(truth[0], case.operator, inverse.GaussianNoise(case.noise), seed=5)
    rows = {"exact": inverse.posterior(case.prior, seen).sample(400, seed=1)}
    for name in methods:
        with torch.no_grad():
            rows[name] = run(case, case.prior.model(sk.VP()), name, seen.y[None], 200).even()
    figure = Figure(figsize=(8.2, 0.86 * (len(rows) + 1)), layout="constrained")
    panels = figure.subplots(len(rows) + 1, shown + 2)
    for panel in panels.flatten():
        panel.set_axis_off()
    show_image(panels[0, 1], truth[0], "truth")
    show_image(panels[0, 2], case.operator.adjoint(seen.y[None])[0], "measured")
    for row, (name, x) in zip(panels[1:], rows.items()):
        row[0].text(1.0, 0.5, name, ha="right", va="center", fontsize=8, transform=row[0].transAxes)
        show_image(row[1], x.mean(0), "mean" if name == "exact" else "")
        for panel, image in zip(row[2:], x[:: len(x) // shown]):
            show_image(panel, image)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(CASES)}, network; default all")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    methods = options.methods.split(",")
    if options.picture:
        picture(options.picture, methods)
        return
    for name in options.names or [*CASES, "network"]:
        if name == "network":
            network(methods)
        else:
            exact(CASES[name](), methods)


if __name__ == "__main__":
    main()
