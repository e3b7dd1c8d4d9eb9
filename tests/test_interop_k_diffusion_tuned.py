"""A solver tuned to a model, through k-diffusion's door: on its own σ it is ``sample``, on others it is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sdekit as sk
from sdekit.interop.k_diffusion import sampler, sigmas
from sdekit.solvers import get

TARGET = sk.targets.GaussianMixture(torch.tensor([[-2.0, 0.5], [1.0, 1.5], [0.0, -1.0]]), 0.3).double()
RANGES = {"ve": sk.EDM(1e-9, 1e9), "flow": sk.Flow(1e-9, 1 - 1e-9)}
CASES = {"EDM": (sk.EDM(0.05, 20.0), "ve"), "VE": (sk.VE(0.05, 20.0), "ve"), "Flow": (sk.Flow(), "flow")}


def denoiser(coordinates: str) -> Any:
    """The mixture's exact D(x, σ)."""
    return lambda x, sigma: TARGET.conditional_means(x, sigma, RANGES[coordinates])[0]


def tuned(process: sk.Process, net: Any, nfe: int, budget: int) -> Any:
    model = sk.ScoreModel(net, process, "x0", "sigma")
    return sk.tune(model, (1, 2), nfe=nfe, starts=90, budget=budget, choices=[("unipc-2", "logsnr")])


@pytest.mark.parametrize("name", CASES)
def test_on_its_own_sigmas_it_is_sample(name):
    process, coordinates = CASES[name]
    net = denoiser(coordinates)
    plan = tuned(process, net, 5, 20_000)
    own = sigmas(plan)
    x = process.prior_std * sk.noise.normal(5, 0, torch.arange(8), (2,), torch.float64)
    model = sk.ScoreModel(net, process, "x0", "sigma")
    truth, untuned = (sk.sample(model, (8, 2), solver=solver, nfe=5, start=x).x for solver in (plan, "unipc-2"))
    assert (truth - untuned).abs().max() > 1e-3  # the fit moved it
    run = sampler(plan, coordinates=coordinates)
    for given in (own, own.tolist(), own.float()):
        assert torch.allclose(run(net, x, given, disable=True), truth, rtol=0, atol=1e-6)
    assert torch.allclose(run(net, x[2:3], own, disable=True), truth[2:3], rtol=0, atol=1e-10)
    seen = []
    run(net, x, own, callback=lambda told: seen.append((told["i"], told["sigma"].item())), disable=True)
    assert seen == [*enumerate(own[:-1].tolist())]
    for other in (own[1:], own[:-1], own * 0.999, (own[0] * torch.linspace(1, 0, 6)).float()):
        with pytest.raises(ValueError, match=r"sigmas: solver 'tuned-5' has its own, \[.*: give .*k_diffusion\.sigmas"):
            run(net, x, other, disable=True)


def test_one_tuned_in_other_coordinates_is_refused():
    plan, x = tuned(sk.VP(), denoiser("ve"), 2, 0), torch.ones(2, 2)
    with pytest.raises(ValueError, match=r"'tuned-2' was fitted for VP.*, and x here is x_0 \+ σ ε: tune a model"):
        sampler(plan)(denoiser("ve"), x, sigmas(plan), disable=True)
    with pytest.raises(ValueError, match=r"x here is \(1 − σ\) x_0"):
        sampler(plan, coordinates="flow")(denoiser("flow"), x, [0.9, 0.5, 0.0], disable=True)
    with pytest.raises(ValueError, match="solver 'ddim' has no σ of its own"):
        sigmas(get("ddim"))
