"""The probability-flow ODE against closed-form flow maps, in every method, variable and direction."""

import math
import warnings

import pytest
import torch

import sdekit as sk
from sdekit.ode import STEPPERS, VARIABLES, decode, encode, flow, integrate, plan_between
from sdekit.solvers import get, names
from sdekit.testing import laws, simgpu

PROCESSES = [sk.VP(), sk.SubVP(), sk.VE(), sk.CosineVP(), sk.DiscreteVP(), sk.Flow()]
EVERY_PROCESS = pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
TOLERANT = [
    name
    for name, step in STEPPERS.items()
    if name == "per-sample" or not getattr(step, "keywords", {"fixed": 1})["fixed"]
]
EQUAL = [name for name in STEPPERS if name not in TOLERANT]
ORDERS = {"fixed": 5, "euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4, "explicit_adams": 4,
          "implicit_adams": 4, "fixed_adams": 4}  # fmt: skip
DETERMINISTIC = [name for name in names() if not get(name).stochastic]


def gaussian(size=4):
    root = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return sk.targets.Gaussian(torch.linspace(-1, 1, size).double(), root @ root.T / size)


def mixture():
    means = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return sk.targets.GaussianMixture(means, 0.3)


def at_t_min(target, process, n=5):
    return target.sample(n, t=process.t_min, process=process)


class Recorder:
    """A model that remembers every time at which it was called, as the network is told it."""

    def __init__(self, model):
        self.model, self.process, self.device, self.predicts = model, model.process, model.device, model.predicts
        self.net, self.nfe, self.times = model.net, 0, []

    def predict(self, kind, x, t, **conditions):
        self.nfe += 1
        self.times.append(torch.as_tensor(t).detach().expand(len(x)).clone())
        return self.model.predict(kind, x, t, **conditions)


@EVERY_PROCESS
@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("method", ["per-sample", "dopri5"])
def test_error_falls_with_the_tolerance_and_no_call_leaves_the_range(process, variable, method):
    if variable == "t" and isinstance(process, sk.DiscreteVP):
        pytest.skip("refused: see test_bad_input")
    target = gaussian()
    model = Recorder(target.model(process))
    x, ends = at_t_min(target, process), (process.t_min, process.t_max)
    scale = math.hypot(process.alpha(process.t_max), process.sigma(process.t_max))
    errors = []
    for tolerance in (1e-3, 1e-6, 1e-9):
        z = encode(model, x, method=method, variable=variable, rtol=tolerance, atol=tolerance)
        errors.append((z - target.flow_map(x, *ends, process)).abs().max().item() / scale)
        if tolerance > 1e-9:
            back = decode(model, z, method=method, variable=variable, rtol=tolerance, atol=tolerance)
            errors[-1] = max(errors[-1], (back - x).abs().max().item() / 10)
    # torchdiffeq has one step size for a batch: over six seeds its error at 1e-3 is 0.02 to 1.3 under Flow
    assert errors[0] < (0.1 if method == "per-sample" else 2)
    assert errors[1] < min(1e-4, errors[0] / 3)
    assert errors[2] < min(1e-7, errors[1] / 30)
    times = torch.cat(model.times)
    assert process.t_min <= times.min()
    assert times.max() <= process.t_max


@EVERY_PROCESS
def test_no_time_leaves_the_range_in_float32(process):
    target = gaussian()
    model = Recorder(target.model(process))
    x = at_t_min(target, process).float()
    for method in ("per-sample", "dopri8", "scipy_solver"):
        decode(model, encode(model, x, method=method), method=method)
    times = torch.cat(model.times).double()
    assert process.t_min <= times.min()
    assert times.max() <= process.t_max


@pytest.mark.parametrize("method", TOLERANT)
@pytest.mark.parametrize("variable", VARIABLES)
def test_every_adaptive_method(method, variable):
    target, process = mixture(), sk.VP()
    x = at_t_min(target, process)
    model = target.model(process)
    truth = encode(model, x, rtol=1e-11, atol=1e-11)
    loose = {"adaptive_heun": 1e-5}.get(method, 1e-7)
    z = encode(model, x, method=method, variable=variable, rtol=loose, atol=loose, max_attempts=20000)
    assert torch.allclose(z, truth, atol=2e-4)


@pytest.mark.parametrize("method", EQUAL)
def test_order_of_every_fixed_step_method(method):
    process = sk.VP(t_min=0.02)
    target = laws._mixture()
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[:, None]
    truth = torch.tensor(laws.exact_flow(x[:, 0].numpy(), process.t_min, process.t_max, process))[:, None]

    def error(steps):
        return (encode(target.model(process), x, method=method, steps=steps) - truth).abs().max().item()

    steps = {"fixed": (16, 32), "euler": (200, 400), "explicit_adams": (160, 320)}.get(method, (40, 80))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the implicit Adams iteration stops at four rounds
        assert laws.measured_order(error, steps) > ORDERS[method] - 0.4


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_registered_solver_converges_from_data_to_noise(name):
    process = sk.VP(t_min=0.02)
    target = laws._mixture()
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[:, None]
    truth = torch.tensor(laws.exact_flow(x[:, 0].numpy(), process.t_min, process.t_max, process))[:, None]

    def error(steps):
        return (encode(target.model(process), x, method=get(name), steps=steps) - truth).abs().max().item()

    # a start-up from the data's end costs some solvers of order 3 and more a part of it; the grid here is smooth
    smooth = 2 if get(name).order > 1 or name in ("pndm", "ipndm", "ipndm-2", "ipndm-3", "ipndm-4") else 1
    assert laws.measured_order(error, (40, 80)) > smooth - 0.3


def test_a_registered_solver_from_noise_to_data_is_sample():
    process, target = sk.VP(), gaussian()
    start = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    model = target.model(process)
    here = decode(model, start, method="dpmpp-2m", steps=12, grid="karras")
    there = sk.sample(model, start.shape, solver="dpmpp-2m", steps=12, grid="karras", start=start, final="none").x
    assert torch.allclose(here, there, rtol=1e-12)


def test_flow_between_inner_times():
    process, target = sk.VE(), gaussian()
    x = target.sample(4, t=0.2, process=process)
    model = target.model(process)
    for t1 in (0.1, 0.7):
        truth = target.flow_map(x, 0.2, t1, process)
        assert torch.allclose(flow(model, x, 0.2, t1, rtol=1e-8, atol=1e-8), truth, rtol=1e-6, atol=1e-6)
        by_table = flow(model, x, 0.2, t1, method="dpm-solver-3", steps=60)
        assert torch.allclose(by_table, truth, rtol=1e-4, atol=1e-4)
    assert torch.equal(flow(model, x, 0.2, 0.2), x)


def test_explicit_times_run_in_either_direction():
    times = [0.1, 0.25, 0.6]
    up = plan_between("dpmpp-2m", sk.VP(), 0.1, 0.6, grid=times)
    down = plan_between("dpmpp-2m", sk.VP(), 0.6, 0.1, grid=times[::-1])
    assert [up.start.t, *(row.to.t for row in up.rows)] == times
    assert [down.start.t, *(row.to.t for row in down.rows)] == times[::-1]


def test_a_sample_does_not_depend_on_its_batch():
    process, target = sk.VP(), gaussian()
    easy, hard = at_t_min(target, process, 3), 40 * at_t_min(target, process, 3)
    # elementwise: matrix products round otherwise for another batch
    model = sk.ScoreModel(lambda x, t: x * torch.tanh(x.abs()) / (1 + t[:, None]), process)
    together = integrate(model, torch.cat([easy, hard]), process.t_min, process.t_max)
    apart = [integrate(model, x[None], process.t_min, process.t_max) for x in torch.cat([easy, hard])]
    # not to the bit: torch rounds tanh in a vector of eight otherwise than in its rest
    assert torch.allclose(together.x, torch.cat([path.x for path in apart]), rtol=1e-13, atol=0)
    assert together.nfe.tolist() == [path.nfe.item() for path in apart]
    assert together.nfe.min() < together.nfe.max()


def test_finished_samples_leave_the_batch():
    process, sizes = sk.VP(), []

    def net(x, t):
        sizes.append(len(x))
        return x * torch.tanh(x.abs() * 3)

    x = torch.tensor([[0.01], [30.0]], dtype=torch.float64)
    path = integrate(sk.ScoreModel(net, process), x, process.t_min, process.t_max)
    assert sizes[0] == 2
    assert sizes[-1] == 1
    assert sum(sizes) == path.nfe.sum()


def test_conditions_follow_their_rows():
    process = sk.VP()
    slope = torch.tensor([0.1, 3.0, 0.7], dtype=torch.float64)
    x = torch.tensor([[1.0], [2.0], [-1.0]], dtype=torch.float64)
    net = lambda x, t, slope: torch.sin(slope[:, None] * x)  # noqa: E731
    together = encode(sk.ScoreModel(net, process), x, slope=slope)
    for i in range(3):
        alone = encode(sk.ScoreModel(net, process), x[i : i + 1], slope=slope[i : i + 1])
        assert torch.allclose(together[i : i + 1], alone, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("method", "gradients"),
    [("per-sample", "direct"), ("fixed", "direct"), ("dopri5", "direct"), ("dopri5", "adjoint"),
     ("rk4", "adjoint"), ("dpmpp-2m", "direct")],
)  # fmt: skip
def test_gradients_with_respect_to_the_state(method, gradients):
    """On Gaussian data the flow is affine, so its derivative is the matrix of flow_map."""
    process, target = sk.VP(), gaussian()
    x = at_t_min(target, process, 1).requires_grad_()
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    steps = {"fixed": 40, "rk4": 100, "dpmpp-2m": 2000}.get(method)
    z = encode(target.model(process), x, method=method, gradients=gradients, steps=steps, rtol=1e-8, atol=1e-8)
    (slope,) = torch.autograd.grad((z * weights).sum(), x)
    (truth,) = torch.autograd.grad((target.flow_map(x, process.t_min, process.t_max, process) * weights).sum(), x)
    assert torch.allclose(slope, truth, rtol=1e-4, atol=1e-5)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(4, 4, generator=generator, dtype=torch.float64) / 4)

    def forward(self, x, t):
        return torch.tanh(x @ self.weight + torch.sin(t[:, None]))


@pytest.mark.parametrize(("method", "gradients"), [("per-sample", "direct"), ("dopri5", "adjoint")])
def test_gradients_with_respect_to_the_parameters(method, gradients):
    net, process = Net(), sk.VP()
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(2, 4)

    def loss(**arguments):
        return encode(sk.ScoreModel(net, process), x, rtol=1e-9, atol=1e-9, **arguments).square().sum()

    loss(method=method, gradients=gradients).backward()
    found, step = net.weight.grad[1, 2].item(), 1e-5
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            net.weight[1, 2] += sign * step
            ends.append(loss().item())
            net.weight[1, 2] -= sign * step
    assert found == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4)


def test_no_graph_is_kept_unless_asked():
    net = Net()
    z = encode(sk.ScoreModel(net, sk.VP()), torch.zeros(1, 4, dtype=torch.float64).requires_grad_())
    assert not z.requires_grad


@pytest.mark.parametrize("method", ["per-sample", "dopri5", "bosh3"])
def test_a_diverging_field_stops_with_its_time_and_sample(method):
    process = sk.VP()

    def net(x, t):
        return torch.where((t[:, None] > 0.5) & (x > 0), torch.nan, 0.1 * x)

    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    sample = "sample 1 " if method == "per-sample" else ""
    with pytest.raises(ValueError, match=rf"{sample}got no further than t=0\.[45]"):
        encode(sk.ScoreModel(net, process), x, method=method)
    with pytest.raises(ValueError, match=r"max_attempts=3|max_num_steps"):
        encode(gaussian(1).model(process), x, method=method, max_attempts=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "dopri6"}, "did you mean 'dopri"),
        ({"method": "ddpm", "steps": 5}, "draws noise"),
        ({"method": "dpmpp-2m", "steps": 5, "gradients": "adjoint"}, "has no adjoint"),
        ({"method": "per-sample", "gradients": "adjoint"}, "has no adjoint"),
        ({"method": "rk4"}, "steps=None"),
        ({"method": "fixed", "steps": 0}, "steps=0"),
        ({"method": "scipy_solver", "gradients": "direct"}, "leaves torch"),
        ({"variable": "lambda"}, "known: angle, half-log-snr, t"),
        ({"gradients": "yes"}, "unknown gradients"),
        ({"rtol": 1e-8, "atol": 1e-8}, "use float64"),
        ({"rtol": -1.0}, "rtol=-1.0: it must be a finite number of at least 0"),
        ({"rtol": float("nan")}, "rtol=nan: it must be a finite number of at least 0"),
        ({"max_attempts": 0}, "max_attempts=0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        encode(gaussian().model(sk.VP()), torch.zeros(2, 4), **arguments)


def test_bad_input():
    model = gaussian().model(sk.VP())
    with pytest.raises(ValueError, match=r"t1=1\.5: it must lie in"):
        flow(model, torch.zeros(2, 4), 0.5, 1.5)
    with pytest.raises(ValueError, match=r"dtype torch\.float16"):
        encode(model, torch.zeros(2, 4, dtype=torch.float16))
    with pytest.raises(ValueError, match="DiscreteVP's rate jumps"):
        encode(gaussian().model(sk.DiscreteVP()), torch.zeros(2, 4), variable="t")
    with pytest.raises(ValueError, match="two different times"):
        flow(model, torch.zeros(2, 4), 0.5, 0.5, method="dpmpp-2m", steps=3)


@pytest.mark.parametrize("method", ["fixed", "dpmpp-2m", "per-sample", "dopri5"])
def test_on_the_simulated_accelerator(method):
    net, process = Net().float(), sk.VP()
    x = torch.linspace(-1, 1, 12).reshape(3, 4)
    arguments = {"method": method, "steps": 6 if method in ("fixed", "dpmpp-2m") else None}
    here = integrate(sk.ScoreModel(net, process), x, process.t_min, process.t_max, **arguments)
    with simgpu.device() as gpu:
        model, x = sk.ScoreModel(Net().float().to(gpu.device), process), x.to(gpu.device)
        there = integrate(model, x, process.t_min, process.t_max, **arguments)
        reads = gpu.host_reads
        assert torch.equal(here.x, there.x.cpu())
    attempts = (int(here.nfe.max()) - 1) / 6
    limit = {"fixed": 0, "dpmpp-2m": 0, "per-sample": attempts}.get(method, math.inf)
    assert reads <= limit, f"{reads} host reads in {attempts} steps"
