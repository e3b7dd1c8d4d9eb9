"""CFG++: the published step, written out, and what the order of such a step is."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sdekit as sk
from sdekit import guidance
from sdekit.targets import Gaussian

PROCESSES = [sk.VP(), sk.VE(sigma_max=20.0), sk.Flow(), sk.DiscreteVP()]
FREE, CLASS = (0.0, 1.0), (1.0, 0.25)  # mean and variance of the data, without and with the condition
START = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
LABEL = torch.zeros(5, dtype=torch.int64)


def model(process: sk.Process) -> sk.ScoreModel:
    """The exact model of p for label 1 and of q for label 0."""
    nets: list[Any] = [
        Gaussian(torch.tensor([mean]).double(), torch.tensor([[variance]]).double()).model(process).net
        for mean, variance in (CLASS, FREE)
    ]

    def net(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return torch.stack([net(x, t) for net in nets])[label, torch.arange(len(x))]

    return sk.ScoreModel(net, process, "eps")


def published(process: sk.Process, omega: float, times: list[float]) -> Tensor:
    """Denoise with the guided ε, renoise with the unconditional one; the last step denoises."""
    x, network = START * process.sigma(times[0]), model(process)
    for s, t in zip(times, [*times[1:], None]):
        free = network.predict("eps", x, s, label=LABEL + 1)
        eps = free + omega * (network.predict("eps", x, s, label=LABEL) - free)
        x0 = (x - process.sigma(s) * eps) / process.alpha(s)
        x = x0 if t is None else process.alpha(t) * x0 + process.sigma(t) * free
    return x


def ours(process: sk.Process, omega: float, steps: int, grid: Any = "logsnr") -> Tensor:
    start = START * process.sigma(process.t_max)
    return guidance.sample_plus_plus(
        model(process), (5, 1), scale=omega, null={"label": 1}, steps=steps, grid=grid, start=start, label=LABEL
    ).x


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
@pytest.mark.parametrize("grid", ["logsnr", "time"])
def test_the_table_is_the_published_step(process: Any, grid: str) -> None:
    times = [knot.t for knot in sk.Grid.make(process, grid, 9).knots]
    torch.testing.assert_close(ours(process, 0.6, 9, grid), published(process, 0.6, times), rtol=1e-10, atol=1e-10)


def test_each_step_is_two_evaluations() -> None:
    network = model(sk.VP())
    out = guidance.sample_plus_plus(network, (5, 1), scale=0.6, null={"label": 1}, steps=7, seed=0, label=LABEL)
    assert out.nfe == 16
    calls = guidance.sample_plus_plus(
        network, (5, 1), scale=0.6, null={"label": 1}, steps=7, seed=0, label=LABEL, doubled=False
    )
    assert torch.equal(out.x, calls.x)
    assert calls.nfe == 16


def flow(w: float, process: sk.Process) -> Tensor:
    """Where the ODE with the guided score of two Gaussians ends: κ = σ/α, y = x/α, dy/dκ = ε, to 1e-10 by RK4."""

    def eps(y: Tensor, kappa: float) -> Tensor:
        one, two = ((y - mean) * kappa / (variance + kappa**2) for mean, variance in (CLASS, FREE))
        return w * one + (1 - w) * two

    ends = [math.exp(-process.half_log_snr(t)) for t in (process.t_max, process.t_min)]
    logs = torch.linspace(math.log(ends[0]), math.log(ends[1]), 4001, dtype=torch.float64).tolist()
    y = START * process.sigma(process.t_max) / process.alpha(process.t_max)
    for a, b in zip(logs, logs[1:]):
        h, (first, middle, last) = b - a, (math.exp(u) for u in (a, (a + b) / 2, b))
        k1 = first * eps(y, first)
        k2 = middle * eps(y + h / 2 * k1, middle)
        k3 = middle * eps(y + h / 2 * k2, middle)
        k4 = last * eps(y + h * k3, last)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return y - ends[1] * eps(y, ends[1])  # denoised


def test_with_a_scale_that_shrinks_with_the_step_it_is_of_order_one() -> None:
    process, w = sk.VP(), 2.5
    span = process.half_log_snr(process.t_min) - process.half_log_snr(process.t_max)
    truth = flow(w, process)

    def error(steps: int) -> float:
        return (ours(process, -w * math.expm1(-span / steps), steps) - truth).abs().max().item()

    coarse, fine = error(100), error(200)
    assert abs(math.log2(coarse / fine) - 1) < 0.15


def test_at_a_fixed_scale_more_steps_are_more_guidance() -> None:
    """The scale of the same DDIM grows with the steps: all starts end where both scores agree, as under no ODE."""
    spreads = [ours(sk.VP(), 0.6, steps).std().item() for steps in (25, 50, 100, 200)]
    assert all(more < fewer / 2 for fewer, more in zip(spreads, spreads[1:]))
    assert spreads[-1] < 1e-3 < flow(8.0, sk.VP()).std()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nan": ({"scale": math.nan}, r"scale=nan: it must be a finite number"),
    "solver": ({"solver": "heun"}, r"solver='heun': CFG\+\+ fixes it"),
    "nfe": ({"nfe": 10}, r"nfe=10: CFG\+\+ fixes it: give steps"),
    "steps": ({"steps": 0}, r"steps=0: it must be a whole number from 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    options, message = BAD[case]
    given: dict[str, Any] = {"scale": 0.6, "steps": 5, "label": LABEL, **options}
    with pytest.raises(ValueError, match=message):
        guidance.sample_plus_plus(model(sk.VP()), (5, 1), null={"label": 1}, **given)


def test_its_scale_serves_the_knots_of_its_run_alone() -> None:
    scale = guidance.Renoised(0.6, (1.0, 0.5, 0.001))
    guided = guidance.ClassifierFree(model(sk.VP()), scale, null={"label": 1})
    with pytest.raises(ValueError, match=r"CFG\+\+ has a scale at the 3 knots of its run alone"):
        sk.sample(guided, (5, 1), solver="heun", nfe=5, seed=0, label=LABEL)
