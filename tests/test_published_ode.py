"""The ODE families against their papers' formulas, written down again at tensor level, on the same knots in float64."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad

import sdekit as sk
from sdekit.grid import Grid
from sdekit.solvers import get
from sdekit.testing import laws

PROCESSES = [sk.VP(), sk.VE(sigma_max=10.0), sk.CosineVP(), sk.Flow()]
START = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
STEPS = 7

over_processes = pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
over_forms = pytest.mark.parametrize(("below", "lower_order_final"), [("0", False), ("inf", True)])


def released_orders(order, steps, lower_order_final):
    """The orders of the multistep loop of DPM-Solver's and UniPC's released code: a start, then the rest to the end."""
    start = list(range(1, order))
    return start + [min(order, steps + 1 - step) if lower_order_final else order for step in range(order, steps + 1)]


class Run:
    """A model, the knots of a run and its start; ``check`` compares a solver's end with the transcription's."""

    def __init__(self, process, steps=STEPS, grid="logsnr"):
        self.process, self.grid, self.model = process, grid, laws._mixture().model(process)
        self.knots = Grid.make(process, grid, steps).knots
        self.start = START * process.sigma(process.t_max)

    def check(self, solver, theirs, **budget):
        budget = budget or {"steps": len(self.knots) - 1}
        out = sk.sample(
            self.model, self.start.shape, solver=solver, start=self.start, grid=self.grid, final="none", **budget
        )
        assert ((out.x - theirs).abs() / theirs.abs().clamp(min=1e-3)).max() < 1e-8, solver


def lagrange(nodes, j, x):
    return math.prod((x - nodes[k]) / (nodes[j] - nodes[k]) for k in range(len(nodes)) if k != j)


def integral(function, a, b):
    value, _ = quad(function, a, b, epsabs=0, epsrel=1e-12, limit=200)
    return value


# --- Adams methods -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@over_forms
@over_processes
def test_deis(process, below, lower_order_final, order):
    """Zhang & Chen 2023, tAB-DEIS's C_ij: ∫ ½ Ψ(t', τ) g²(τ)/σ(τ) Π (τ − t_k)/(t_j − t_k) dτ."""
    run = Run(process)
    x, past = run.start, []
    for (s, t), now in zip(pairwise(run.knots), released_orders(order, STEPS, lower_order_final)):
        past = [(s.t, run.model.eps(x, s.t)), *past][:order]
        used = past[:now]
        nodes = [time for time, _ in used]
        x = t.alpha / s.alpha * x
        for j, (_, eps) in enumerate(used):

            def integrand(tau, j=j, nodes=nodes, t=t):
                gain = t.alpha / process.alpha(tau) * process.diffusion(tau) ** 2 / process.sigma(tau) / 2
                return gain * lagrange(nodes, j, tau)

            x = x + integral(integrand, s.t, t.t) * eps
    run.check(f"deis-{order}" + f"(lower_order_below={below})" * (order > 1), x)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@over_forms
@over_processes
def test_lms(process, below, lower_order_final, order):
    """k-diffusion's linear multistep method: d = (y − D)/σ, Lagrange polynomials in σ, for y = x/α and σ/α."""
    run = Run(process)
    y, past = run.start / run.knots[0].alpha, []
    for (s, t), now in zip(pairwise(run.knots), released_orders(order, STEPS, lower_order_final)):
        sigma, sigma_next = s.sigma / s.alpha, t.sigma / t.alpha
        past = [(sigma, (y - run.model.x0(s.alpha * y, s.t)) / sigma), *past][:order]
        nodes = [node for node, _ in past[:now]]
        for j, (_, d) in enumerate(past[:now]):
            y = y + integral(lambda v, j=j, nodes=nodes: lagrange(nodes, j, v), sigma, sigma_next) * d
    run.check(f"lms(order={order}, lower_order_below={below})", run.knots[-1].alpha * y)


@pytest.mark.parametrize("name", ["ipndm-v", "deis-rho-ab"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@over_forms
@over_processes
def test_adams_bashforth_of_variable_steps(process, below, lower_order_final, order, name):
    """Hairer, Nørsett & Wanner 1993, section III.5: Newton's divided differences in σ/α, integrated."""
    run = Run(process)
    y, nodes, differences = run.start / run.knots[0].alpha, [], []
    for (s, t), now in zip(pairwise(run.knots), released_orders(order, STEPS, lower_order_final)):
        here, there = s.sigma / s.alpha, t.sigma / t.alpha
        nodes, column = [here, *nodes], [run.model.eps(s.alpha * y, s.t)]
        for k, before in enumerate(differences[: order - 1]):  # f[n … n−k−1] from f[n … n−k] and f[n−1 … n−k−1]
            column.append((column[k] - before) / (nodes[0] - nodes[k + 1]))
        differences = column
        for k, difference in enumerate(column[:now]):
            antiderivative = np.poly1d(np.poly([node - here for node in nodes[:k]])).integ()
            y = y + antiderivative(there - here) * difference
    run.check(f"{name}(order={order}, lower_order_below={below})", run.knots[-1].alpha * y)


# --- DPM-Solver and DPM-Solver++ ------------------------------------------------------------------------------------


def step(kind, s, t, x, value):
    """A constant prediction: DPM-Solver eq. 3.7 and its like in DPM-Solver++."""
    h = t.half_log_snr - s.half_log_snr
    if kind == "eps":
        return t.alpha / s.alpha * x - t.sigma * (math.exp(h) - 1) * value
    return t.sigma / s.sigma * x - t.alpha * (math.exp(-h) - 1) * value


def single(kind, run, s, t, x, order, r1=0.5):
    """Single-step solvers of order 1 to 3 as in the released code: DPM-Solver algorithms 1, 2 and 4, ++ algorithm 1."""
    predict, h = run.model.predict, t.half_log_snr - s.half_log_snr
    first = predict(kind, x, s.t)
    if order == 1:
        return step(kind, s, t, x, first)
    r1, r2 = (r1, 0.0) if order == 2 else (1 / 3, 2 / 3)
    u1 = run.process.knot_at(s.half_log_snr + r1 * h)
    d1 = predict(kind, step(kind, s, u1, x, first), u1.t) - first
    if order == 2:
        return step(kind, s, t, x, first + d1 / (2 * r1))
    u2 = run.process.knot_at(s.half_log_snr + r2 * h)
    if kind == "eps":
        at_u2 = -u2.sigma * r2 / r1 * ((math.exp(r2 * h) - 1) / (r2 * h) - 1)
        at_t = -t.sigma / r2 * ((math.exp(h) - 1) / h - 1)
    else:
        at_u2 = u2.alpha * r2 / r1 * ((math.exp(-r2 * h) - 1) / (r2 * h) + 1)
        at_t = t.alpha / r2 * ((math.exp(-h) - 1) / h + 1)
    d2 = predict(kind, step(kind, s, u2, x, first) + at_u2 * d1, u2.t) - first
    return step(kind, s, t, x, first) + at_t * d2


@pytest.mark.parametrize(
    ("name", "kind", "order", "r1"),
    [
        ("dpm-solver-1", "eps", 1, 0.5),
        ("dpm-solver-2(r1=0.3)", "eps", 2, 0.3),
        ("dpmpp-2s", "x0", 2, 0.5),
        ("dpmpp-3s", "x0", 3, 0.5),
    ],
)
@over_processes
def test_single_step(process, name, kind, order, r1):
    run = Run(process)
    x = run.start
    for s, t in pairwise(run.knots):
        x = single(kind, run, s, t, x, order, r1)
    run.check(name, x)


@pytest.mark.parametrize("nfe", range(1, 13))
@over_processes
def test_dpm_solver_fast(process, nfe):
    """Lu et al. 2022 (DPM-Solver-fast): K = ⌊NFE/3⌋ + 1 steps, the last one or two of lower order."""
    steps = nfe // 3 + 1
    orders = {0: [3] * (steps - 2) + [2, 1], 1: [3] * (steps - 1) + [1], 2: [3] * (steps - 1) + [2]}[nfe % 3]
    run = Run(process, steps)
    x = run.start
    for s, t, order in zip(run.knots, run.knots[1:], orders):
        x = single("eps", run, s, t, x, order)
    run.check("dpm-solver-fast", x, nfe=nfe)


@pytest.mark.parametrize(("rest", "order"), [(0, 2), (1, 2), (2, 3)])
def test_dpm_solver_fast_loses_an_order_where_its_last_step_is_of_order_1(rest, order):
    process, start = sk.VP(t_min=0.02), START[::2]
    truth = laws.exact_flow(start[:, 0].numpy(), process.t_max, process.t_min, process)

    def error(nfe):
        model = laws._mixture().model(process)
        out = sk.sample(model, start.shape, solver="dpm-solver-fast", nfe=nfe, start=start, final="none")
        return np.abs(out.x[:, 0].numpy() - truth).max()

    assert laws.measured_order(lambda nfe: error(nfe + rest), (192, 384)) == pytest.approx(order, abs=0.3)


def multistep(kind, run, factor, orders):
    """The released multistep updates of second and third order; ``factor`` 1 is theirs, 2 the right one for D_2."""
    x, past = run.start, []
    for (s, t), order in zip(pairwise(run.knots), orders):
        past = [(s.half_log_snr, run.model.predict(kind, x, s.t)), *past]
        h, (lam, m0) = t.half_log_snr - s.half_log_snr, past[0]
        if order == 1:
            x = step(kind, s, t, x, m0)
            continue
        r0 = (lam - past[1][0]) / h
        d1_0 = (m0 - past[1][1]) / r0
        if order == 2:
            x = step(kind, s, t, x, m0 + d1_0 / 2)
            continue
        r1 = (past[1][0] - past[2][0]) / h
        d1_1 = (past[1][1] - past[2][1]) / r1
        d1 = d1_0 + r0 / (r0 + r1) * (d1_0 - d1_1)
        d2 = factor * (d1_0 - d1_1) / (r0 + r1)
        x = step(kind, s, t, x, m0)
        if kind == "eps":
            x = x - t.sigma * ((math.exp(h) - 1) / h - 1) * d1 - t.sigma * ((math.exp(h) - 1 - h) / h**2 - 0.5) * d2
        else:
            x = x + t.alpha * ((math.exp(-h) - 1) / h + 1) * d1 - t.alpha * ((math.exp(-h) - 1 + h) / h**2 - 0.5) * d2
    return x


MULTISTEP = [
    ("dpm-solver-2m", "eps", 2, 1),
    ("dpm-solver-3m", "eps", 3, 1),
    ("dpmpp-2m", "x0", 2, 1),
    ("dpmpp-3m", "x0", 3, 1),
    ("dpmpp-3m-corrected", "x0", 3, 2),
]


@pytest.mark.parametrize(("name", "kind", "order", "factor"), MULTISTEP)
@over_forms
@over_processes
def test_multistep(process, below, lower_order_final, name, kind, order, factor):
    run = Run(process)
    orders = released_orders(order, STEPS, lower_order_final)
    run.check(f"{name}(lower_order_below={below})", multistep(kind, run, factor, orders))


@pytest.mark.parametrize("steps", [3, 9, 10])
@pytest.mark.parametrize(("name", "kind", "order", "factor"), MULTISTEP)
def test_dpm_solvers_own_rule_is_below_10_steps(name, kind, order, factor, steps):
    """In the released ``sample`` lower_order_final, on by default, acts on runs of fewer than 10 steps."""
    run = Run(sk.VP(), steps)
    run.check(f"{name}(lower_order_below=10)", multistep(kind, run, factor, released_orders(order, steps, steps < 10)))


@pytest.mark.parametrize("euler_at_final", [False, True])
@pytest.mark.parametrize("steps", [14, 15])
@pytest.mark.parametrize(("name", "kind", "order", "factor"), MULTISTEP[:4])
def test_diffusers_rule_is_below_15_steps(name, kind, order, factor, steps, euler_at_final):
    """Its scheduler with final_sigmas_type="sigma_min": the last step is Euler's, the one before of order 2 at most."""
    if euler_at_final and order > 2 and steps >= 15:
        pytest.skip("3, …, 3, 1: an order that falls by two at once has no name here")
    orders = released_orders(order, steps, lower_order_final=False)
    if steps < 15:
        orders[-2:] = [min(order, 2), 1]
    if euler_at_final:
        orders[-1] = 1
    run = Run(sk.VP(), steps)
    below = "inf" if euler_at_final else 15
    run.check(f"{name}(lower_order_below={below})", multistep(kind, run, factor, orders))


@pytest.mark.parametrize("kind", ["eps", "x0"])
@pytest.mark.parametrize(
    ("order", "start"),
    [(2, "lower-order"), (3, "lower-order"), (1, "single-step"), (3, "single-step"), (5, "single-step")],
)
@over_forms
@over_processes
def test_exponential_adams(process, below, lower_order_final, order, start, kind):
    """Lu et al. 2022, DPM-Solver proposition 3.1 and DPM-Solver++ 4.1, with the Lagrange polynomial in λ."""
    run = Run(process)
    x, past = run.start, []
    orders = released_orders(order, STEPS, lower_order_final)
    for i, (s, t) in enumerate(pairwise(run.knots)):
        past = [(s.half_log_snr, run.model.predict(kind, x, s.t)), *past][:order]
        if start == "single-step" and i < order - 1:
            x = single(kind, run, s, t, x, min(order - 1, 3))
            continue
        used = past[: orders[i]]
        nodes = [lam for lam, _ in used]
        x = (t.alpha / s.alpha if kind == "eps" else t.sigma / s.sigma) * x
        for j, (_, value) in enumerate(used):
            sign, scale = (-1, -t.alpha) if kind == "eps" else (1, t.sigma)

            def integrand(lam, j=j, nodes=nodes, sign=sign):
                return math.exp(sign * lam) * lagrange(nodes, j, lam)

            x = x + scale * integral(integrand, s.half_log_snr, t.half_log_snr) * value
    run.check(f"adams-{kind}(order={order}, start={start!r}, lower_order_below={below})", x)


# --- Classical methods and PNDM -------------------------------------------------------------------------------------


@over_processes
def test_dpm_2(process):
    """k-diffusion's sample_dpm_2 without churn: the middle in log σ, for y = x/α and σ/α."""
    run = Run(process)
    y = run.start / run.knots[0].alpha

    def derivative(y, sigma):
        knot = process.knot_at(-math.log(sigma))
        return (y - run.model.x0(knot.alpha * y, knot.t)) / sigma

    for s, t in pairwise(run.knots):
        sigma, sigma_next = s.sigma / s.alpha, t.sigma / t.alpha
        middle = math.exp((math.log(sigma) + math.log(sigma_next)) / 2)
        y_2 = y + derivative(y, sigma) * (middle - sigma)
        y = y + derivative(y_2, middle) * (sigma_next - sigma)
    run.check("dpm-2", run.knots[-1].alpha * y)


def runge_kutta(order, field, v, w, y):
    """One step of Heun's, Kutta's or the classical method for dy/dv = field(y, v), from v to w."""
    h = w - v
    k1 = field(y, v)
    if order == 2:
        return y + h * (k1 + field(y + h * k1, w)) / 2
    if order == 3:
        k2 = field(y + h / 2 * k1, v + h / 2)
        return y + h / 6 * (k1 + 4 * k2 + field(y - h * k1 + 2 * h * k2, w))
    k2 = field(y + h / 2 * k1, v + h / 2)
    k3 = field(y + h / 2 * k2, v + h / 2)
    return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + field(y + h * k3, w))


@pytest.mark.parametrize("order", [2, 3, 4])
@over_processes
def test_rho_runge_kutta(process, order):
    """Zhang & Chen 2023, ρRK-DEIS: dy/dρ = ε for y = x/α, ρ = σ/α."""
    run = Run(process)
    y = run.start / run.knots[0].alpha

    def field(y, rho):
        knot = process.knot_at(-math.log(rho))
        return run.model.eps(knot.alpha * y, knot.t)

    for s, t in pairwise(run.knots):
        y = runge_kutta(order, field, s.sigma / s.alpha, t.sigma / t.alpha, y)
    run.check(f"deis-rho-rk(order={order})", run.knots[-1].alpha * y)


@over_processes
def test_rk4(process):
    """The classical method on Song et al. 2021, eq. 13, in t."""
    run = Run(process)
    x = run.start
    for s, t in pairwise(run.knots):
        x = runge_kutta(4, lambda x, t: process.reverse(run.model.score, 0.0).drift(x, t), s.t, t.t, x)
    run.check("rk4", x)


def transfer(x, eps, s, t):
    """Liu et al. 2022 (PNDM), the transfer φ; for VP the numerator is their ᾱ_t − ᾱ_s."""
    numerator = (t.alpha * s.sigma) ** 2 - (s.alpha * t.sigma) ** 2
    return t.alpha / s.alpha * x - numerator / (s.alpha * (t.sigma * s.alpha + s.sigma * t.alpha)) * eps


def linear_multistep(past):
    """Adams–Bashforth of equal steps (the paper has four), newest first."""
    weights = {1: [1], 2: [1.5, -0.5], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}
    return sum(weight * eps for weight, eps in zip(weights[len(past)], past))


@pytest.mark.parametrize("steps", [2, 3, 4, 7])
@over_forms
@over_processes
def test_pndm(process, below, lower_order_final, steps):
    """Liu et al. 2022 (PNDM), algorithm 2: pseudo Runge–Kutta for three steps, with the middle in t."""
    run = Run(process, steps, grid="time")
    x, past = run.start, []
    for i, (s, t) in enumerate(pairwise(run.knots)):
        past = [run.model.eps(x, s.t), *past][:4]
        if i >= 3:
            x = transfer(x, linear_multistep(past[: steps - i] if lower_order_final else past), s, t)
            continue
        middle = process.knot((s.t + t.t) / 2)
        e1 = past[0]
        e2 = run.model.eps(transfer(x, e1, s, middle), middle.t)
        e3 = run.model.eps(transfer(x, e2, s, middle), middle.t)
        e4 = run.model.eps(transfer(x, e3, s, t), t.t)
        x = transfer(x, (e1 + 2 * e2 + 2 * e3 + e4) / 6, s, t)
    run.check(f"pndm(lower_order_below={below})", x, nfe=4 * min(steps, 3) + max(0, steps - 3))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@over_forms
@over_processes
def test_ipndm(process, below, lower_order_final, order):
    """Zhang & Chen 2023, iPNDM: PNDM whose first steps use the Adams–Bashforth formulas of lower order."""
    run = Run(process)
    x, past = run.start, []
    for (s, t), now in zip(pairwise(run.knots), released_orders(order, STEPS, lower_order_final)):
        past = [run.model.eps(x, s.t), *past][:order]
        x = transfer(x, linear_multistep(past[:now]), s, t)
    run.check(f"ipndm-{order}" + f"(lower_order_below={below})" * (order > 1), x)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_ipndm_is_the_variable_step_method_where_steps_are_equal(order):
    process = sk.VE(sigma_min=0.3, sigma_max=3.0)
    rows = get(f"ipndm-{order}").plan(process, steps=9, grid="karras(rho=1)").rows
    others = get(f"ipndm-v(order={order})").plan(process, steps=9, grid="karras(rho=1)").rows
    for row, other in zip(rows, others):
        assert row.history == pytest.approx(other.history, rel=1e-9)
