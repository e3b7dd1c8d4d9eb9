"""Couplings, held to transport that is known: in one dimension it sorts, between Gaussians of one shape it shifts."""

import pytest
import torch

import sdekit as sk
from sdekit.training import COUPLINGS, Denoising, Optimisation, coupling, train_denoiser


def draws(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_on_a_line_the_optimal_coupling_sorts():
    x0, eps = draws(200, 1, 0), draws(200, 1, 1)
    paired = eps[coupling("optimal")(x0, eps, 0)]
    assert torch.equal(paired[x0[:, 0].argsort()], eps.sort(0).values)


@pytest.mark.parametrize("name", COUPLINGS)
def test_a_coupling_is_a_function_of_the_batch_and_the_seed(name: str):
    x0, eps = draws(60, 3, 0), draws(60, 3, 1)
    rows = coupling(name)(x0, eps, 5)
    assert torch.equal(rows, coupling(name)(x0, eps, 5))
    assert rows.shape == (60,)
    if name != "entropic":
        assert torch.equal(rows.sort().values, torch.arange(60))  # the marginals are kept to the sample


def test_the_entropic_coupling_lies_between_the_optimal_and_the_independent():
    x0, eps = draws(120, 2, 0) + 3, draws(120, 2, 1)

    def cost(name: str) -> float:
        found = [(x0 - eps[coupling(name)(x0, eps, seed)]).square().sum(1).mean() for seed in range(10)]
        return torch.stack(found).mean().item()

    costs = [cost(name) for name in ("optimal", "entropic(sigma=0.1)", "entropic(sigma=1)", "entropic(sigma=30)")]
    everything = torch.cdist(x0, eps).square().mean().item()
    assert costs[0] <= costs[1] < costs[2] < costs[3]
    assert costs[1] < 1.1 * costs[0]
    assert costs[3] == pytest.approx(everything, rel=0.05)
    # each row of the plan is drawn by its weights: near σ → 0 the noise is kept, whatever the seed
    used = torch.cat([coupling("entropic(sigma=0.3)")(x0, eps, seed) for seed in range(60)]).bincount(minlength=120)
    assert (used.double() / 60 - 1).abs().max() < 0.6  # 1 each, ± 4/√60


def test_the_entropic_coupling_of_a_small_sigma_is_the_optimal_one():
    """Where Sinkhorn's iteration, stopped after 2000 steps, is far from it."""
    x0, eps = draws(128, 2, 0) + 3, draws(128, 2, 1)
    for sigma in (0.001, 1e-5):
        assert torch.equal(coupling(f"entropic(sigma={sigma})")(x0, eps, 0), coupling("optimal")(x0, eps, 0))


class Line(torch.nn.Module):
    """v = a(t) x + b(t), a and b polynomials."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2, 4))

    def forward(self, x, t):
        a, b = self.weight @ torch.stack([t**k for k in range(4)])
        return a[:, None] * x + b[:, None]


def test_paths_of_coupled_training_are_straighter():
    """Data N(1.5, 0.5²) on a line, under Flow: the optimal map is ε ↦ 1.5 + ε/2, and one step makes it."""
    data, plan = (1.5 + 0.5 * draws(4000, 1, 0)).float(), Optimisation(steps=400, lr=0.05, ema=0.95)
    start = draws(300, 1, 2).float()
    off = {}
    for name in ("independent", "optimal"):
        task = Denoising(predicts="flow", time="t", times="uniform", coupling=name, batch=256)
        model = train_denoiser(Line(), sk.Flow(), data, task=task, plan=plan)
        one = sk.sample(model, (300, 1), solver="euler", grid=[0.999, 0.001], final="none", start=start).x
        off[name] = (one - (1.5 + 0.5 * start)).square().mean().sqrt().item()
    assert off["optimal"] < 0.15  # what a batch of 256 knows of the map
    assert off["independent"] > 3 * off["optimal"]


def test_bad_names_and_options():
    with pytest.raises(ValueError, match="did you mean 'optimal'"):
        coupling("optiml")
    with pytest.raises(ValueError, match=r"sigma=-1"):
        coupling("entropic(sigma=-1)")
