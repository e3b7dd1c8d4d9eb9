"""MLP and DiT: what they are told, what they start as, that they learn, and what can be differentiated through them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdekit as sk
from sdekit.divergence import divergence, draw_probes
from sdekit.nn import MLP, DiT, load, preconditioned, save
from sdekit.nn import dit as dit_module
from sdekit.nn.dit import image, patches, positions
from sdekit.training import Denoising, Optimisation, train_denoiser

SMALL: dict[str, Any] = {"width": 16, "blocks": 2, "classes": 3, "condition": 2}
NETWORKS = {
    "mlp": lambda **options: MLP(5, **SMALL | options),
    "dit": lambda **options: DiT(2, heads=2, **SMALL | options),
}
STATES = {"mlp": (5,), "dit": (2, 4, 6)}
each = pytest.mark.parametrize("kind", NETWORKS)


def stirred(net: nn.Module, seed: int = 0) -> nn.Module:
    """With weights that do not start at zero."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for parameter in net.parameters():
            parameter.normal_(0, 0.2)
    return net.eval()


def x_of(kind: str, n: int = 4) -> Tensor:
    return torch.randn(n, *STATES[kind], generator=torch.Generator().manual_seed(1))


@each
def test_it_tells_everything_apart_that_it_is_told(kind: str):
    net, x, t = stirred(NETWORKS[kind](ends=True)), x_of(kind), torch.linspace(-1, 1, 4)
    told: dict[str, Tensor] = {"label": torch.tensor([0, 1, 2, 3]), "condition": torch.ones(4, 2), "end": t - 0.5}
    base = net(x, t, **told)
    for name, other in {"label": torch.tensor([1, 2, 3, 0]), "condition": -torch.ones(4, 2), "end": t - 1}.items():
        assert not torch.allclose(net(x, t, **told | {name: other}), base, atol=1e-4)
    assert not torch.allclose(net(x, t + 0.1, **told), base, atol=1e-4)
    # none is the last label, and the zero vector
    spare = {"end": told["end"]}
    assert torch.equal(net(x, t, **spare), net(x, t, label=torch.full((4,), 3), condition=torch.zeros(4, 2), **spare))
    # a sample's result is its own
    assert torch.allclose(
        net(x[1:2], t[1:2], **{name: value[1:2] for name, value in told.items()}), base[1:2], atol=1e-5
    )


@each
def test_what_it_was_not_built_for_is_said(kind: str):
    net, x, t = NETWORKS[kind](classes=0, condition=0), x_of(kind), torch.zeros(4)
    for name, value in {"label": torch.zeros(4).long(), "condition": torch.zeros(4, 2), "end": t}.items():
        with pytest.raises(ValueError, match=f"{name}: this network was built without it"):
            net(x, t, **{name: value})
    with pytest.raises(ValueError, match="x has shape"):
        net(x[..., :-1], t)
    with pytest.raises(ValueError, match="end: this network was built to be told"):
        NETWORKS[kind](ends=True)(x, t)
    with pytest.raises(ValueError, match=r"condition has shape \[4, 3\]"):
        NETWORKS[kind]()(x, t, condition=torch.zeros(4, 3))


@each
def test_a_file_keeps_it(tmp_path: Path, kind: str):
    model = sk.ScoreModel(stirred(NETWORKS[kind]()), sk.VP(), "v", "half-log-snr")
    save(model, tmp_path)
    again, x = load(tmp_path), x_of(kind)
    assert type(again.net) is type(model.net)
    told: dict[str, Tensor] = {"label": torch.tensor([0, 1, 2, 3]), "condition": torch.ones(4, 2)}
    assert torch.equal(again.eps(x, 0.4, **told), model.eps(x, 0.4, **told))


def test_a_new_dit_is_zero_and_its_blocks_are_the_identity():
    net = NETWORKS["dit"]()
    assert torch.equal(net(x_of("dit"), torch.zeros(4)), torch.zeros(4, 2, 4, 6))
    hidden = torch.randn(2, 6, 16)
    assert torch.equal(net.blocks[0](hidden, torch.randn(2, 16)), hidden)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_patches_are_squares_and_make_the_image_again(side: int):
    x = torch.randn(2, 3, 6, 12, generator=torch.Generator().manual_seed(0))
    tokens = patches(x, side)
    assert torch.equal(image(tokens, side, (3, 6, 12)), x)
    second = x[:, :, :side, side : 2 * side]  # the second of the first row
    assert torch.equal(tokens[:, 1], second.flatten(1))


def test_positions_are_where_a_patch_is_and_nothing_else_is(monkeypatch: pytest.MonkeyPatch):
    table = positions(3, 4, 16, torch.zeros(1)).reshape(3, 4, 16)
    assert torch.allclose(table[1, 2, 0], torch.tensor(1.0).sin())  # the row, at the first rate 1
    assert torch.allclose(table[1, 2, 8], torch.tensor(2.0).sin())  # the column
    assert len(table.reshape(12, 16).unique(dim=0)) == 12
    net, x = stirred(NETWORKS["dit"]()), x_of("dit")
    swapped = x.clone()
    swapped[:, :, :2, :2], swapped[:, :, 2:, 4:] = x[:, :, 2:, 4:], x[:, :, :2, :2]
    for known in (True, False):
        if not known:
            monkeypatch.setattr(dit_module, "positions", lambda *_: 0.0)
        out, other = net(x, torch.zeros(4)), net(swapped, torch.zeros(4))
        equal = torch.allclose(other[:, :, :2, :2], out[:, :, 2:, 4:], atol=1e-5)
        assert equal is not known


@each
@pytest.mark.parametrize("mode", ["vjp", "jvp"])
@pytest.mark.parametrize("gradients", [False, True])
def test_every_divergence_goes_through_it(kind: str, mode: str, gradients: bool):
    net, x, t = stirred(NETWORKS[kind]()).double(), x_of(kind, 2).double(), torch.tensor([0.3, -0.2])
    size = x[0].numel()
    jacobian: Any = torch.autograd.functional.jacobian
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        full = jacobian(lambda x: net(x, t), x).reshape(2, size, 2, size)
    expected = torch.stack([full[i, :, i].trace() for i in range(2)])
    with torch.set_grad_enabled(gradients):
        for method, count in {"exact": 0, "hutchinson": 4, "hutch++": 3, "xtrace": 3}.items():
            probes = draw_probes(x, count) if count else None
            _, found = divergence(lambda x: net(x, t), x, probes, method, mode)
            if method == "exact":
                assert torch.allclose(found[:, 0], expected, atol=1e-8)
            assert found.isfinite().all()
            if gradients:
                (slope,) = torch.autograd.grad(found.mean(), net.enter.weight, retain_graph=True)
                assert slope.isfinite().all()
                assert slope.abs().max() > 0


def test_a_likelihood_goes_through_attention():
    model = sk.ScoreModel(stirred(DiT(1, heads=2, width=16, blocks=1)), sk.VP(), "v", "half-log-snr")
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    exact = sk.log_prob(model, x, rtol=1e-3, divergence="exact").nats
    for mode in ("vjp", "jvp"):
        found = sk.log_prob(model, x, rtol=1e-3, divergence="hutchinson", probes=16, mode=mode)
        assert ((found.nats - exact).abs() < 5 * found.stderr.probes + 1e-3).all()


def test_an_mlp_learns_the_denoiser_of_a_mixture():
    angles = torch.arange(6) * (torch.pi / 3)
    target = sk.targets.GaussianMixture(1.2 * torch.stack([angles.cos(), angles.sin()], 1), 0.15)
    data, process = target.sample(20_000), sk.VP()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = MLP(2, width=64)
    plan = Optimisation(steps=700, lr=6e-3, ema=0.99)
    model = train_denoiser(net, process, data, task=Denoising(predicts="v", batch=256), plan=plan)
    exact, fresh = target.model(process), target.sample(4000, seed=1)
    for level in (-2.0, 0.0, 1.5):
        t = process.t_of_half_log_snr(level)
        x = process.perturb(fresh, t, torch.randn(fresh.shape, generator=torch.Generator().manual_seed(2)))
        with torch.no_grad():
            off = (model.x0(x, t) - exact.x0(x, t)).square().mean()
            spread = (exact.x0(x, t) - fresh).square().mean()  # what nobody can know
        assert off < 0.1 * spread


PROCESSES = [sk.VP(), sk.SubVP(), sk.VE(), sk.CosineVP(), sk.Flow(), sk.EDM()]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_preconditioning_gives_unit_variances_and_the_linear_denoiser(process: sk.Process):
    """Karras et al. 2022, appendix B.6: c_in and c_out are what makes input and target of unit variance."""
    s, n = 0.5, 40_000
    x0, eps = torch.randn(2, n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen = []

    class Watched(nn.Module):
        def forward(self, x: Tensor, level: Tensor) -> Tensor:
            seen.append((x, level))
            return torch.zeros_like(x)

    model = preconditioned(Watched(), process, s)
    exact = sk.targets.Gaussian(torch.zeros(1).double(), s**2 * torch.eye(1).double()).model(process)
    for level in (-4.0, -1.0, 0.0, 2.0):
        t = process.t_of_half_log_snr(torch.full((n,), level, dtype=torch.float64))
        x = process.perturb(s * x0, t, eps)
        found = model.x0(x, t)
        assert torch.allclose(found, exact.x0(x, t), atol=1e-9)
        entered, told = seen[-1]
        assert entered.std().item() == pytest.approx(1, rel=0.02)
        assert torch.allclose(told, torch.full_like(told, level))
        kappa = torch.exp(-told)
        c_out = kappa * s / (kappa**2 + s**2).sqrt()
        assert ((s * x0 - found) / c_out[:, None]).std().item() == pytest.approx(1, rel=0.02)  # what it should give
        weight = sk.training.weighting(f"edm(sigma_data={s})")(process, t) / kappa**2
        assert torch.allclose(weight * c_out**2, torch.ones_like(weight))
