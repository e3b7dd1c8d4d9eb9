"""The simulated accelerator: what it computes, refuses and counts; and that the package runs on it unread."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from strategies import PREDICTIONS, PROCESSES
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torchdiffeq import odeint

from sdekit import ScoreModel
from sdekit.model import TIMES
from sdekit.noise import normal
from sdekit.process import DiscreteVP, Process
from sdekit.testing import simgpu


@pytest.fixture
def gpu() -> Iterator[simgpu.Simulation]:
    with simgpu.device() as gpu:
        yield gpu


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def same(on_device: Tensor, on_cpu: Tensor) -> bool:
    """Bit for bit, with the first on the device, the second not."""
    assert on_device.device == torch.device("simgpu:0"), on_device.device
    assert on_cpu.device.type == "cpu"
    assert on_device.dtype == on_cpu.dtype
    assert on_device.stride() == on_cpu.stride()
    return torch.equal(on_device.detach().cpu(), on_cpu.detach())


def _in_place(x: Tensor) -> Tensor:
    y = x.clone()
    row = y[1]
    row.add_(1.0).mul_(x[0])
    y[:, 2:] = -3.0
    y[0].copy_(x[2])
    return y.t().contiguous().view(-1)


def _indexed(x: Tensor) -> Tensor:
    order = torch.tensor([2, 0, 1], device=x.device)
    y = x[order, 1:].clone()
    y[order[:2]] += x[:2, 1:]
    return y.gather(0, order[:, None])


def _hash(x: Tensor) -> Tensor:
    words = torch.arange(-5, 40, device=x.device) * -7046029254386353131
    return (words ^ ((words >> 30) & ((1 << 34) - 1))) << 3


def _network(x: Tensor) -> Tensor:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(64, 3))
    net = copy.deepcopy(net.to(x.device)).double()
    return copy.deepcopy(net)(x.new_ones(3, 2, 4, 4).double())


def _trained(x: Tensor) -> Tensor:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 1)).to(x.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        checkpoint(net, x, use_reentrant=False).square().mean().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
    return torch.cat([parameter.flatten() for parameter in net.parameters()])


def _attended(x: Tensor) -> Tensor:
    q = torch.stack([x, 2 * x, x.flip(0)]).unsqueeze(1).requires_grad_()
    late = torch.ones(3, 3, dtype=torch.bool, device=x.device).tril()
    attend = functional.scaled_dot_product_attention
    out = attend(q, q, q) + attend(q, q, q, attn_mask=late) + attend(q, q, q, is_causal=True)
    return torch.autograd.grad(out.square().sum(), q)[0] + out.detach()


def _conv_gradient(x: Tensor) -> Tensor:
    image, weight = x.reshape(1, 1, 3, 4).requires_grad_(), x[:, :3].reshape(1, 1, 3, 3).clone().requires_grad_()
    loss = functional.conv2d(image, weight, padding=1).cos().sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, (image, weight))])


def _field(x: Tensor) -> Tensor:
    return (x**3).sin() @ x.T


def _ode(x: Tensor) -> Tensor:
    t = torch.linspace(0.0, 1.0, 4, device=x.device)
    solution = odeint(lambda t, y: -y * t + y.sin(), x, t, method="rk4")
    assert isinstance(solution, Tensor)
    return solution


COMPUTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mixed with numbers": lambda x: torch.where(x > 0, x, 2.0) * torch.tensor(3.0) - 1,
    "full": lambda x: torch.full((2, 3), 1.5, device=x.device),
    "arange": lambda x: torch.arange(5, device=x.device),
    "tensor": lambda x: torch.tensor([[1.0, 2.0], [3.0, 4.0]], device=x.device).T,
    "zeros_like": lambda x: torch.zeros_like(x, dtype=torch.int64),
    "double": lambda x: x.to(torch.float64),
    "half": lambda x: x.to(torch.bfloat16) * 3,
    "expand": lambda x: x[:, None].expand(3, 2, 4),
    "in place, through views": _in_place,
    "indexing": _indexed,
    "fill under a mask": lambda x: x.clone().masked_fill_(x > 0, 7.0),
    "out": lambda x: torch.add(x, x, out=torch.empty_like(x)),
    "int64 hash": _hash,
    "searchsorted": lambda x: torch.searchsorted(torch.linspace(-2, 2, 9, device=x.device), x),
    "attention": _attended,
    "convolution": _conv_gradient,
    "module, deep copies, double": _network,
    "backward, checkpoint, optimiser": _trained,
    "vjp": lambda x: torch.func.vjp(_field, x)[1](_field(x))[0],
    "jvp": lambda x: torch.func.jvp(_field, (x,), (x.cos(),))[1],
    "vmap of grad": lambda x: torch.func.vmap(torch.func.grad(lambda row: row.exp().prod()))(x),
    "double backward": lambda x: torch.func.hessian(lambda row: row.exp().prod())(x[0]),
    "complex": lambda x: torch.complex(x, x.flip(0)).conj().mul(1j).cumsum(0),
    "linear algebra": lambda x: torch.einsum("ij,kj->ik", x, x).logsumexp(1) + torch.cdist(x, x)[0],
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own, in jvp
@pytest.mark.parametrize("inference", [False, True], ids=["eager", "inference mode"])
@pytest.mark.parametrize("name", COMPUTATIONS)
def test_computes_what_the_cpu_computes_and_reads_nothing(name: str, inference: bool, gpu: simgpu.Simulation) -> None:
    compute, x = COMPUTATIONS[name], numbers(3, 4)
    if inference and name in ("attention", "convolution", "backward, checkpoint, optimiser"):
        pytest.skip("needs gradients")
    with torch.inference_mode(inference):
        there = x.to(gpu.device)
        with gpu.forbid_host_reads():
            result = compute(there)
        assert gpu.host_reads == 0
        assert same(result, compute(x))


def test_torchdiffeq_runs_and_its_reads_are_counted(gpu: simgpu.Simulation) -> None:
    x = numbers(3, 4)
    result = _ode(x.to("simgpu"))
    assert set(gpu.reads) == {"aten._local_scalar_dense"}  # it compares its times on the host
    assert same(result, _ode(x))


def test_parameters_are_leaves_on_the_device(gpu: simgpu.Simulation) -> None:
    net = nn.Linear(4, 3)
    there = copy.deepcopy(copy.deepcopy(net).to(gpu.device))
    assert all(isinstance(p, nn.Parameter) and p.is_leaf and p.requires_grad for p in there.parameters())
    assert {p.device for p in there.parameters()} == {gpu.device}
    x = numbers(5, 4)
    there(x.to("simgpu")).square().sum().backward()
    net(x).square().sum().backward()
    assert net.weight.grad is not None
    assert there.weight.grad is not None
    assert same(there.weight.grad, net.weight.grad)
    there.weight.data = torch.zeros(3, 4, device="simgpu")
    assert same(there(x.to("simgpu")), net.bias.expand(5, 3).contiguous())
    back = there.to("cpu")
    assert type(back.weight) is nn.Parameter
    assert torch.equal(back.weight, torch.zeros(3, 4))
    there = there.to("simgpu")
    there.load_state_dict(net.state_dict())
    assert same(there.weight, net.weight)


READS: dict[str, tuple[str, Callable[[Tensor], Any]]] = {
    "item": ("_local_scalar_dense", lambda x: x[0, 0].item()),
    "float": ("_local_scalar_dense", lambda x: float(x[0, 0])),
    "if": ("_local_scalar_dense", lambda x: bool((x > 0).any())),
    "format": ("_to_copy", lambda x: f"{x[0, 0]:.3f}"),
    "print": ("_to_copy", repr),
    "tolist": ("_to_copy", lambda x: x.tolist()),
    "cpu": ("_to_copy", lambda x: x.cpu()),
    "to": ("_to_copy", lambda x: x.to("cpu", torch.float64)),
    "copy_": ("copy_", lambda x: torch.empty(3, 4).copy_(x)),
    "tensor of numbers": ("_local_scalar_dense", lambda x: torch.tensor([x[0, 0]])),
    "nonzero": ("nonzero", lambda x: x.nonzero()),
    "where": ("nonzero", lambda x: torch.where(x > 0)),
    "masked_select": ("masked_select", lambda x: x.masked_select(x > 0)),
    "mask": ("index", lambda x: x[x > 0]),
    "values under a mask": ("index_put_", lambda x: x.clone().__setitem__(x >= x.min(), x.flatten())),
    "unique": ("_unique2", lambda x: x.unique()),
    "bincount": ("bincount", lambda x: (x > 0).long().flatten().bincount()),
    "repeat_interleave": ("repeat_interleave", lambda x: x.repeat_interleave((x[:, 0] > 0).long(), dim=0)),
    "equal": ("equal", lambda x: torch.equal(x, x)),
    "allclose": ("allclose", lambda x: torch.allclose(x, x)),
    "solve": ("_linalg_check_errors", lambda x: torch.linalg.inv(x[:, :3])),
}


@pytest.mark.parametrize("name", READS)
def test_a_host_read_is_counted_and_can_be_forbidden(name: str, gpu: simgpu.Simulation) -> None:
    operation, read = READS[name]
    x = numbers(3, 4).to(gpu.device)
    read(x)
    assert gpu.host_reads > 0
    assert set(gpu.reads) == {f"aten.{operation}"}
    gpu.reset()
    assert gpu.host_reads == 0
    with pytest.raises(simgpu.HostReadError, match=f"aten.{operation} reads from simgpu"), gpu.forbid_host_reads():
        read(x)
    read(x)  # allowed again
    with torch.inference_mode(), pytest.raises(simgpu.HostReadError), gpu.forbid_host_reads():
        read(x)


def test_reads_of_the_cpu_do_not_count(gpu: simgpu.Simulation) -> None:
    x = numbers(3, 4)
    with gpu.forbid_host_reads():
        assert x[x > 0].sum().item() > 0
        assert gpu.uploads == []
        x.to(gpu.device)
        torch.tensor([1.0], device=gpu.device)
        torch.zeros(3, 4, device=gpu.device).copy_(x)
    assert gpu.uploads == ["aten._to_copy", "aten.copy_", "aten.copy_"]


class _ReadsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * grads[0].sum().item()


def test_a_read_in_a_backward_pass_is_raised_after_it(gpu: simgpu.Simulation) -> None:
    x = torch.ones(3, device=gpu.device, requires_grad=True)
    with pytest.raises(simgpu.HostReadError), gpu.forbid_host_reads():
        _ReadsInBackward.apply(x).sum().backward()
    # in a node of torch's own, where raising at once would end the process
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved.cpu(), lambda saved: saved):
        y = x.sin()
    y.sum().backward()
    with pytest.raises(RuntimeError, match=r"aten.cos|aten.mul: a CPU tensor of shape \[3\]"):
        x.sum()


MIXES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "add": lambda there, here: there + here,
    "in place": lambda there, here: there.add_(here),
    "into the CPU": lambda there, here: here.add_(there),
    "0-d into the CPU": lambda there, here: here[0, 0].add_(there[0, 0]),
    "cat": lambda there, here: torch.cat([there, here]),
    "stack of numbers": lambda there, here: torch.stack([there[0, 0], here[0, 0]]),
    "index": lambda there, here: there[torch.tensor([0])],
    "index of the CPU": lambda there, here: here[torch.tensor([0], device="simgpu")],
    "where": lambda there, here: torch.where(there > 0, there, here),
    "network": lambda there, here: nn.Linear(4, 1).to("simgpu")(here),
    "network left behind": lambda there, here: nn.Linear(4, 1)(there),
    "generator": lambda there, here: torch.randn(2, device="simgpu", generator=torch.Generator()),
}


@pytest.mark.parametrize("inference", [False, True], ids=["eager", "inference mode"])
@pytest.mark.parametrize("name", MIXES)
def test_raises_where_the_cpu_meets_the_device(name: str, inference: bool, gpu: simgpu.Simulation) -> None:
    with torch.inference_mode(inference):
        here = numbers(3, 4)
        there = here.to(gpu.device)
        with pytest.raises(RuntimeError, match=r"a (CPU tensor of shape|torch.Generator of the CPU).*same device"):
            MIXES[name](there, here)


def test_what_it_cannot_do_raises(gpu: simgpu.Simulation) -> None:
    x = torch.zeros(1, 3, device=gpu.device)
    with pytest.raises(NotImplementedError, match="shape in place"):
        x.squeeze_(0)
    with pytest.raises(NotImplementedError):
        torch.Generator(device="simgpu")
    with pytest.raises(RuntimeError, match="numpy"):
        x.numpy()


def test_random_numbers_are_a_stream_of_its_own(gpu: simgpu.Simulation) -> None:
    def draw(device: str) -> list[Tensor]:
        torch.manual_seed(7)
        return [torch.randn(1000, device=device), functional.dropout(torch.ones(1000, device=device))]

    there, again, here = draw("simgpu"), draw("simgpu"), draw("cpu")
    torch.randn(3, device="simgpu")
    after_the_device, cpu = torch.randn(3), (draw("cpu"), torch.randn(3))[1]
    assert all(torch.equal(a, b) for a, b in zip(there, again))
    assert not any(torch.equal(a.cpu(), b) for a, b in zip(there, here))
    assert torch.equal(after_the_device, cpu)  # the device took nothing from the CPU's stream
    assert abs(there[0].mean().item()) < 0.15
    assert abs(there[0].std().item() - 1) < 0.15


def test_tensors_outlive_the_block() -> None:
    with simgpu.device() as gpu:
        x = torch.arange(3, device=gpu.device)
    assert (x + 1).tolist() == [1, 2, 3]
    assert gpu.host_reads == 0


FORMULAS = [
    "log_alpha", "log_sigma", "drift_rate", "diffusion", "alpha", "sigma", "half_log_snr", "alpha_rate", "sigma_rate",
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", PROCESSES)
def test_processes(name: str, dtype: torch.dtype, gpu: simgpu.Simulation) -> None:
    process = PROCESSES[name]
    here = torch.linspace(process.t_min, process.t_max, 17, dtype=dtype)
    x, eps = numbers(17, 2, 3, dtype=dtype), numbers(17, 2, 3, seed=1, dtype=dtype)

    def compute(t: Tensor, x: Tensor, eps: Tensor) -> list[Tensor]:
        values = [getattr(process, formula)(t) for formula in FORMULAS]
        reverse = process.reverse(lambda x, t: -x, noise_level=0.5)
        values += [process.t_of_half_log_snr(process.half_log_snr(t)), reverse.drift(x, t), reverse.diffusion(t)]
        values += [process.drift(x, t), *process.marginal(x, t), process.perturb(x, t, eps)]
        return [*values, process.perturb(x, t[3], eps), *process.transition(t[:-1], t[1:])]

    there = [each.to(gpu.device) for each in (here, x, eps)]
    with gpu.forbid_host_reads():
        results = compute(*there)
    assert all(same(a, b.contiguous()) for a, b in zip(results, compute(here, x, eps), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_noise(dtype: torch.dtype, gpu: simgpu.Simulation) -> None:
    with gpu.forbid_host_reads():
        z = normal(3, 1, torch.arange(4, 9, device=gpu.device), (3, 5), dtype)
    assert gpu.uploads == []
    assert same(z, normal(3, 1, torch.arange(4, 9), (3, 5), dtype))


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 3))

    def forward(self, x: Tensor, t: Tensor, shift: Tensor) -> Tensor:
        return self.layers(torch.cat([x, t[:, None].sin()], 1)) + shift


TIMES_OF_A_CALL = {
    "float": lambda process, device: 0.3 * process.t_max,
    "0-d": lambda process, device: torch.tensor(0.3 * process.t_max, device=device),
    "batch": lambda process, device: process.t_max * torch.linspace(0.2, 0.9, 5, device=device),
}


def agrees(process: Process, source: str, target: str, time: str | None, kind: str, gpu: simgpu.Simulation) -> bool:
    """One prediction of one network, asked on the device without a read, and on the CPU."""
    here = ScoreModel(_Net(), process, predicts=source, time=time)
    there = ScoreModel(_Net().to(gpu.device), process, predicts=source, time=time)
    assert there.device == gpu.device
    x, shift, t = numbers(5, 3), numbers(3, seed=1), TIMES_OF_A_CALL[kind](process, gpu.device)
    placed = x.to(gpu.device), shift.to(gpu.device)
    with gpu.forbid_host_reads():
        result = there.predict(target, placed[0], t, shift=placed[1])
    return same(result, here.predict(target, x, TIMES_OF_A_CALL[kind](process, "cpu"), shift=shift))


@pytest.mark.parametrize("kind", TIMES_OF_A_CALL)
@pytest.mark.parametrize("name", PROCESSES)
def test_every_prediction(name: str, kind: str, gpu: simgpu.Simulation) -> None:
    for source in PREDICTIONS:
        for target in PREDICTIONS:
            assert agrees(PROCESSES[name], source, target, None, kind, gpu), (source, target)


@pytest.mark.parametrize("kind", TIMES_OF_A_CALL)
@pytest.mark.parametrize("time", TIMES)
def test_every_way_to_tell_the_time(time: str, kind: str, gpu: simgpu.Simulation) -> None:
    for name, process in PROCESSES.items():
        if time not in ("index", "entry") or isinstance(process, DiscreteVP):
            assert agrees(process, "eps", "x0", time, kind, gpu), name


def test_a_model_that_reads_is_caught(gpu: simgpu.Simulation) -> None:
    model = ScoreModel(_Net().to(gpu.device), PROCESSES["VP"], check_finite=True)
    x = torch.zeros(5, 3, device=gpu.device)
    with pytest.raises(simgpu.HostReadError), gpu.forbid_host_reads():
        model.score(x, 0.5, shift=x[0])
