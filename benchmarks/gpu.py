"""Everything that this project wants to know of a real device, by one command, offline and in under 8 minutes.

    python benchmarks/gpu.py                     # the CUDA device; out/gpu.json and out/gpu.md
    python benchmarks/gpu.py --toy --device cpu  # all of it in small, on any machine: what the tests run

It needs torch, torchdiffeq, numpy, scipy, jaxtyping and safetensors; k-diffusion and diffusers are measured where they
are installed. Parts: numbers (against the CPU), waits (of the host, in the loop), steps (host and device time beside
the bare network), noise, graph (the run as one launch; compiled), likelihood, many (50,000 samples). A part that fails
is in the report with its reason, and the others go on. Times are the least of several, after one that is not counted.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.integrate
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import sdekit as sk
from sdekit import noise
from sdekit.nn import DiT, UNet
from sdekit.testing import simgpu
from sdekit.testing.devices import Net, cases, difference

sys.path.insert(0, str(Path(__file__).parent))
SOLVER, STEPS = "dpmpp-2m", 20
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    networks: dict[str, Callable[[], nn.Module]]
    batches: tuple[int, ...]
    event: tuple[int, ...]
    many: int
    many_batch: int
    images: int
    repeats: int


def trivial() -> nn.Module:
    return nn.Conv2d(3, 3, 1)


FULL = Sizes(
    {
        "tiny": trivial,
        "U-Net 35M": lambda: UNet(channels=3, widths=(128, 256, 416), blocks=3, embedding=512, heads=8, groups=32),
        "DiT 500M": lambda: DiT(channels=3, patch=2, width=1152, blocks=21, heads=16),
    },
    (1, 16, 256), (3, 32, 32), 50_000, 1000, 64, 5,
)  # fmt: skip
TOY = Sizes(
    {
        "tiny": trivial,
        "U-Net": lambda: UNet(channels=3, widths=(8, 8), embedding=8, groups=2),
        "DiT": lambda: DiT(channels=3, width=16, blocks=1, heads=2),
    },
    (1, 3), (3, 8, 8), 40, 20, 2, 2,
)  # fmt: skip


class Timed(nn.Module):
    """A network that is told a time and does not use it, where it takes none."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x) if isinstance(self.net, nn.Conv2d) else self.net(x, t)


def middle(sizes: Sizes) -> nn.Module:
    """The U-Net."""
    return list(sizes.networks.values())[1]()


def model_of(net: nn.Module, device: torch.device) -> sk.ScoreModel:
    torch.manual_seed(0)
    return sk.ScoreModel(Timed(net).to(device).eval(), sk.VP(), "v", "half-log-snr")


def settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(run: Callable[[], object], device: torch.device, repeats: int) -> tuple[float, float]:
    """Least wall time of a run until the host goes on, and until the device has finished."""
    run()
    told, done = math.inf, math.inf
    for _ in range(repeats):
        settle(device)
        start = time.perf_counter()
        run()
        told = min(told, time.perf_counter() - start)
        settle(device)
        done = min(done, time.perf_counter() - start)
    return told, done


def numbers(device: torch.device, sizes: Sizes) -> Rows:
    """(a) Every solver, grid, process, prediction and more, against the CPU."""
    found = [(case, difference(case, device)) for case in cases()]
    kinds = dict.fromkeys(case.kind for case, _ in found)
    return [
        {
            "what": kind,
            "cases": sum(case.kind == kind for case, _ in found),
            "largest difference": max(off for case, off in found if case.kind == kind),
            "tolerance": max(case.tolerance for case, _ in found if case.kind == kind),
            "beyond it": [case.name for case, off in found if case.kind == kind and not off <= case.tolerance],
        }
        for kind in kinds
    ]


@contextmanager
def no_wait(device: torch.device) -> Iterator[torch.device]:
    """Raise where the host waits for the device: torch's own check on CUDA, the simulated device elsewhere."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield device
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return
    with simgpu.device() as gpu, gpu.forbid_host_reads():
        yield torch.device(gpu.device)


def waits(device: torch.device, sizes: Sizes) -> Rows:
    """(b) Solvers in whose loop the host waits."""
    waiting: dict[str, str] = {}
    names = sk.solvers.names()
    for name in names:

        def run(where: torch.device, name: str = name) -> None:
            model, label = sk.ScoreModel(Net().to(where), sk.VP()), torch.zeros(5, dtype=torch.long, device=where)
            sk.sample(model, (5, 2, 3), solver=name, nfe=7, seed=0, label=label)

        try:
            run(device)  # what is compiled or loaded once may wait
            with no_wait(device) as where:
                run(where)
        except Exception as error:
            waiting[name] = f"{type(error).__name__}: {error}"
    checked = "CUDA's synchronisation check" if device.type == "cuda" else "the simulated device's"
    return [{"check": checked, "solvers": len(names), "waiting": waiting}]


def steps(device: torch.device, sizes: Sizes) -> Rows:
    """(c) A step of ``SOLVER`` beside the bare network."""
    rows: Rows = []
    for name, build in sizes.networks.items():
        model = model_of(build(), device)
        count = sum(parameter.numel() for parameter in model.net.parameters())
        for batch in sizes.batches:
            x, t = torch.randn(batch, *sizes.event, device=device), torch.zeros(batch, device=device)

            @torch.no_grad()
            def bare(net: Any = model.net, x: Tensor = x, t: Tensor = t) -> None:
                for _ in range(STEPS):
                    net(x, t)

            def ours(model: sk.ScoreModel = model, x: Tensor = x) -> None:
                sk.sample(model, tuple(x.shape), solver=SOLVER, steps=STEPS, start=x, seed=0, final="none")

            (bare_host, bare_all), (host, everything) = (seconds(run, device, sizes.repeats) for run in (bare, ours))
            rows.append({
                "network": name, "parameters": count, "batch": batch, "network µs/step": 1e6 * bare_all / STEPS,
                "sample µs/step": 1e6 * everything / STEPS, "ratio": everything / bare_all,
                "host µs/step": 1e6 * host / STEPS, "network's host µs/step": 1e6 * bare_host / STEPS,
            })  # fmt: skip
    return rows


def peers(device: torch.device, sizes: Sizes) -> Rows:
    """(c) The other libraries' loops beside this one, around a trivial network, as ``overhead.py`` has them."""
    import overhead

    with torch.device(device):
        runs = {"sdekit, ddim": overhead.ours("ddim", "eps"), "sdekit, dpmpp-2m": overhead.ours("dpmpp-2m", "eps")}
        runs |= overhead.k_diffusion() | overhead.diffusers()
    return [{"loop": name, "µs/step": 1e6 * seconds(run, device, sizes.repeats)[1] / overhead.STEPS}
            for name, run in runs.items()]  # fmt: skip


class Counted(TorchDispatchMode):
    """How many operations torch is given."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def launches(run: Callable[[], object], device: torch.device) -> int:
    """Kernels of a run on CUDA, operations elsewhere; after it was warmed up."""
    run()
    if device.type == "cuda":
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            run()
            settle(device)
        return sum(event.count for event in profile.key_averages())
    with Counted() as counted:
        run()
    return counted.count


def draws(device: torch.device, sizes: Sizes) -> Rows:
    """(d) A draw of noise beside ``torch.randn``."""
    rows: Rows = []
    for batch in sizes.batches:
        samples, shape = torch.arange(batch, device=device), (batch, *sizes.event)
        counters, keys = noise.ingredients(0, [(0.0, 1.0)], samples, sizes.event)

        def ours(counters: Tensor = counters, keys: Tensor = keys) -> Tensor:
            return noise.from_ingredients([(0.0, 1.0)], counters, keys, sizes.event, torch.float32)(0.0, 1.0)

        def theirs(shape: tuple[int, ...] = shape) -> Tensor:
            return torch.randn(shape, device=device)

        times = {name: seconds(run, device, 5 * sizes.repeats)[1] for name, run in (("ours", ours), ("theirs", theirs))}
        size = 4 * math.prod(shape)
        rows.append({
            "batch": batch, "draw µs": 1e6 * times["ours"], "randn µs": 1e6 * times["theirs"],
            "draw GB/s": size / times["ours"] / 1e9, "ratio": times["ours"] / times["theirs"],
            "launches": launches(ours, device),
        })  # fmt: skip
    return rows


def graph(device: torch.device, sizes: Sizes) -> Rows:
    """(e) The whole run as one CUDA graph at batch 1, and with a compiled network."""
    rows: Rows = []
    for name, build in sizes.networks.items():
        model, shape = model_of(build(), device), (1, *sizes.event)
        options: dict[str, Any] = {"solver": SOLVER, "steps": STEPS, "final": "none"}
        replay = sk.capture(model, shape, **options)
        expected = sk.sample(model, shape, seed=7, **options).x
        eager = seconds(lambda: sk.sample(model, shape, seed=7, **options), device, sizes.repeats)[1]  # noqa: B023
        once = seconds(lambda: replay(seed=7), device, sizes.repeats)[1]  # noqa: B023
        row = {"network": name, "sample ms": 1e3 * eager, "captured ms": 1e3 * once, "gain": eager / once,
               "difference": (replay(seed=7) - expected).abs().max().item()}  # fmt: skip
        if device.type == "cuda":
            compiled = sk.ScoreModel(torch.compile(model.net), model.process, model.predicts, model.time)
            row["compiled ms"] = 1e3 * seconds(
                lambda: sk.sample(compiled, shape, seed=7, **options), device, sizes.repeats  # noqa: B023
            )[1]  # fmt: skip
        rows.append(row)
    return rows


def likelihood(device: torch.device, sizes: Sizes) -> Rows:
    """(f) Log densities of images, beside score_sde's way: SciPy's RK45 on the host, one probe, all rows in one."""
    model = model_of(middle(sizes), device)
    x = torch.randn(sizes.images, *sizes.event, device=device) * 0.5
    start = time.perf_counter()
    ours = sk.log_prob(model, x, divergence="hutchinson", probes=1, rtol=1e-4, atol=1e-4)
    settle(device)
    mine = time.perf_counter() - start
    start = time.perf_counter()
    theirs, calls = score_sde(model, x)
    return [
        {"way": "sdekit", "s/image": mine / len(x), "NFE": ours.nfe.double().mean().item(),
         "mean nats": ours.nats.mean().item()},
        {"way": "score_sde's", "s/image": (time.perf_counter() - start) / len(x), "NFE": calls,
         "mean nats": theirs.mean().item()},
    ]  # fmt: skip


def score_sde(model: sk.ScoreModel, x: Tensor) -> tuple[Tensor, int]:
    """dx/dt and the divergence along one fixed probe, integrated in float64 on the host from t_min to t_max."""
    process, n, size = model.process, len(x), x[0].numel()
    probe = noise.normal(1, 0, torch.arange(n, device=x.device), x.shape[1:]).sign()
    calls = 0

    def rate(t: float, state: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        y = torch.from_numpy(state[: n * size].reshape(x.shape)).to(x).requires_grad_()
        with torch.enable_grad():
            drift = process.drift(y, t) - 0.5 * process.diffusion(t) ** 2 * model.score(y, t)
            (product,) = torch.autograd.grad((drift * probe).sum(), y)
        trace = (product * probe).flatten(1).sum(1)
        return np.concatenate([part.detach().double().cpu().numpy().ravel() for part in (drift, trace)])

    first = np.concatenate([x.double().cpu().numpy().ravel(), np.zeros(n)])
    end = scipy.integrate.solve_ivp(rate, (process.t_min, process.t_max), first, rtol=1e-4, atol=1e-4).y[:, -1]
    latent, gain = torch.from_numpy(end[: n * size]).reshape(n, size), torch.from_numpy(end[n * size :])
    sigma = process.sigma(process.t_max)
    prior = -0.5 * (latent / sigma).square().sum(1) - size * (0.5 * math.log(2 * math.pi) + math.log(sigma))
    return prior + gain, calls


def many(device: torch.device, sizes: Sizes) -> Rows:
    """(g) A large set of samples."""
    model = model_of(middle(sizes), device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    x = sk.sample(model, (sizes.many, *sizes.event), solver=SOLVER, nfe=10, batch_size=sizes.many_batch, seed=0).x
    settle(device)
    took = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return [{"samples": len(x), "s": took, "samples/s": len(x) / took, "peak GiB": peak,
             "finite": bool(x.isfinite().all())}]  # fmt: skip


PARTS: dict[str, Callable[[torch.device, Sizes], Rows]] = {
    "numbers": numbers, "waits": waits, "steps": steps, "peers": peers, "noise": draws, "graph": graph,
    "likelihood": likelihood, "many": many,
}  # fmt: skip


def measured(device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """Every part's rows, or why it has none, and on what."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    found: dict[str, Any] = {
        "device": f"{device.type}: {name}", "torch": torch.__version__, "cuda": torch.version.cuda,
        "python": platform.python_version(), "toy": sizes is TOY, "parts": {},
    }  # fmt: skip
    for part, function in PARTS.items():
        start = time.perf_counter()
        try:
            rows, reason = function(device, sizes), ""
        except Exception as error:  # of a part: the others are wanted all the same
            rows, reason = [], f"{type(error).__name__}: {' '.join(str(error).split())}"
        took = round(time.perf_counter() - start, 2)
        found["parts"][part] = {"about": function.__doc__ or "", "rows": rows, "failed": reason, "s": took}
        print(f"{part}: {took} s {reason}", flush=True)
    return found


def page(found: dict[str, Any]) -> str:
    """The report as markdown."""
    lines = [f"# {found['device']}", "", f"torch {found['torch']}, CUDA {found['cuda']}, Python {found['python']}."]
    lines += ["", "Sizes of a toy: the times say nothing."] * found["toy"]
    for name, part in found["parts"].items():
        lines += ["", f"## {name}", "", part["about"], ""]
        lines += [f"**Failed**: {part['failed']}"] if part["failed"] else table(part["rows"])
    return "\n".join(lines) + "\n"


def table(rows: Rows) -> list[str]:
    heads = list(dict.fromkeys(head for row in rows for head in row))
    cells = [heads, *([shown(row.get(head)) for head in heads] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in cells]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "–" if value is None or value in ([], {}) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("out"))
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device: --toy --device cpu runs everything in small on the CPU")
    found = measured(torch.device(options.device), TOY if options.toy else FULL)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "gpu.md").write_text(page(found))
    print(options.out / "gpu.md")


if __name__ == "__main__":
    main()
