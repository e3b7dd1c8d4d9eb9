"""What a log density costs and how wrong it is: sdekit beside the usual scipy RK45 on flat numpy.

    python benchmarks/likelihood.py                  # the table; a few minutes
    python benchmarks/likelihood.py --only accuracy  # accuracy, coverage, passes, overhead or digits

accuracy: error against the true log density, exact trace, the true p_T as prior. coverage: how often ±2 standard errors
hold the exact trace, by the number of probes, and how well the prior's part covers its error. passes: drift and
divergence against a bare forward of the digits U-Net. overhead: host cost of a solver step
with a trivial network. digits: the whole likelihood of held-out digits at one achieved error.
The baseline is written here in the manner of score_sde: the state flattened to float64 numpy, solve_ivp, one gradient
of Σ v·f for the divergence, one step size for the batch, in t. All on the CPU.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

import sdekit as sk
from sdekit.divergence import divergence, draw_probes
from sdekit.likelihood import log_prob
from sdekit.targets import Empirical, Gaussian, GaussianMixture, Target

Key = TypeVar("Key", bound=Hashable)
PROCESSES = (sk.VP(), sk.SubVP(), sk.VE())


def gaussian(size: int) -> Gaussian:
    generator = torch.Generator().manual_seed(size)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return Gaussian(torch.randn(size, generator=generator).double() / 4, root @ root.T / size + 0.01 * torch.eye(size))


def mixture(size: int) -> GaussianMixture:
    return GaussianMixture(torch.randn(8, size, generator=torch.Generator().manual_seed(size)).double(), 0.3)


def digits_mixture() -> Empirical:
    from sdekit.data import digits

    return Empirical(digits().train.double(), 0.1)


def memory() -> None:
    """The exact trace at D = 3,072 of one evaluation, whose memory is that of a whole solve."""
    model, x = (
        sk.ScoreModel(sk.nn.UNet(channels=3, widths=(32, 64)), sk.VP(), time="half-log-snr"),
        torch.zeros(4, 3, 32, 32),
    )
    with torch.no_grad():
        divergence(lambda x: model.predict("eps", x, 0.5), x, draw_probes(x, 1))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        divergence(lambda x: model.predict("eps", x, 0.5), x, None, "exact")
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"\nmemory: exact trace of a U-Net, batch 4, D = 3,072: {more / 2**20:.2f} GiB more than one probe")


def accuracy(large: bool) -> None:
    print("\naccuracy: largest error in bits/dim, exact trace\n"
          f"{'target':22}{'process':8}{'float32, default':>18}{'NFE':>6}{'float64, 1e-10':>18}{'NFE':>6}")  # fmt: skip
    targets: list[tuple[str, Target, int]] = [
        ("Gaussian, D = 2", gaussian(2), 64), ("Gaussian, D = 64", gaussian(64), 16),
        ("mixture, D = 2", mixture(2), 64), ("mixture, D = 64", mixture(64), 16),
        ("digits mixture", digits_mixture(), 4),
    ]  # fmt: skip
    if large:
        memory()
        targets = [("Gaussian, D = 3072", gaussian(3072), 1)]
    for name, target, n in targets:
        for process in PROCESSES:
            x = target.sample(n, t=process.t_min, process=process)
            cells = []
            for dtype, tolerances in ((torch.float32, {}), (torch.float64, {"rtol": 1e-10, "atol": 1e-10})):
                if tolerances and x[0].numel() > 1000:
                    continue
                y = x.to(dtype)
                found = log_prob(
                    target.model(process), y, divergence="exact", chunk_size=64, **tolerances,
                    prior=lambda z, target=target, process=process: target.log_prob(z, process.t_max, process),
                )  # fmt: skip
                error = (found.nats.double() - target.log_prob(y.double(), process.t_min, process)).abs().max().item()
                cells.append(f"{error / x[0].numel() / math.log(2):18.1e}{found.nfe.double().mean():6.0f}")
            print(f"{name:22}{type(process).__name__:8}{''.join(cells)}", flush=True)


def moons_network() -> tuple[sk.ScoreModel, Tensor]:
    """A small network trained on two moons for some seconds, and data."""
    from sklearn.datasets import make_moons

    from sdekit.training import Denoising, Optimisation, train_denoiser

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = (3, 64, 64, 2)
            layers = [torch.nn.Linear(a, b) for a, b in zip(widths, widths[1:])]
            self.layers = torch.nn.Sequential(layers[0], torch.nn.SiLU(), layers[1], torch.nn.SiLU(), layers[2])

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.layers(torch.cat([x, t[:, None]], 1))

    points = make_moons(2000, noise=0.05, random_state=0)[0]
    x = sk.data.Standardise.of(points).apply(points)
    torch.manual_seed(0)
    task = Denoising(predicts="eps", time="t")
    return train_denoiser(Net(), sk.VP(), x, task=task, plan=Optimisation(steps=3000, lr=2e-3)), x


def coverage() -> None:
    """How often the mean of n estimates lies within ±2 of its error of the exact trace, on the same knots."""
    from sdekit.data import digits
    from sdekit.likelihood.errors import spread_of
    from sdekit.nn import digits_model

    process, counts = sk.VP(), (2, 4, 8, 12, 16, 24)
    print("\ncoverage: exact trace within ±2 standard errors, % of all, by the number of probes")
    print(f"{'':22}{'':12}" + "".join(f"{count:8}" for count in counts))
    targets = [(f"{name}, D = {size}", make(size)) for size in (2, 3, 8, 64)
               for name, make in (("Gaussian", gaussian), ("mixture", mixture))]  # fmt: skip
    models = [(name, target.model(process), target.sample(60, t=process.t_min, process=process).float())
              for name, target in targets]  # fmt: skip
    trained, moons = moons_network()
    models += [
        ("moons network, D = 2", trained, moons[:60]),
        ("digits network", digits_model(), digits().held_out[:24]),
    ]
    for name, model, x in models:
        for distribution in ("rademacher", "sphere", "gaussian"):
            errors = trace_errors(model, x, 96, distribution)
            cells: list[str] = []
            for count in counts:
                groups = errors.reshape(-1, count)
                inside = groups.mean(1).abs() <= 2 * spread_of(groups).calibrated + 1e-5
                cells.append(f"{100 * inside.double().mean().item():8.1f}")
            print(f"{name:22}{distribution:12}{''.join(cells)}", flush=True)


def trace_errors(model: sk.ScoreModel, x: Tensor, count: int, distribution: str) -> Tensor:
    """One-probe log densities less that of the exact trace [len(x), count], all on 24 equal steps."""
    ways = {"method": "fixed", "steps": 24}
    exact = log_prob(model, x, divergence="exact", **ways).nats
    many = x.repeat_interleave(count, 0)  # a sample's probes depend on its number
    return log_prob(model, many, probes=1, distribution=distribution, **ways).nats.reshape(-1, count) - exact[:, None]


def priors() -> None:
    """The prior's part against the error of N(0, σ²) in place of the true p_T, the same solve, 64 samples."""
    print("\nprior: median error in nats, median of the stated over the true one, truth within ±2")
    named: list[tuple[str, Target]] = [
        ("N(8, 1)", Gaussian(torch.full((1,), 8.0).double(), torch.eye(1).double())),
        ("N(0, 1)", Gaussian(torch.zeros(1).double(), torch.eye(1).double())),
        ("mixture, D = 2", mixture(2)), ("mixture, D = 64", mixture(64)),
    ]  # fmt: skip
    for name, target in named:
        for process in (sk.VP(), sk.VE()):
            x, model = target.sample(64, t=process.t_min, process=process), target.model(process)
            ways = {"divergence": "exact", "method": "unipc-3", "steps": 30}
            true = log_prob(
                model, x, prior=lambda z, to=target, at=process: to.log_prob(z, at.t_max, at), **ways
            ).nats  # fmt: skip
            found = log_prob(model, x, **ways)
            error = (found.nats - true).abs()
            ratio = (found.stderr.prior / error).median()
            inside = 100 * (error < 2 * found.stderr.prior).double().mean()
            print(f"{name:22}{type(process).__name__:4}{error.median():10.1e}{ratio:8.2f}{inside:8.0f}%", flush=True)


def best(runs: Mapping[Key, Callable[[], object]], repeats: int) -> dict[Key, float]:
    """Seconds of CPU, the least of ``repeats`` of each; taken in turn, so that a busy machine is fair to all."""
    times = dict.fromkeys(runs, math.inf)
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.process_time()
            run()
            times[name] = min(times[name], time.process_time() - start)
    return times


def passes(repeats: int) -> None:
    from sdekit.nn import digits_model

    model, x = digits_model(), torch.randn(64, 1, 8, 8)
    t = torch.full((64,), 0.5)

    def both(mode: str, count: int) -> Callable[[], object]:
        v = draw_probes(x, count)
        return lambda: divergence(lambda x: model.predict(model.predicts, x, t), x, v, mode=mode)

    runs: dict[str, Callable[[], object]] = {"forward": lambda: model.predict(model.predicts, x, t)}
    runs |= {f"{mode}, {count} probes": both(mode, count) for mode in ("vjp", "jvp") for count in (1, 4)}
    with torch.no_grad():
        seconds = best(runs, 1 + repeats)
    forward = seconds.pop("forward")
    print(f"\npasses: digits U-Net, batch 64; a bare forward takes {1000 * forward:.1f} ms")
    for name, taken in seconds.items():
        print(f"{name}: {taken / forward:.2f} × a forward", flush=True)


def score_sde(model: sk.ScoreModel, x: Tensor, tolerance: float, seed: int = 0) -> tuple[Tensor, int]:
    """log p_{t_min}(x) and the number of evaluations, in the manner of score_sde's likelihood code."""
    process, shape, size = model.process, x.shape, x[0].numel()
    v = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).to(x) * 2 - 1

    def slope(t: float, state: np.ndarray) -> np.ndarray:
        sample = torch.from_numpy(state[: x.numel()].reshape(shape)).to(x)
        times = torch.ones(shape[0]) * t
        with torch.no_grad():
            drift = model.flow(sample, times).numpy().reshape(-1)
        with torch.enable_grad():
            sample.requires_grad_(True)
            (grad,) = torch.autograd.grad((model.flow(sample, times) * v).sum(), sample)
        return np.concatenate([drift, (grad * v).flatten(1).sum(1).numpy()])

    start = np.concatenate([x.numpy().reshape(-1), np.zeros(shape[0])])
    solved = solve_ivp(slope, (process.t_min, process.t_max), start, rtol=tolerance, atol=tolerance, method="RK45")
    z, change = np.split(solved.y[:, -1], [x.numel()])
    z = torch.from_numpy(z.reshape(shape)) / process.prior_std
    prior = -0.5 * z.square().flatten(1).sum(1) - size * math.log(process.prior_std * math.sqrt(2 * math.pi))
    return prior + torch.from_numpy(change), solved.nfev


def overhead(repeats: int) -> None:
    """Steps are timed as the difference of a long and a short solve, so that what a whole call costs is apart."""
    model, x = sk.ScoreModel(lambda x, t: 0.1 * x, sk.VP()), torch.randn(16, 3, 8, 8)

    def adaptive(tolerance: float) -> int:
        return int(log_prob(model, x, probes=1, rtol=tolerance, atol=tolerance).nfe.max())

    # a solve of each length, and the evaluations that it makes
    ways: dict[str, tuple[Callable[[Any], int], Any, Any]] = {
        "sdekit per-sample": (adaptive, 1e-3, 1e-6),
        "sdekit fixed": (lambda n: int(log_prob(model, x, probes=1, method="fixed", steps=n).nfe.max()), 5, 25),
        "sdekit unipc-3": (lambda n: int(log_prob(model, x, probes=1, method="unipc-3", steps=n).nfe.max()), 30, 150),
        "scipy RK45 on numpy": (lambda tolerance: score_sde(model, x, tolerance)[1], 1e-3, 1e-6),
    }
    runs = {(name, i): partial(way[0], way[1 + i]) for name, way in ways.items() for i in range(2)}
    evaluations = {key: run() for key, run in runs.items()}
    seconds = best(runs, repeats)
    each = {
        name: (seconds[name, 1] - seconds[name, 0]) / (evaluations[name, 1] - evaluations[name, 0]) for name in ways
    }
    theirs = each["scipy RK45 on numpy"]
    print("\noverhead: µs per six evaluations, a Runge–Kutta step, and for a call; trivial network, 16×3×8×8")
    for name, taken in each.items():
        call = seconds[name, 0] - evaluations[name, 0] * taken
        print(f"{name:22}{6e6 * taken:10.0f}   {taken / theirs:.2f} × scipy{1e6 * call:10.0f}", flush=True)


def digits_cost(n: int, who: str) -> None:
    """Seconds of CPU and the error of the solve, at tolerances from loose to tight, or with more and more steps.

    Each runs in a process of its own: the first divergence of sdekit makes the C library keep freed memory, which would
    speed the baseline up as well.
    """
    from sdekit.data import digits
    from sdekit.nn import digits_model

    model, x = digits_model(), digits().held_out[:n]
    unit = x[0].numel() * math.log(2)

    def solve(setting: float) -> tuple[Tensor, float]:
        if who == "scipy":
            return score_sde(model, x, setting)
        tolerances = {"rtol": setting, "atol": setting}
        steps = {"method": "unipc-3", "steps": int(setting), "grid": "vp-time(power=8, blend=0.3)"}
        found = log_prob(model, x, probes=1, **(steps if who == "unipc-3" and setting > 1 else tolerances))
        return found.nats, found.nfe.double().mean().item()

    settings = (24, 32, 40, 50, 80) if who == "unipc-3" else (1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
    rows: list[tuple[float, float, float, Tensor]] = []
    for setting in (*settings, 1e-6):
        start = time.process_time()
        nats, nfe = solve(setting)
        rows.append((setting, time.process_time() - start, nfe, nats))
    truth = rows[-1][-1]
    for setting, seconds, nfe, nats in rows[:-1]:
        error = (nats - truth).abs().mean().item() / unit
        print(f"{who:10}{setting:10.4g}{seconds:9.1f}{nfe:6.0f}{error:12.1e}", flush=True)


def digits_costs(n: int, threads: int) -> None:
    print(f"\ndigits: {n} held-out digits, one probe; errors in bits/dim, against the same probes' solve at 1e-6")
    print(f"{'':10}{'setting':>10}{'seconds':>9}{'NFE':>6}{'mean error':>12}", flush=True)
    for who in ("scipy", "sdekit", "unipc-3"):
        words = [sys.executable, __file__, "--digits-of", who, "--samples", str(n), "--threads", str(threads)]
        subprocess.run(words, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=["accuracy", "coverage", "passes", "overhead", "digits"])
    parser.add_argument(
        "--large", action="store_true", help="accuracy at D = 3,072 instead, in float32 (half an hour), and its memory"
    )
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--samples", type=int, default=256, help="digits in the last table")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--digits-of", choices=["scipy", "sdekit", "unipc-3"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.digits_of:
        return digits_cost(options.samples, options.digits_of)
    parts = {
        "accuracy": lambda: accuracy(options.large), "coverage": lambda: (coverage(), priors()),
        "passes": lambda: passes(options.repeats),
        "overhead": lambda: overhead(options.repeats), "digits": lambda: digits_costs(options.samples, options.threads),
    }  # fmt: skip
    for name, part in parts.items():
        if options.only in (None, name):
            part()


if __name__ == "__main__":
    main()
