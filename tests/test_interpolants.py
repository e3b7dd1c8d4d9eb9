"""Interpolants between laws whose b and η are known: the ODE and the SDE at every level have the same marginals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sdekit as sk
from sdekit.interpolants import (
    INTERPOLANTS,
    Interpolant,
    InterpolantProcess,
    diffuse,
    follow,
    interpolant,
    interpolant_losses,
    slope,
)
from sdekit.testing import check_process

M0, S0, M1, S1, RHO = -1.0, 0.4, 2.0, 1.5, 0.6
each = pytest.mark.parametrize("name", INTERPOLANTS)


class Pair:
    """Components (weight, m_0, s_0) of x_0 on a line, x_1 normal, of correlation ρ with each: x_t is a mixture."""

    def __init__(self, curve, components=((1.0, M0, S0),), rho=RHO):
        self.curve, self.components, self.rho = curve, components, rho

    def moments(self, t: Tensor, m0: float, s0: float) -> tuple[Tensor, Tensor]:
        a, b, c = self.curve.alpha(t), self.curve.beta(t), self.curve.gamma(t)
        return a * m0 + b * M1, (a * s0) ** 2 + (b * S1) ** 2 + 2 * a * b * self.rho * s0 * S1 + c**2

    def weighted(self, x: Tensor, t: Tensor, of_component) -> Tensor:
        logs, values = [], []
        for weight, m0, s0 in self.components:
            mean, variance = self.moments(t, m0, s0)
            logs.append(math.log(weight) - 0.5 * variance.log()[:, None] - (x - mean[:, None]) ** 2
                        / (2 * variance[:, None]))  # fmt: skip
            values.append(of_component(x, t, m0, s0, mean[:, None], variance[:, None]))
        return (torch.stack(logs).softmax(0) * torch.stack(values)).sum(0)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """m' + v'/(2 v) (x − m) in each component."""

        def one(x, t, m0, s0, mean, variance):
            m_rate = slope(lambda t: self.moments(t, m0, s0)[0], t)[:, None]
            v_rate = slope(lambda t: self.moments(t, m0, s0)[1], t)[:, None]
            return m_rate + v_rate / (2 * variance) * (x - mean)

        return self.weighted(x, t, one)

    def denoiser(self, x: Tensor, t: Tensor) -> Tensor:
        return self.weighted(x, t, lambda x, t, m0, s0, mean, v: self.curve.gamma(t)[:, None] * (x - mean) / v)

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(0)
        e, f = torch.randn(2, n, 1, generator=g, dtype=torch.float64)
        weights = torch.tensor([weight for weight, _, _ in self.components])
        kind = torch.multinomial(weights, n, True, generator=g)
        m0 = torch.tensor([m for _, m, _ in self.components], dtype=torch.float64)[kind, None]
        s0 = torch.tensor([s for _, _, s in self.components], dtype=torch.float64)[kind, None]
        return m0 + s0 * e, M1 + S1 * (self.rho * e + math.sqrt(1 - self.rho**2) * f)


MIXTURE = ((0.3, -1.5, 0.2), (0.7, 1.0, 0.4))


@each
@pytest.mark.parametrize("level", [0.0, 0.3, 2.0])
@pytest.mark.parametrize(("start", "end"), [(1.0, 0.0), (1.0, 0.35), (0.0, 0.6)])
def test_ode_and_sde_have_the_same_marginals(name: str, level: float, start: float, end: float):
    n, curve = 8000, interpolant(name)
    pair = Pair(curve)
    x0, x1 = pair.draw(n)
    x = x1 if start == 1 else x0
    found = diffuse(curve, pair.velocity, pair.denoiser, x, lambda t: level * t * (1 - t), start, end, 120, seed=3)
    flown = follow(pair.velocity, x, start, end)
    mean, variance = pair.moments(torch.tensor([end]).double(), M0, S0)
    for one in (found, flown):
        assert one.mean().item() == pytest.approx(mean.item(), abs=5 * math.sqrt(variance.item() / n) + 0.01)
        assert one.std().item() == pytest.approx(variance.sqrt().item(), rel=0.04)
    if level:  # and the SDE went another way
        assert (found - flown).abs().mean() > 0.1 * variance.sqrt().item() * min(1, level)


@each
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_a_mixture_arrives_with_its_weights(name: str, level: float):
    n, curve = 8000, interpolant(name)
    pair = Pair(curve, MIXTURE, rho=0.0)
    x0, x1 = pair.draw(n)
    x = diffuse(curve, pair.velocity, pair.denoiser, x1, lambda t: level * t * (1 - t), steps=200, seed=1)
    assert (x < -0.5).double().mean().item() == pytest.approx(0.3, abs=0.02)
    grid = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    assert (x[:, 0].quantile(grid) - x0[:, 0].quantile(grid)).abs().mean() < 0.05


@each
def test_the_losses_are_least_at_the_exact_functions(name: str):
    """The slope of each mean loss in a scale of its function is 0 at the exact one, and not at another."""
    n, curve = 60_000, interpolant(name, gamma=0.7)
    pair = Pair(curve)
    (x0, x1), g = pair.draw(n), torch.Generator().manual_seed(5)
    t, z = 0.05 + 0.9 * torch.rand(n, generator=g).double(), torch.randn(n, 1, generator=g).double()
    x = curve.between(x0, x1, t, z)
    targets = (pair.velocity(x, t), curve.rate(x0, x1, t, z)), (pair.denoiser(x, t), z)
    for function, target in targets:
        for test in (function, x, torch.sin(3 * x)):  # E[(f − target) h(x)] = 0 for every h
            product = (function - target) * test
            assert abs(product.mean().item()) < 4 * product.std().item() / math.sqrt(n)
    moved, cleaned = interpolant_losses(curve, pair.velocity, pair.denoiser, x0, x1, t, z)
    off, worse = interpolant_losses(curve, lambda x, t: 1.2 * pair.velocity(x, t), lambda x, t: 1.2
                                    * pair.denoiser(x, t), x0, x1, t, z)  # fmt: skip
    assert moved.mean() < off.mean()
    assert cleaned.mean() < worse.mean()


def test_with_a_normal_end_and_no_gamma_it_is_the_flow_process():
    target = sk.targets.GaussianMixture(torch.tensor([[-1.0], [1.0]]).double(), 0.3)
    flow, curve = sk.Flow(), interpolant("linear", gamma=0.0)
    model, g = target.model(flow), torch.Generator().manual_seed(0)
    x0, x1 = target.sample(9), torch.randn(9, 1, generator=g, dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    x = curve.between(x0, x1, t, x1)
    assert torch.allclose(x, flow.perturb(x0, t, x1))
    assert torch.allclose(curve.rate(x0, x1, t, x1), x1 - x0)
    start = flow.sigma(flow.t_max) * x1
    flown = follow(lambda x, t: model.predict("flow", x, t), start, flow.t_max, flow.t_min, rtol=1e-8, atol=1e-8)
    assert torch.allclose(flown, sk.ode.decode(model, start, rtol=1e-8, atol=1e-8), atol=1e-5)


def test_bad_input():
    with pytest.raises(ValueError, match="did you mean 'linear'"):
        interpolant("liner")
    with pytest.raises(ValueError, match="gamma=-1"):
        interpolant("linear", gamma=-1)
    zeros, t = torch.zeros(3, 2), torch.zeros(3)
    with pytest.raises(ValueError, match="x1 and z need that of x0"):
        interpolant_losses(interpolant("linear"), lambda x, t: x, None, zeros, zeros[:2], t, zeros)


@pytest.mark.parametrize(("name", "gamma"), [("linear", 2**0.5), ("trigonometric", 0.0)])
def test_with_a_normal_end_it_is_a_process(name: str, gamma: float):
    check_process(InterpolantProcess(interpolant(name, gamma=gamma)))


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_its_velocity_alone_drives_every_solver(gamma: float, monkeypatch: pytest.MonkeyPatch):
    """The exact b of N(m, s²) to N(0, 1) by solvers of the registry: the exact Gaussians, and ``follow``'s ODE."""
    monkeypatch.setattr(f"{__name__}.M1", 0.0)
    monkeypatch.setattr(f"{__name__}.S1", 1.0)
    pair = Pair(interpolant("linear", gamma=gamma), rho=0.0)
    process = InterpolantProcess(pair.curve)
    target = sk.targets.Gaussian(torch.tensor([M0]).double(), torch.tensor([[S0**2]]).double())
    model, t = sk.ScoreModel(pair.velocity, process, "flow"), torch.linspace(0.1, 0.9, 5).double()
    x = torch.linspace(-2, 2, 5).double()[:, None]
    torch.testing.assert_close(model.score(x, t), target.score(x, t, process))
    if gamma:  # η of the interpolant is another network's, and the same score
        torch.testing.assert_close(model.score(x, t), -pair.denoiser(x, t) / pair.curve.gamma(t)[:, None])
    start = process.prior_std * x
    exact = target.flow_map(start, process.t_max, process.t_min, process)
    out = sk.sample(model, (5, 1), solver="dpmpp-2m", grid="logsnr", steps=120, final="none", start=start).x
    assert (out - exact).abs().max() < 1e-3
    assert (follow(pair.velocity, start, process.t_max, process.t_min) - exact).abs().max() < 1e-3
    x = sk.sample(model, (4000, 1), solver="euler-maruyama", grid="time", steps=100, seed=0, dtype=torch.float64).x
    assert x.mean().item() == pytest.approx(M0, abs=0.03)
    assert x.std().item() == pytest.approx(S0, rel=0.05)


def test_a_process_of_a_curve_that_turns_back_is_refused():
    turning = Interpolant(lambda t: 1 - t, lambda t: t, lambda t: 30 * torch.sin(torch.pi * t) ** 2)
    with pytest.raises(ValueError, match=r"curve: .* must fall"):
        InterpolantProcess(turning)
    with pytest.raises(ValueError, match="t_max=1"):
        InterpolantProcess(interpolant("linear"), t_max=1.0)


def test_the_velocity_is_asked_for_between_the_ends_alone():
    asked = list[float]()

    def slow(x: Tensor, t: Tensor) -> Tensor:  # so slow that a first step by its size would leave the range
        asked.extend(t.tolist())
        return 1e-3 * x

    follow(slow, torch.ones(2, 1), 1.0, 0.0)
    follow(slow, torch.ones(2, 1), 0.2, 0.7)
    assert min(asked) >= 0
    assert max(asked) <= 1


def test_networks_evaluate_in_evaluation_mode_and_go_back():
    dropout, x = torch.nn.Sequential(torch.nn.Dropout(0.5)), torch.ones(50, 1)

    def net(x: Tensor, t: Tensor) -> Tensor:
        return dropout(x)

    for ended in (follow(net, x), diffuse(interpolant("linear"), net, net, x, 0.0)):
        assert (ended - ended[0]).abs().max() < 1e-6
    assert dropout.training


def test_times_stay_precise_where_states_are_not():
    dtypes = set[torch.dtype]()

    def net(x: Tensor, t: Tensor) -> Tensor:
        dtypes.update((x.dtype, t.dtype))
        return x

    x = torch.ones(3, 1, dtype=torch.bfloat16)
    ended = diffuse(interpolant("linear"), net, net, x, 0.0, steps=1000), follow(net, x)
    assert dtypes == {torch.bfloat16, torch.float32}
    for one in ended:
        assert one.dtype == torch.bfloat16
        assert (one.float() - math.exp(-1)).abs().max() < 0.01


def test_a_level_may_be_a_number():
    curve, x = interpolant("linear"), torch.ones(3, 1)
    one = diffuse(curve, lambda x, t: x, lambda x, t: x, x, 0.2, steps=5)
    assert torch.equal(one, diffuse(curve, lambda x, t: x, lambda x, t: x, x, lambda t: 0.2 + 0 * t, steps=5))
    assert torch.equal(follow(lambda x, t: x, x, 0.5, 0.5), x)


def test_a_curve_that_learns_has_its_gradient():
    scale = torch.tensor(1.0, requires_grad=True)
    curve = Interpolant(lambda t: 1 - t, lambda t: t, lambda t: scale * t * (1 - t))
    one = torch.ones(1, 1)
    curve.rate(one, one, torch.tensor([0.3]), one).sum().backward()
    assert scale.grad == pytest.approx(1 - 2 * 0.3)


def test_what_would_be_wrong_without_a_word_is_refused():
    curve, x, t = interpolant("linear"), torch.ones(3, 2), torch.full((3,), 0.5)

    def narrow(x: Tensor, t: Tensor) -> Tensor:  # would be spread over both columns
        return x[:, :1]

    def net(x: Tensor, t: Tensor) -> Tensor:
        return x

    for call in (
        lambda: follow(narrow, x),
        lambda: diffuse(curve, narrow, net, x, 0.1),
        lambda: interpolant_losses(curve, narrow, None, x, x, t, x),
    ):
        with pytest.raises(ValueError, match=r"^velocity returned shape \[3, 1\]"):
            call()
    with pytest.raises(ValueError, match=r"^denoiser returned"):
        diffuse(curve, net, narrow, x, 0.1)
    with pytest.raises(ValueError, match="where gamma is 0"):
        diffuse(interpolant("linear", gamma=0.0), net, net, x, 0.1)
    with pytest.raises(ValueError, match=r"noise_level is -0\.1"):
        diffuse(curve, net, net, x, lambda t: -0.1 + 0 * t)
    with pytest.raises(ValueError, match=r"velocity: the ODE from start=1\.0 did not get to end=0\.0"):
        follow(lambda x, t: x * torch.nan, x)
