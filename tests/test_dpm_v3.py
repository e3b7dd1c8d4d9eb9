"""DPM-Solver-v3: its special cases, its paper's formulas written down again, its orders, and the statistics it fits."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import sdekit as sk
from sdekit.files import write_tensors
from sdekit.grid import Grid
from sdekit.solvers import Statistics
from sdekit.targets import Gaussian
from sdekit.testing import laws, simgpu

PROCESSES = [sk.VP(), sk.VE(sigma_max=10.0), sk.CosineVP(), sk.Flow()]
over_processes = pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)


MEAN, VARIANCE = torch.tensor([1.0, -2.0]).double(), torch.tensor([1.0, 0.09]).double()


def gaussian_coefficients(process, at):
    """l and dl/dλ of data N(MEAN, VARIANCE): ε = σ(x − αm)/(α²v + σ²), so that l = 1/(1 + v e^{2λ})."""
    linear = 1 / (1 + VARIANCE * torch.exp(2 * at[:, None]))
    return linear, -2 * linear * (1 - linear)


def noise(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7)).to(dtype)


def knots_of(process, count):
    ends = process.half_log_snr(process.t_max), process.half_log_snr(process.t_min)
    return torch.linspace(*ends, count, dtype=torch.float64)


def constant(process, *values, count=20):
    """Statistics that are the same at every λ and for every element."""
    return Statistics(process, knots_of(process, count), *(torch.full((count,), float(value)) for value in values))


def wavy(process, count=30):
    """Smooth statistics with another value for each of two elements."""
    at = knots_of(process, count)[:, None]
    phase = torch.tensor([0.0, 1.0])
    return Statistics(
        process, at[:, 0], torch.sigmoid(-at + phase), 0.4 * torch.sin(at + phase) - 0.3, 0.2 * torch.cos(at - phase)
    )


@pytest.fixture(scope="module")
def fitted():
    """The statistics of the laws' mixture."""
    mixture = laws._mixture()
    return sk.solvers.fit_statistics(mixture.model(laws._PROCESS), mixture.sample(512), knots=50)


# --- the solver ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("values", "name"), [((0, -1, 0), "adams-eps"), ((1, 0, 0), "adams-x0")])
@pytest.mark.parametrize(("below", "lower_order_final"), [("0", False), ("inf", True)])
@over_processes
def test_special_cases_are_adams_methods(process, below, lower_order_final, values, name, order):
    """Zheng et al. 2023, appendix A.2: noise prediction is (l, s, b) = (0, −1, 0), data prediction (1, 0, 0)."""
    model, start = laws._mixture().model(process), process.prior_std * torch.linspace(-2, 2, 9).double()[:, None]
    solver = constant(process, *values).solver(order=order, corrector="none", lower_order_final=lower_order_final)
    adams = f"{name}(order={order}, start='lower-order', lower_order_below={below})"
    ours, theirs = (sk.sample(model, (9, 1), solver=one, steps=8, start=start).x for one in (solver, adams))
    assert torch.allclose(ours, theirs, rtol=1e-11, atol=1e-11)


class Paper:
    """Algorithms 1 and 2 of Zheng et al. 2023 on tensors, with the precomputed integrals of eq. 64.

    They solve L' = l, S' = s, B' = e^{−S} b, I' = e^{L+S}, C' = e^{L+S} B and the integrals of eq. 66, here by an
    adaptive solver with the statistics' splines, element by element.
    """

    def __init__(self, statistics, knots):
        self.knots, self.count = knots, statistics.event.numel()
        self.l, self.s, self.b = (curve for curve in statistics.curves[:3])
        breaks = statistics.half_log_snr.numpy()
        self.at = {knots[0].half_log_snr: np.zeros((5, self.count))}
        for s, t in pairwise(knots):
            self.at[t.half_log_snr] = self.solve(s.half_log_snr, t.half_log_snr, breaks, self.at[s.half_log_snr])
        self.breaks = breaks

    def rates(self, at, state):
        L, S, B, _, _ = state  # noqa: N806
        growth = np.exp(L + S)
        return np.stack([self.l(at), self.s(at), np.exp(-S) * self.b(at), growth, growth * B])

    def solve(self, a, b, breaks, state, rates=None):
        shape = state.shape
        for first, last in pairwise([a, *breaks[(breaks > a) & (breaks < b)], b]):
            out = solve_ivp(
                lambda at, y: (rates or self.rates)(at, y.reshape(shape)).ravel(),
                (first, last), state.ravel(), method="DOP853", rtol=1e-12, atol=1e-14,
            )  # fmt: skip
            state = out.y[:, -1].reshape(shape)
        return state

    def taylor_integral(self, s, t, k):
        """Eq. 66."""
        start = self.at[s]

        def rates(at, state):
            L, S = state[:2]  # noqa: N806
            growth = np.exp(L + S - start[0] - start[1])
            return np.stack([self.l(at), self.s(at), growth * (at - s) ** k / math.factorial(k)])

        return self.solve(s, t, self.breaks, np.stack([start[0], start[1], 0 * start[0]]), rates)[2]

    def update(self, s, t, x_s, nodes, pseudo):
        """Algorithm 1; ``nodes`` are (knot, N = σε − l x), the one at s first."""
        Ls, Ss, Bs, Is, Cs = self.at[s.half_log_snr]  # noqa: N806
        Lt, _, _, It, Ct = self.at[t.half_log_snr]  # noqa: N806
        g = []
        for knot, nonlinear in nodes:
            _, S, B, _, _ = self.at[knot.half_log_snr]  # noqa: N806
            g.append(np.exp(Ss - S) * nonlinear / knot.alpha - np.exp(Ss) * (B - Bs))
        delta = [knot.half_log_snr - s.half_log_snr for knot, _ in nodes]
        derivatives = [g[0]]
        for k in range(1, len(nodes)):
            if pseudo:  # eq. 16
                table = list(g)
                for j in range(1, k + 1):
                    table = [(table[i + 1] - table[i]) / (delta[i + j] - delta[i]) for i in range(len(table) - 1)]
                derivatives.append(math.factorial(k) * table[0])
            else:  # eq. 13
                matrix = np.array([[d**i for i in range(1, len(nodes))] for d in delta[1:]])
                right = np.stack([value - g[0] for value in g[1:]]).reshape(len(nodes) - 1, -1)
                solved = np.linalg.solve(matrix, right)[k - 1].reshape(g[0].shape)
                derivatives.append(math.factorial(k) * solved)
        inner = x_s / s.alpha - np.exp(-Ls) * (Ct - Cs - Bs * (It - Is))
        for k, derivative in enumerate(derivatives):
            inner = inner - derivative * self.taylor_integral(s.half_log_snr, t.half_log_snr, k)
        return t.alpha * np.exp(Ls - Lt) * inner

    def run(self, model, x, order, predictor, corrector, half, lower_order_final):
        """Algorithm 2, with the techniques of section 3.3."""

        def nonlinear(x, knot):
            eps = model.eps(torch.from_numpy(x), knot.t).numpy()
            return knot.sigma * eps - self.l(knot.half_log_snr) * x

        steps = len(self.knots) - 1
        cache = [(self.knots[0], nonlinear(x, self.knots[0]))]
        for m, (s, t) in enumerate(pairwise(self.knots), start=1):
            used = min(order, m, steps + 1 - m if lower_order_final else order)
            predicted = self.update(s, t, x, cache[-1 : -used - 1 : -1], predictor == "pseudo")
            if m == steps:
                return predicted
            new = (t, nonlinear(predicted, t))
            values = used + (corrector == "pseudo")
            if corrector != "none" and values > 1 and (not half or t.t <= 0.5 * model.process.t_max):
                older = cache[-2:-values:-1]
                x = self.update(s, t, x, [cache[-1], new, *older], corrector == "pseudo")
            else:
                x = predicted
            cache.append(new)
        return x


OPTIONS = [
    {"order": 1, "corrector": "none"},
    {"order": 1, "corrector": "pseudo"},
    {"order": 2, "corrector": "full", "lower_order_final": False},
    {"order": 2, "corrector": "pseudo"},
    {"order": 3, "corrector": "none", "lower_order_final": False},
    {"order": 3, "corrector": "full"},
    {"order": 3, "corrector": "full", "half": True, "lower_order_final": False},
    {"order": 3, "predictor": "pseudo", "corrector": "pseudo"},
]


CASES = [(PROCESSES[0], options) for options in OPTIONS] + [(process, OPTIONS[5]) for process in PROCESSES[1:]]


@pytest.mark.parametrize(("process", "options"), CASES, ids=str)
def test_the_papers_algorithms(process, options):
    statistics, model = wavy(process), laws._mixture((-0.8, 0.2, 0.7), 0.5).model(process)
    pair = sk.ScoreModel(  # two elements, each a mixture of its own
        lambda x, t: model.eps(x.reshape(-1, 1), t.repeat_interleave(2)).reshape(x.shape), process
    )
    generator = torch.Generator().manual_seed(0)
    start = process.prior_std * torch.randn(5, 2, dtype=torch.float64, generator=generator)
    solver = statistics.solver(**options)
    ours = sk.sample(pair, (5, 2), solver=solver, steps=7, start=start, final="none").x
    paper = Paper(statistics, Grid.make(process, "logsnr", 7).knots)
    every = {name: option.default for name, option in solver.available.items()} | options
    theirs = torch.from_numpy(paper.run(pair, start.numpy(), **every))
    assert ((ours - theirs).abs() / theirs.abs().clamp(min=1e-3)).max() < 1e-8


FINE = {"lower_order_final": False}
ORDERS = [
    ({"order": 1, "corrector": "none", **FINE}, 1),
    ({"order": 2, "corrector": "none", **FINE}, 2),
    ({"order": 3, "corrector": "none", **FINE}, 3),
    ({"order": 1, "corrector": "pseudo"}, 2),
    ({"order": 2, "corrector": "full"}, 2),
    ({"order": 3, "corrector": "full", **FINE}, 3),
    ({"order": 3, "corrector": "pseudo", **FINE}, 2),
    ({"order": 3, "predictor": "pseudo", "corrector": "none", **FINE}, 2),
    ({"order": 3, "predictor": "pseudo", "corrector": "full", **FINE}, 3),
    ({"order": 3, "corrector": "full", "half": True, **FINE}, 3),
]


@pytest.mark.parametrize("spacing", laws.SPACINGS)
@pytest.mark.parametrize(("options", "order"), ORDERS, ids=str)
def test_orders(fitted, options, order, spacing):
    solver = fitted.solver(**options)
    assert solver.order == order
    # a corrector's error is small, and its leading term leads late
    full = {"equal": (256, 512), "uneven": (512, 1024)}[spacing]
    steps = full if options["corrector"] == "full" else None
    assert abs(laws.order_of(solver, spacing=spacing, steps=steps) - order) < 0.3


def test_the_lowered_last_step_caps_the_order(fitted):
    """Its error, O(h²), is seen where the statistics leave something to extrapolate at the end."""
    assert fitted.solver().order == 2
    rough = Statistics(fitted.process, fitted.half_log_snr, fitted.linear, 0 * fitted.scaling, 0 * fitted.bias)
    measured = laws.measured_order(lambda n: laws.flow_error(rough.solver(corrector="none"), n), (256, 512))
    assert abs(measured - 2) < 0.3


def test_budget_noise_and_prediction(fitted):
    solver = fitted.solver()
    laws.check_budget(constant(sk.VP(), 0.5, 0.0, 0.0).solver())
    laws.check_prediction(solver)
    laws.check_noise(solver)


# --- running it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"corrector": "none"}], ids=str)
def test_on_the_simulated_device(options, dtype):
    """The device's numbers are the CPU's, the host reads none of them, and the state keeps its dtype."""
    solver, start = wavy(sk.VP()).solver(**options), noise(5, 2, dtype=dtype)
    net = TimeNet(dtype)
    here = sk.sample(sk.ScoreModel(net, sk.VP()), (5, 2), solver=solver, nfe=6, start=start, batch_size=2).x
    assert here.dtype == dtype
    with simgpu.device() as gpu:
        model, start = sk.ScoreModel(net.to(gpu.device), sk.VP()), start.to(gpu.device)
        with gpu.forbid_host_reads():
            there = sk.sample(model, (5, 2), solver=solver, nfe=6, start=start, batch_size=2).x
        assert there.device.type == "simgpu"
        assert torch.equal(there.cpu(), here)


class TimeNet(torch.nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[0.5, -0.2], [0.1, 0.7]], dtype=dtype))

    def forward(self, x, t):
        return torch.tanh(x @ self.weight + torch.sin(t[:, None]))


def test_tensors_are_moved_once_for_a_run():
    with simgpu.device() as gpu:
        model = sk.ScoreModel(TimeNet(torch.float32).to(gpu.device), sk.VP())

        def uploads(solver):
            before = len(gpu.uploads)
            sk.sample(model, (6, 2), solver=solver, nfe=6, seed=0, batch_size=2)
            return len(gpu.uploads) - before

        assert uploads(wavy(sk.VP()).solver()) == uploads("ddim") + 1


def test_forwards_and_back():
    """Encoding runs the same table towards the noise."""
    process, model = sk.VP(), Gaussian(MEAN, torch.diag(VARIANCE)).double().model(sk.VP())
    at = knots_of(process, 400)
    linear, slope = gaussian_coefficients(process, at)
    solver = Statistics(process, at, linear, 0 * linear, -slope * MEAN).solver()
    x = noise(4, 2)
    z = sk.encode(model, x, method=solver, steps=3)
    assert torch.allclose(sk.decode(model, z, method=solver, steps=3), x, atol=1e-7)
    exact = Gaussian(MEAN, torch.diag(VARIANCE)).double().flow_map(x, process.t_min, process.t_max, process)
    assert torch.allclose(z, exact, atol=1e-6)


def test_compare_takes_it_and_tells_statistics_apart(tmp_path):
    target = Gaussian(MEAN, torch.diag(VARIANCE)).double()
    model, data = target.model(sk.VP()), target.sample(64).float()
    keys = set()
    for count in (30, 31):
        solver = wavy(sk.VP(), count).solver(order=2)
        result = sk.compare(model, data, solvers=["ddim", solver], nfe=[5], samples=16, out=tmp_path)
        ddim, ours = result.cells
        assert (ddim.solver, ours.solver) == ("ddim", "dpm-solver-v3(order=2)")
        assert "rmse" in ours.metrics
        keys.add(ours.key)
    assert len(keys) == 2
    with pytest.raises(ValueError, match=r"two different ones are called 'dpm-solver-v3'"):
        sk.compare(model, data, solvers=[wavy(sk.VP()).solver(), wavy(sk.VP(), 31).solver()], nfe=[5], samples=16)


# --- what it refuses -----------------------------------------------------------------------------------------------


def test_bad_statistics():
    process, at, zeros = sk.VP(), knots_of(sk.VP(), 5), torch.zeros(5, 2)
    with pytest.raises(ValueError, match=r"half_log_snr has shape \[3\]: it must be \[knots\], at least 4"):
        Statistics(process, at[:3], zeros, zeros, zeros)
    with pytest.raises(ValueError, match=r"each must be \[5, \*event\]"):
        Statistics(process, at, zeros, zeros[:, :1], zeros)
    with pytest.raises(ValueError, match=r"half_log_snr: it must increase"):
        Statistics(process, at.flip(0), zeros, zeros, zeros)
    with pytest.raises(ValueError, match=r"it must span -5\.02498 to"):
        Statistics(process, at + 1, zeros, zeros, zeros)
    with pytest.raises(ValueError, match=r"scaling=<tensor .* with .*(nan|inf) at "):
        Statistics(process, at, zeros, zeros + torch.tensor([0.0, 0, 0, 0, math.inf])[:, None], zeros)
    with pytest.raises(ValueError, match=r"unknown option of dpm-solver-v3 'ordr': did you mean 'order'"):
        constant(process, 1, 0, 0).solver(ordr=2)
    with pytest.raises(ValueError, match=r"order=4 is not one of 1, 2, 3"):
        constant(process, 1, 0, 0).solver(order=4)


def test_a_run_on_another_model():
    solver = wavy(sk.VP()).solver()
    other = sk.ScoreModel(lambda x, t: x, sk.Flow())
    with pytest.raises(ValueError, match=r"was fitted for VP\(.*: the model's process is Flow"):
        sk.sample(other, (3, 2), solver=solver, nfe=4)
    model = sk.ScoreModel(lambda x, t: x, sk.VP())
    with pytest.raises(ValueError, match=r"data has shape \[4\], but the solver was fitted to data of shape \[2\]"):
        sk.sample(model, (3, 4), solver=solver, nfe=4)
    assert model.nfe == 0


def test_bad_fits():
    model = sk.ScoreModel(lambda x, t: x, sk.VP())
    with pytest.raises(ValueError, match=r"samples in data=1: it must be a whole number of at least 2"):
        sk.solvers.fit_dpm_v3(model, torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"knots=3"):
        sk.solvers.fit_dpm_v3(model, torch.zeros(4, 2), knots=3)
    with pytest.raises(ValueError, match=r"data=<tensor .* with .*(nan|inf) at "):
        sk.solvers.fit_dpm_v3(model, torch.full((4, 2), math.nan))
    with pytest.raises(ValueError, match=r"dpm-solver-v3: corrector='all' is not one of"):
        sk.solvers.fit_dpm_v3(model, torch.zeros(4, 2), corrector="all")
    assert model.nfe == 0
    broken = sk.ScoreModel(lambda x, t: x / (t[:, None] > 0.5), sk.VP())
    with pytest.raises(ValueError, match=r"the network's predictions or their derivatives at t=0\.\d+ hold NaN"):
        sk.solvers.fit_dpm_v3(broken, noise(4, 2), knots=9)


def test_statistics_of_too_few_samples():
    with pytest.raises(ValueError, match=r"step from t=1 to 0\.\d+ overflows, with s up to 400 in its statistics"):
        constant(sk.VP(), 0.5, 400, 1).solver().plan(sk.VP(), nfe=3)


def test_bad_files(tmp_path):
    with pytest.raises(ValueError, match=r"no readable safetensors file"):
        Statistics.load(tmp_path / "none.safetensors")
    write_tensors(tmp_path / "other.safetensors", {"x": torch.zeros(2)}, {})

    class Own(sk.VP):
        """A process that a file cannot hold."""

    with pytest.raises(ValueError, match=r"unknown process 'Own'"):
        constant(Own(), 1, 0, 0).save(tmp_path / "own.safetensors")
    assert not (tmp_path / "own.safetensors").exists()
    with pytest.raises(ValueError, match=r"other.safetensors' holds no statistics; Statistics.save writes them"):
        Statistics.load(tmp_path / "other.safetensors")


def test_the_name_alone_says_how_to_fit_it():
    with pytest.raises(ValueError, match=r"'dpm-solver-v3' has to be fitted to a model first: .*fit_dpm_v3"):
        sk.sample(sk.ScoreModel(lambda x, t: x, sk.VP()), (2, 2), solver="dpm-solver-v3", nfe=5)
