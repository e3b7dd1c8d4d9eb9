"""Velocity networks of flow_matching and torchcfm: (x=, t=) and (t, x), the data at t = 1, against the libraries."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchdiffeq import odeint

import sdekit as sk
from sdekit.interop import flow_matching, torchcfm

F64 = torch.float64


class Velocity(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(2, 2, generator=generator) / 2)
        self.drop = nn.Dropout(0.5)

    def velocity(self, x: torch.Tensor, t: torch.Tensor, shift: float | torch.Tensor = 0.0) -> torch.Tensor:
        return self.drop(torch.tanh(x @ self.weight + torch.sin(4 * t)[:, None] + shift))


class ByName(Velocity):
    def forward(self, *, x: torch.Tensor, t: torch.Tensor, **extras: torch.Tensor) -> torch.Tensor:
        return self.velocity(x, t.expand(len(x)), **extras)


class TimeFirst(Velocity):
    def forward(self, t: torch.Tensor, x: torch.Tensor, shift: float | torch.Tensor = 0.0) -> torch.Tensor:
        return self.velocity(x, t.expand(len(x)), shift)


def noise(n: int = 8) -> torch.Tensor:
    return sk.noise.normal(3, 0, torch.arange(n), (2,), F64)


SHIFT = torch.linspace(-1, 1, 8, dtype=F64)[:, None]
PROCESS = sk.Flow(1e-6, 1 - 1e-6)


@pytest.mark.parametrize(
    ("wrap", "net", "call"),
    [
        (flow_matching.wrap, ByName, lambda net, x, t: net(x=x, t=t, shift=SHIFT)),
        (torchcfm.wrap, TimeFirst, lambda net, x, t: net(t, x, SHIFT)),
    ],
)
def test_a_velocity_is_the_librarys_and_leads_where_its_ode_does(wrap, net, call):
    net = net().double()
    model, x = wrap(net), noise()
    net.eval()
    for t in (0.001, 0.3, 0.9):
        truth = call(net, x, torch.tensor(1 - t, dtype=F64))
        assert torch.equal(model.predict("flow-to-data", x, t, shift=SHIFT), truth)
        assert torch.allclose(model.x0(x, t, shift=SHIFT), x + t * truth, rtol=1e-12, atol=1e-12)
    net.train()  # runs put it into evaluation mode
    model.process = PROCESS
    start = noise() * PROCESS.prior_std
    method = {"method": "dopri5", "rtol": 1e-10, "atol": 1e-12}
    found = sk.decode(model, start, shift=SHIFT, **method)
    net.eval()
    truth = odeint(
        lambda t, x: call(net, x, t), start, torch.tensor([1e-6, 1 - 1e-6], dtype=F64), rtol=1e-10, atol=1e-12
    )
    assert torch.allclose(found, truth[-1], rtol=0, atol=1e-8)


@pytest.mark.parametrize(("wrap", "net"), [(flow_matching.wrap, ByName), (torchcfm.wrap, TimeFirst)])
def test_euler_in_their_clock_is_ddim_here(wrap, net):
    """x + Δ v is what both libraries' Euler does, and on the straight path DDIM."""
    net = net().double().eval()
    times = torch.linspace(0.001, 0.999, 9, dtype=F64)
    x = noise()
    for s, t in zip(times, times[1:]):
        x = x + (t - s) * net.velocity(x, s.expand(8))
    grid = (1 - times).tolist()
    found = [sk.sample(wrap(net), (8, 2), solver="ddim", grid=grid, start=noise(), final="none").x for _ in range(2)]
    assert torch.allclose(found[0], x, rtol=0, atol=1e-10)
    assert torch.equal(*found)


def test_flow_matchings_own_solver_agrees():
    solver = pytest.importorskip("flow_matching.solver")
    wrapper = pytest.importorskip("flow_matching.utils").ModelWrapper

    class Wrapped(wrapper):
        def forward(self, x, t, **extras):
            return self.model(x=x, t=t, **extras)

    net = Wrapped(ByName().double().eval())
    grid = torch.linspace(0.001, 0.999, 9, dtype=F64)
    own = solver.ODESolver(velocity_model=net)
    truth = own.sample(noise(), step_size=None, method="euler", time_grid=grid, shift=SHIFT)
    found = sk.sample(
        flow_matching.wrap(net),
        (8, 2),
        solver="ddim",
        grid=(1 - grid).tolist(),
        start=noise(),
        final="none",
        shift=SHIFT,
    )
    assert torch.allclose(found.x, truth, rtol=0, atol=1e-8)


def test_flow_matchings_vp_path_is_vp():
    paths = pytest.importorskip("flow_matching.path.scheduler")
    process, scheduler = sk.VP(), paths.VPScheduler()
    for t in (0.1, 0.5, 0.9):
        theirs = scheduler(torch.tensor(1 - t, dtype=F64))
        assert process.alpha(t) == pytest.approx(theirs.alpha_t.item(), rel=1e-9)
        assert process.sigma(t) == pytest.approx(theirs.sigma_t.item(), rel=1e-9)
        # their rates are in their clock: those of flow-to-data
        assert -process.alpha_rate(t) == pytest.approx(theirs.d_alpha_t.item(), rel=1e-9)
        assert -process.sigma_rate(t) == pytest.approx(theirs.d_sigma_t.item(), rel=1e-9)
    model = flow_matching.wrap(ByName().double().eval(), process=process)
    x, velocity = noise(), ByName().double().eval().velocity(noise(), torch.full((8,), 0.6, dtype=F64))
    a, b = process.alpha_rate(0.4), process.sigma_rate(0.4)
    truth = (-velocity * process.sigma(0.4) - b * x) / (a * process.sigma(0.4) - b * process.alpha(0.4))
    assert torch.allclose(model.x0(x, 0.4), truth, rtol=1e-9)


def test_torchcfms_own_networks():
    models = pytest.importorskip("torchcfm.models.models")
    torch.manual_seed(0)
    mlp = models.MLP(dim=2, time_varying=True, w=8)

    class torch_wrapper(nn.Module):  # noqa: N801 - torchcfm.utils has it, and needs torchdyn
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, t, x, *args, **kwargs):
            return self.model(torch.cat([x, t.repeat(x.shape[0])[:, None]], 1))

    x = noise().float()
    truth = torch_wrapper(mlp)(torch.tensor(0.7), x)
    for net in (mlp, torch_wrapper(mlp)):
        assert torch.equal(torchcfm.wrap(net).predict("flow-to-data", x, 0.3), truth)
        each = torchcfm.wrap(net).predict("flow-to-data", x, torch.linspace(0.1, 0.9, 8))
        rows = [torch_wrapper(mlp)(1 - t, x[i : i + 1]) for i, t in enumerate(torch.linspace(0.1, 0.9, 8))]
        assert torch.allclose(each, torch.cat(rows), atol=1e-6)


def test_torchcfms_unet_takes_its_label():
    unet = pytest.importorskip("torchcfm.models.unet.unet")
    torch.manual_seed(0)
    net = unet.UNetModelWrapper(
        dim=(1, 8, 8), num_channels=32, num_res_blocks=1, channel_mult=(1, 1), num_classes=3, class_cond=True
    ).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02)  # its last layer begins at 0
        x, y = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 2])
        truth = net(torch.tensor(0.7), x, y)
        assert truth.abs().max() > 0
        model = torchcfm.wrap(net)
        assert torch.equal(model.predict("flow-to-data", x, 0.3, y=y), truth)
        assert sk.sample(model, (2, 1, 8, 8), nfe=3, seed=0, y=y).x.isfinite().all()


def test_one_time_for_the_whole_batch_is_kept_to():
    model, x = torchcfm.wrap(TimeFirst().double().eval(), one_time=True), noise()
    assert torch.equal(model.flow(x, 0.3), torchcfm.wrap(TimeFirst().double().eval()).flow(x, 0.3))
    assert sk.sample(model, (8, 2), nfe=5, seed=0).x.isfinite().all()
    with pytest.raises(ValueError, match="one time for the whole batch"):
        model.flow(noise(), torch.linspace(0.1, 0.9, 8, dtype=F64))
    with pytest.raises(ValueError, match="one time for the whole batch"):
        sk.log_prob(model, noise())


def test_the_other_order_and_other_shapes_are_refused():
    class Swapped(nn.Module):
        def forward(self, x, t):
            return x

    with pytest.raises(ValueError, match=r"it takes \(x, t\), and torchcfm's take \(t, x\)"):
        torchcfm.wrap(Swapped())
    with pytest.raises(ValueError, match=r"shape \[8, 1\] for x of shape \[8, 2\]"):
        torchcfm.wrap(lambda t, x: x[:, :1]).flow(noise(), 0.5)
    with pytest.raises(ValueError, match=r"shape \[8, 1\] for x of shape \[8, 2\]"):
        flow_matching.wrap(lambda x, t: x[:, :1]).flow(noise(), 0.5)


@pytest.mark.parametrize(("wrap", "net"), [(flow_matching.wrap, ByName), (torchcfm.wrap, TimeFirst)])
def test_networks_in_bf16_run(wrap, net):
    exact, model = wrap(net().eval()), wrap(net().bfloat16().eval())
    x = noise().float()
    assert (model.predict("flow-to-data", x, 0.3) - exact.predict("flow-to-data", x, 0.3)).abs().max() < 0.02
    assert sk.sample(model, (4, 2), nfe=4, seed=0).x.isfinite().all()
