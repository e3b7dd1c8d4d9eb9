"""Estimators of the trace against matrices whose trace and variance are known."""

import pytest
import torch

from sdekit.divergence import DISTRIBUTIONS, divergence, draw_probes
from sdekit.testing import simgpu

# torch loads its forward-mode rules through a function it has itself deprecated
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script.*:DeprecationWarning")

N = 40_000


def matrix(size=6, seed=0):
    return torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


WAVES = matrix()


def linear(jac):
    return lambda x: (x.flatten(1) @ jac.T).reshape(x.shape)


def wavy(x):
    """A non-linear map that couples every element: f_i = sin(Σ_j a_ij x_j) x_i."""
    return torch.sin(x.flatten(1) @ WAVES.T).reshape(x.shape) * x


def wavy_trace(x):
    full = torch.func.vmap(torch.func.jacrev(lambda row: wavy(row[None])[0]))(x)
    return torch.stack([jac.reshape(x[0].numel(), -1).trace() for jac in full])


def estimates(jac, distribution, count=N):
    x = torch.zeros(count, len(jac), dtype=torch.float64)  # one probe for each of many samples
    return divergence(linear(jac), x, draw_probes(x, 1, distribution))[1][:, 0]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_hutchinson_has_the_known_mean_and_variance(distribution):
    jac, size = matrix(), 6
    sym = (jac + jac.T) / 2
    squares, off = sym.square().sum(), sym.square().sum() - sym.diagonal().square().sum()
    deviation = sym - torch.eye(size) * sym.trace() / size
    variance = {  # of vᵀJv; on the sphere of radius √D, E[v_i² v_j²] = D/(D + 2)
        "rademacher": 2 * off,
        "gaussian": 2 * squares,
        "sphere": 2 * size / (size + 2) * deviation.square().sum(),
    }[distribution].item()
    found = estimates(jac, distribution)
    assert found.mean().item() == pytest.approx(jac.trace().item(), abs=4 * (variance / N) ** 0.5)
    assert found.var().item() == pytest.approx(variance, rel=0.06)


def test_rademacher_probes_are_exact_for_a_diagonal_jacobian_and_gaussian_ones_are_not():
    jac = torch.diag(torch.arange(1.0, 7.0).double())
    assert torch.allclose(estimates(jac, "rademacher", 50), jac.trace(), atol=1e-12)
    assert estimates(jac, "gaussian", 50).std() > 1


@pytest.mark.parametrize("mode", ["vjp", "jvp"])
@pytest.mark.parametrize("chunk_size", [None, 1, 5])
def test_exact_equals_the_full_jacobian(mode, chunk_size):
    x = torch.randn(3, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    value, trace = divergence(wavy, x, None, "exact", mode, chunk_size)
    assert torch.equal(value, wavy(x))
    assert torch.allclose(trace[:, 0], wavy_trace(x), rtol=1e-12)


@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace"])
def test_forward_and_reverse_mode_agree(method):
    """vᵀJv is one number whichever way it is made; the sketches see Jᵀ in reverse and jac in forward mode."""
    x = torch.randn(3, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    v = draw_probes(x, 3, "sphere")

    f = wavy if method == "hutchinson" else linear(matrix() + matrix().T)
    reverse, forward = (divergence(f, x, v, method, mode)[1] for mode in ("vjp", "jvp"))
    assert torch.allclose(reverse, forward, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("method", "probes"), [("hutch++", 6), ("xtrace", 3)])
@pytest.mark.parametrize("distribution", ["gaussian", "sphere"])
def test_sketching_estimators_are_unbiased(method, probes, distribution):
    jac = matrix()
    x = torch.zeros(8000, 6, dtype=torch.float64)
    found = divergence(linear(jac), x, draw_probes(x, probes, distribution), method)[1].mean(1)
    assert found.mean().item() == pytest.approx(jac.trace().item(), abs=4 * found.std().item() / 8000**0.5)


@pytest.mark.parametrize(("method", "probes"), [("hutch++", 9), ("xtrace", 4)])
def test_sketching_estimators_are_exact_for_a_jacobian_of_low_rank(method, probes):
    a = torch.randn(2, 20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    jac = a[0] @ a[1].T  # rank 3
    x = torch.zeros(5, 20, dtype=torch.float64)
    v = draw_probes(x, probes, "gaussian")
    if method == "xtrace":  # with m probes of rank m − 1 the sketch is singular: leave a little in the other directions
        jac = jac + 1e-9 * torch.eye(20)
    assert torch.allclose(divergence(linear(jac), x, v, method)[1], jac.trace(), atol=1e-5)


def test_xtrace_beats_hutchinson_where_the_spectrum_falls():
    turn = torch.linalg.qr(matrix(30))[0]
    jac = turn @ torch.diag(0.5 ** torch.arange(30.0, dtype=torch.float64)) @ turn.T
    x = torch.zeros(4000, 30, dtype=torch.float64)  # 400 have ratios of 1.9 to 2.2
    errors = {}
    for method, probes in (("hutchinson", 12), ("hutch++", 12), ("xtrace", 6)):  # 12 products each
        found = divergence(linear(jac), x, draw_probes(x, probes, "gaussian"), method)[1].mean(1)
        errors[method] = (found - jac.trace()).square().mean().sqrt().item()
    assert errors["xtrace"] < errors["hutch++"] / 2 < errors["hutchinson"] / 4


def test_one_evaluation_of_the_map():
    calls = []

    def f(x):
        calls.append(x.shape)
        return wavy(x)

    x = torch.ones(2, 6, dtype=torch.float64)
    for method, probes in (("hutchinson", 4), ("hutch++", 6), ("xtrace", 3)):
        divergence(f, x, draw_probes(x, probes), method)
        assert len(calls) == 1
        calls.clear()
    divergence(f, x, None, "exact", chunk_size=2)
    assert len(calls) == 1


def test_probes_of_a_sample_do_not_depend_on_the_batch():
    x = torch.zeros(5, 7)
    assert torch.equal(draw_probes(x, 3, seed=4)[:, 3:], draw_probes(x[3:], 3, seed=4, first=3))
    assert not torch.equal(draw_probes(x, 3, seed=4), draw_probes(x, 3, seed=5))


def test_gradient_through_an_estimate():
    x = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    for mode in ("vjp", "jvp"):
        (slope,) = torch.autograd.grad(divergence(wavy, x, None, "exact", mode)[1].sum(), x)
        step = 1e-6
        for i in range(6):
            e = torch.eye(6, dtype=torch.float64)[i] * step
            central = (wavy_trace(x.detach() + e) - wavy_trace(x.detach() - e)) / (2 * step)
            assert torch.allclose(slope[:, i], central, atol=1e-7)


def test_constant_map_has_no_divergence():
    x = torch.ones(2, 3)
    assert torch.equal(divergence(torch.ones_like, x, draw_probes(x, 2))[1], torch.zeros(2, 2))


def test_operation_without_forward_mode_is_named():
    class Distances(torch.nn.Module):
        def forward(self, x):
            return torch.cdist(x, x)

    x = torch.rand(2, 4, 4)
    with pytest.raises(ValueError, match=r"mode='jvp': _cdist\S* has no forward-mode derivative; use mode='vjp'"):
        divergence(Distances(), x, draw_probes(x, 1), mode="jvp")
    assert divergence(Distances(), x, draw_probes(x, 1), mode="vjp")[1].shape == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probes": 0}, "count=0: it must be a whole number from 1"),
        ({"probes": 2, "distribution": "rademacer"}, "did you mean 'rademacher'"),
        ({"probes": 4, "method": "hutch++"}, "multiple of 3"),
        ({"probes": 1, "method": "xtrace"}, "from 2 to D = 6"),
        ({"probes": 7, "method": "xtrace"}, "from 2 to D = 6"),
        ({"probes": 2, "method": "exact"}, "takes none"),
        ({"probes": 2, "method": "hutchison"}, "did you mean 'hutchinson'"),
        ({"probes": 2, "mode": "vpj"}, "did you mean 'vjp'"),
    ],
)
def test_bad_input(arguments, message):
    x = torch.zeros(2, 6, dtype=torch.float64)
    count, distribution = arguments.pop("probes"), arguments.pop("distribution", "rademacher")
    with pytest.raises(ValueError, match=message):
        divergence(wavy, x, draw_probes(x, count, distribution), **arguments)


@pytest.mark.parametrize(("method", "probes"), [("exact", None), ("hutchinson", 2), ("hutch++", 6), ("xtrace", 3)])
@pytest.mark.parametrize("mode", ["vjp", "jvp"])
def test_on_the_simulated_accelerator(method, probes, mode):
    jac = matrix().float()
    x = torch.linspace(-1, 1, 12).reshape(2, 6)
    here = divergence(lambda x: torch.tanh(x @ jac), x, draw_probes(x, probes) if probes else None, method, mode)
    with simgpu.device() as gpu:
        jac, x = jac.to(gpu.device), x.to(gpu.device)
        with gpu.forbid_host_reads():
            there = divergence(
                lambda x: torch.tanh(x @ jac), x, draw_probes(x, probes) if probes else None, method, mode
            )
        for a, b in zip(here, there):
            assert torch.equal(a, b.cpu())


class _Donated(torch.autograd.Function):
    """Refuses as torch's compiled backward passes do."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("This backward function was compiled with non-empty donated buffers which requires ...")


def test_a_compiled_network_that_keeps_no_graph_is_told_of_forward_mode():
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match="use mode='jvp'"):
        divergence(_Donated.apply, x, draw_probes(x, 1))
