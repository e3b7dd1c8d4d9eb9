"""Guidance measured: its scale on the digits network, and the law that it is taken to sample on a known mixture.

    python benchmarks/guidance.py digits    # some three minutes of one core; docs/images/guidance-digits.png
    python benchmarks/guidance.py mixture   # some two minutes of one core; docs/images/guidance-tilted.png
    python benchmarks/guidance.py limits    # a minute of one core
    python benchmarks/guidance.py overhead  # some seconds

Each prints a table; ``--images DIR`` writes the picture elsewhere.

``digits``: 596 samples with the labels of the held-out digits, ``dpmpp-2m``, 15 guided evaluations, three seeds. The
Fréchet distance is to the held-out digits, in the package's features; beside it, how many samples the package's
classifier gives the label that was asked for. The floor is the distance of training digits with the same labels.

``mixture``: modes at −1.5, 0 and 2 of width 0.4 and weights 0.5, 0.3, 0.2; the class c is the last two. The share of
x > 1 under p(x) p(c | x)^w by quadrature, under guidance by the ODE (``unipc-3``) and the SDE (``dpmpp-2m-sde``) in 200
evaluations, and under ``tilted``, eight populations of 8,000. Errors are standard errors over the populations.

``overhead``: what a call of a wrapper costs beside the calls of its network, which returns x; microseconds, the least
of ten repeats that take turns.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from statistics import fmean, stdev
from timeit import timeit

import matplotlib.pyplot as plt
import torch
from torch import Tensor

import sdekit as sk
from sdekit import guidance
from sdekit.data import digits
from sdekit.guidance import Autoguided, ClassifierFree, Interval, Projected
from sdekit.metrics import frechet_distance
from sdekit.nn import digits_features, digits_model, load_network
from sdekit.sampling import Model
from sdekit.targets import GaussianMixture

SCALES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
NULL = {"label": 10}
METHODS: dict[str, Callable[[sk.ScoreModel, float], Model]] = {
    "classifier-free": lambda model, w: ClassifierFree(model, w, null=NULL),
    "… in 0.28 < σ/α ≤ 2.9": lambda model, w: Interval(ClassifierFree(model, w, null=NULL), 0.28, 2.9),
    "… projected (APG)": lambda model, w: ClassifierFree(model, w, null=NULL, rule=Projected()),
}
Line = list[tuple[float, float, float, float, float]]  # scale, Fréchet distance, its error, accuracy, its error


def classifier() -> torch.nn.Module:
    with resources.as_file(resources.files("sdekit") / "weights" / "digits-features.safetensors") as path:
        return load_network(path)[0]


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    return fmean(values), stdev(values) / math.sqrt(len(values))


def of_labels(images: Tensor, own: Tensor, wanted: Tensor, seed: int) -> Tensor:
    """As many images of each label as are wanted, none twice."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    counts = wanted.bincount(minlength=10).tolist()
    return torch.cat([images[order[own[order] == label][:count]] for label, count in enumerate(counts)])


@torch.no_grad()
def measure_digits(seeds: int) -> tuple[dict[str, Line], float, float]:
    data, features, classify = digits(), digits_features(), classifier()
    real, labels = data.held_out, data.held_out_labels
    lines: dict[str, Line] = {}
    for name, method in METHODS.items():
        for w in SCALES:
            distances, rights = list[float](), list[float]()
            for seed in range(seeds):
                guided = method(digits_model(), w)
                x = sk.sample(guided, real.shape, solver="dpmpp-2m", nfe=15, seed=seed, label=labels).x
                distances.append(frechet_distance(features(x), features(real)).item())
                rights.append((classify(x).argmax(1) == labels).double().mean().item())
            lines.setdefault(name, []).append((w, *spread(distances), *spread(rights)))
            print(name, "scale {:g}: Fréchet {:.1f} ± {:.1f}, accuracy {:.4f} ± {:.4f}".format(*lines[name][-1]))
    alike = [of_labels(data.train, data.train_labels, labels, seed) for seed in range(20)]
    floor = fmean(frechet_distance(features(x), features(real)).item() for x in alike)
    return lines, floor, (classify(real).argmax(1) == labels).double().mean().item()


def draw_digits(lines: dict[str, Line], floor: float, real: float, path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, line in lines.items():
        w, distance, error, right, spread_of_right = zip(*line)
        axes[0].errorbar(w, distance, error, marker="o", markersize=4, capsize=2, label=name)
        axes[1].errorbar(w, right, spread_of_right, marker="o", markersize=4, capsize=2, label=name)
    axes[0].axhline(floor, linestyle=":", color="grey")
    axes[1].axhline(real, linestyle=":", color="grey")
    axes[0].set(xlabel="guidance scale w", ylabel="Fréchet distance to the data", yscale="log")
    axes[1].set(xlabel="guidance scale w", ylabel="share with the label asked for")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=120)


MEANS, WEIGHTS, WIDTH = (-1.5, 0.0, 2.0), (0.5, 0.3, 0.2), 0.4
CUT = 1.0  # between the two modes of the class
PARTICLES, POPULATIONS = 8000, 8


def mixtures() -> tuple[GaussianMixture, GaussianMixture]:
    """All three modes, and those of the class."""
    means, weights = torch.tensor(MEANS).double()[:, None], torch.tensor(WEIGHTS).double()
    return GaussianMixture(means, WIDTH, weights), GaussianMixture(means[1:], WIDTH, weights[1:])


def exact(w: float) -> tuple[Tensor, Tensor, float]:
    """A grid, the density of p^{1−w} q^w on it, and log ∫ p^{1−w} q^w."""
    x = torch.linspace(-8, 8, 40001, dtype=torch.float64)
    p, q = mixtures()
    log_density = (1 - w) * p.log_prob(x[:, None]) + w * q.log_prob(x[:, None])
    width = float(x[1] - x[0])
    log_evidence = log_density.logsumexp(0).item() + math.log(width)
    return x, (log_density - log_evidence).exp(), log_evidence


def measure_mixture(w: float) -> dict[str, Tensor]:
    process = sk.VP()
    p, q = (target.model(process) for target in mixtures())
    guided = Autoguided(q, p, w)
    x, density, log_evidence = exact(w)
    share = (density[x > CUT].sum() * (x[1] - x[0])).item()
    samples = {
        solver: sk.sample(guided, (PARTICLES, 1), solver=solver, grid="logsnr", nfe=200, seed=0, dtype=torch.float64).x
        for solver in ("unipc-3", "dpmpp-2m-sde")
    }
    runs = [guidance.tilted(guided, (PARTICLES, 1), seed=i, dtype=torch.float64) for i in range(POPULATIONS)]
    shares = [(run.weights * (run.x[:, 0] > CUT)).mean().item() for run in runs]
    cells = [f"{w:g}", f"{share:.3f}", *(f"{(x > CUT).double().mean().item():.3f}" for x in samples.values())]
    cells += ["{:.3f} ± {:.3f}".format(*spread(shares)), f"{100 * (fmean(shares) / share - 1):+.1f}%"]
    cells += [f"{log_evidence:.3f}", "{:.3f} ± {:.3f}".format(*spread([run.log_evidence for run in runs]))]
    cells += [f"{min(run.ess.min().item() for run in runs):.2f}", f"{fmean(run.ancestors for run in runs):.2f}"]
    print("| " + " | ".join(cells) + " |", flush=True)
    return {**samples, "tilted": torch.cat([run.even() for run in runs])}


def measure_limits() -> None:
    """What large scales need in steps (populations of 4,000), and what noise does for the spread (8,000, 100 steps)."""
    p, q = (target.model(sk.VP()) for target in mixtures())
    cells = [(w, 4000, steps, 2.0, 3) for w in (5.0, 8.0) for steps in (200, 400, 800)]
    cells += [(3.0, 8000, 100, noise_level, 6) for noise_level in (1.0, 1.5, 2.0)]
    print("| w | steps | noise level | exact | tilted | spread of a population | least ESS |")
    print("|---|---|---|---|---|---|---|")
    for w, n, steps, noise_level, populations in cells:
        x, density, _ = exact(w)
        pair, double = Autoguided(q, p, w), torch.float64
        runs = [
            guidance.tilted(pair, (n, 1), steps=steps, noise_level=noise_level, seed=seed, dtype=double)
            for seed in range(populations)
        ]
        shares = [(run.weights * (run.x[:, 0] > CUT)).mean().item() for run in runs]
        least = [run.ess.min().item() for run in runs]
        print(
            f"| {w:g} | {steps} | {noise_level:g} | {(density[x > CUT].sum() * (x[1] - x[0])).item():.3f} "
            + "| {:.3f} ± {:.3f} ".format(*spread(shares))
            + f"| {stdev(shares):.3f} | {min(least):.2f} to {max(least):.2f} |",
            flush=True,
        )


def draw_mixture(w: float, samples: dict[str, Tensor], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    x, density, _ = exact(w)
    _, conditional, _ = exact(1.0)
    labels = {"unipc-3": "guidance, ODE", "dpmpp-2m-sde": "guidance, SDE", "tilted": "tilted"}
    for name, label in labels.items():
        axis.hist(samples[name][:, 0].numpy(), bins=120, range=(-2, 4), density=True, histtype="step", label=label)
    axis.plot(x, density, color="black", label=f"exact p(x) p(c | x)^{w:g}")
    axis.plot(x, conditional, color="grey", linestyle=":", label="p(x | c)")
    axis.set(xlim=(-2, 4), xlabel="x", ylabel="density")
    axis.legend(frameon=False)
    figure.savefig(path, dpi=120)


def measure_overhead(calls: int = 2000, repeats: int = 10) -> None:
    x, label = torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64)
    model = sk.ScoreModel(lambda x, t, label: x, sk.VP())
    free = ClassifierFree(model, 2.0, null=NULL)
    wrapped: dict[str, tuple[Model, int]] = {
        "the network alone": (model, 1),
        "classifier-free, one call of twice the batch": (free, 1),
        "classifier-free, two calls": (ClassifierFree(model, 2.0, null=NULL, doubled=False), 2),
        "autoguidance": (Autoguided(model, model, 2.0), 2),
        "outside an interval": (Interval(free, 100.0, 200.0), 1),
    }
    best = dict.fromkeys(wrapped, math.inf)
    for name in [*wrapped] * repeats:
        call = partial(wrapped[name][0].predict, "eps", x, 0.5, label=label)
        seconds = timeit(call, number=calls)
        best[name] = min(best[name], seconds / calls * 1e6)
    one = best["the network alone"]
    print("| model | µs a call | beside its network's calls |\n|---|---|---|")
    for name, (_, count) in wrapped.items():
        print(f"| {name} | {best[name]:.1f} | {best[name] - count * one:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("digits", "mixture", "limits", "overhead"))
    parser.add_argument("--images", type=Path, default=Path(__file__).parents[1] / "docs" / "images")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "digits":
        lines, floor, real = measure_digits(options.seeds)
        print(f"floor {floor:.1f}, accuracy on the held-out digits {real:.4f}")
        draw_digits(lines, floor, real, options.images / "guidance-digits.png")
    elif options.what == "limits":
        measure_limits()
    elif options.what == "overhead":
        measure_overhead()
    else:
        print("| w | exact | ODE | SDE | tilted | off | log evidence | estimated | least ESS | ancestors |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        samples = {w: measure_mixture(w) for w in (1.5, 2.0, 3.0)}
        draw_mixture(3.0, samples[3.0], options.images / "guidance-tilted.png")


if __name__ == "__main__":
    main()
