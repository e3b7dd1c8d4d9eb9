"""Each solver against its paper's algorithm, written down again at tensor level, on the same knots in float64."""

import math

import pytest
import torch

import sdekit as sk
from sdekit.grid import Grid
from sdekit.testing import laws

PROCESSES = [sk.VP(), sk.VE(sigma_max=10.0), sk.CosineVP(), sk.Flow()]
START = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
STEPS = 7


def setup(process, grid="logsnr"):
    model = laws._mixture().model(process)
    knots = Grid.make(process, grid, STEPS).knots
    return model, knots, START * process.sigma(process.t_max)


def ours(solver, process, **options):
    model, _, start = setup(process)
    return sk.sample(model, start.shape, solver=solver, start=start, final="none", **options).x


def agree(ours, theirs):
    assert ((ours - theirs).abs() / theirs.abs().clamp(min=1e-3)).max() < 1e-10


over_processes = pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
over_forms = pytest.mark.parametrize(("below", "lower_order_final"), [("0", False), ("inf", True)])


def released_orders(order, steps, lower_order_final):
    """The orders of the multistep loop of DPM-Solver's and UniPC's released code: a start, then the rest to the end."""
    start = list(range(1, order))
    return start + [min(order, steps + 1 - step) if lower_order_final else order for step in range(order, steps + 1)]


@over_processes
def test_ddim(process):
    """Song, Meng & Ermon 2021, eq. 13: x/√ᾱ moves by ε times the change of √((1 − ᾱ)/ᾱ)."""
    model, knots, x = setup(process)
    for s, t in zip(knots, knots[1:]):
        eps = model.eps(x, s.t)
        x = t.alpha * (x / s.alpha + (t.sigma / t.alpha - s.sigma / s.alpha) * eps)
    agree(ours("ddim", process, steps=STEPS), x)


def test_euler_is_eq_13_of_score_sde():
    process = sk.VP()
    model, knots, x = setup(process)
    for s, t in zip(knots, knots[1:]):
        beta = 0.1 + 19.9 * s.t
        x = x + (-0.5 * beta * x - 0.5 * beta * model.score(x, s.t)) * (t.t - s.t)
    agree(ours("euler", process, steps=STEPS), x)


@over_processes
def test_heun(process):
    """Karras et al. 2022, algorithm 1 with σ(t) = t and s = 1, for the denoiser D(x/α; σ/α)."""
    model, knots, x = setup(process)
    y = x / knots[0].alpha
    for s, t in zip(knots, knots[1:]):
        t_i, t_next = s.sigma / s.alpha, t.sigma / t.alpha
        d = (y - model.x0(s.alpha * y, s.t)) / t_i
        ahead = y + (t_next - t_i) * d
        d_next = (ahead - model.x0(t.alpha * ahead, t.t)) / t_next
        y = y + (t_next - t_i) * (d + d_next) / 2
    agree(ours("heun", process, steps=STEPS), knots[-1].alpha * y)


@over_processes
def test_dpm_solver_2(process):
    """Lu et al. 2022 (DPM-Solver), algorithm 4 with r_1 = 1/2."""
    model, knots, x = setup(process)
    r1 = 0.5
    for s, t in zip(knots, knots[1:]):
        h = t.half_log_snr - s.half_log_snr
        m = process.knot_at(s.half_log_snr + r1 * h)
        eps = model.eps(x, s.t)
        u = m.alpha / s.alpha * x - m.sigma * (math.exp(r1 * h) - 1) * eps
        eps_u = model.eps(u, m.t)
        grow = t.sigma * (math.exp(h) - 1)
        x = t.alpha / s.alpha * x - grow * eps - grow / (2 * r1) * (eps_u - eps)
    agree(ours("dpm-solver-2", process, steps=STEPS), x)


def dpm_solver_3_step(model, process, x, s, t):
    """Lu et al. 2022 (DPM-Solver), algorithm 5 (algorithm 2 of the main text): r_1 = 1/3, r_2 = 2/3."""
    r1, r2, h = 1 / 3, 2 / 3, t.half_log_snr - s.half_log_snr
    m1, m2 = process.knot_at(s.half_log_snr + r1 * h), process.knot_at(s.half_log_snr + r2 * h)
    eps = model.eps(x, s.t)
    u1 = m1.alpha / s.alpha * x - m1.sigma * (math.exp(r1 * h) - 1) * eps
    d1 = model.eps(u1, m1.t) - eps
    u2 = m2.alpha / s.alpha * x - m2.sigma * (math.exp(r2 * h) - 1) * eps
    u2 = u2 - m2.sigma * r2 / r1 * ((math.exp(r2 * h) - 1) / (r2 * h) - 1) * d1
    d2 = model.eps(u2, m2.t) - eps
    end = t.alpha / s.alpha * x - t.sigma * (math.exp(h) - 1) * eps
    return end - t.sigma / r2 * ((math.exp(h) - 1) / h - 1) * d2


@over_processes
def test_dpm_solver_3(process):
    model, knots, x = setup(process)
    for s, t in zip(knots, knots[1:]):
        x = dpm_solver_3_step(model, process, x, s, t)
    agree(ours("dpm-solver-3", process, steps=STEPS), x)


@over_forms
@over_processes
def test_dpmpp_2m(process, below, lower_order_final):
    """Lu et al. 2022 (DPM-Solver++), algorithm 2; the released code makes the last step with order 1."""
    model, knots, x = setup(process)
    previous = None
    for i, (s, t) in enumerate(zip(knots, knots[1:])):
        h = t.half_log_snr - s.half_log_snr
        d = now = model.x0(x, s.t)
        if i > 0 and not (lower_order_final and i == STEPS - 1):
            r = (s.half_log_snr - knots[i - 1].half_log_snr) / h
            d = (1 + 1 / (2 * r)) * now - 1 / (2 * r) * previous
        x = t.sigma / s.sigma * x - t.alpha * (math.exp(-h) - 1) * d
        previous = now
    agree(ours(f"dpmpp-2m(lower_order_below={below})", process, steps=STEPS), x)


def unipc_step(order, bh, hs, x, s, t, d_s, past, d_t=None):
    """Zhao et al. 2023, eq. 3 and 9 for data prediction; ``past`` is [(λ, D)] newest first; with d_t it corrects."""
    h = t.half_log_snr - s.half_log_snr
    b_h = {"bh1": -h, "bh2": math.exp(-h) - 1}[bh]
    points = [((lam - s.half_log_snr) / h, d) for lam, d in past] + ([(1.0, d_t)] if d_t is not None else [])
    total = 0.0
    if points:
        p = len(points)
        # R_p(h) a_p(h) B(h) = g̃_p(h): row n is Σ a_m (r_m h)^{n−1} = h^n n! ψ_{n+1}(−h)/B
        psi = [math.exp(-h)]
        for k in range(p + 1):
            psi.append((psi[-1] - 1 / math.factorial(k)) / -h)
        matrix = torch.tensor([[r ** (n - 1) for r, _ in points] for n in range(1, p + 1)], dtype=torch.float64)
        right = [-h * math.factorial(n) * psi[n + 1] / b_h for n in range(1, p + 1)]
        a = torch.linalg.solve(matrix, torch.tensor(right, dtype=torch.float64)) if p > 1 else [0.5]
        total = sum(float(weight) / r * (d - d_s) for weight, (r, d) in zip(a, points))
    return t.sigma / s.sigma * x - t.alpha * (math.exp(-h) - 1) * d_s - t.alpha * b_h * total


@pytest.mark.parametrize("bh", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@over_forms
@over_processes
def test_unipc(process, below, lower_order_final, order, bh):
    """Zhao et al. 2023, algorithms 1 and 2 as released: ``lower_order_final`` is what its ``sample`` runs with."""
    model, knots, x = setup(process)
    past, d_s = [], model.x0(x, knots[0].t)
    orders = released_orders(order, STEPS, lower_order_final)
    for i, (s, t) in enumerate(zip(knots, knots[1:])):
        known = past[: orders[i] - 1]
        predicted = unipc_step(order, bh, None, x, s, t, d_s, known)
        if i == STEPS - 1:
            x = predicted
            break
        d_t = model.x0(predicted, t.t)
        x = unipc_step(order, bh, None, x, s, t, d_s, known, d_t)
        past, d_s = [(s.half_log_snr, d_s), *past], d_t
    spec = f"unipc-{order}(variant={bh!r}" + f", lower_order_below={below}" * (order > 1) + ")"
    agree(ours(spec, process, steps=STEPS), x)


def recorded_noise(seed, steps):
    from sdekit.noise import normal

    samples = torch.arange(len(START))
    return [normal(seed, i + 1, samples, (1,), torch.float64) for i in range(steps)]


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm(variance):
    """Ho et al. 2020, algorithm 2, on the table's own steps."""
    process = sk.DiscreteVP.linear(50)
    betas = torch.tensor(process.betas, dtype=torch.float64)
    bars = (1 - betas).cumprod(0)
    model = laws._mixture().model(process)
    x, noise = START, recorded_noise(5, 49)
    for i, n in enumerate(range(49, 0, -1)):
        eps = model.eps(x, (n + 1) / 50)
        mean = (x - betas[n] / (1 - bars[n]).sqrt() * eps) / (1 - betas[n]).sqrt()
        var = betas[n] if variance == "large" else betas[n] * (1 - bars[n - 1]) / (1 - bars[n])
        x = mean + var.sqrt() * noise[i]
    spec = f"ddpm(variance={variance!r})"
    out = sk.sample(model, START.shape, solver=spec, steps=49, grid="time", start=START, seed=5, final="none")
    agree(out.x, x)


@pytest.mark.parametrize("eta", [0.2, 1.0])
def test_stochastic_ddim(eta):
    """Song, Meng & Ermon 2021, eq. 12 and 16."""
    process = sk.VP()
    model, knots, x = setup(process)
    for (s, t), z in zip(zip(knots, knots[1:]), recorded_noise(5, STEPS)):
        bar_s, bar_t = s.alpha**2, t.alpha**2
        std = eta * math.sqrt((1 - bar_t) / (1 - bar_s)) * math.sqrt(1 - bar_s / bar_t)
        eps = model.eps(x, s.t)
        x0 = (x - math.sqrt(1 - bar_s) * eps) / math.sqrt(bar_s)
        x = math.sqrt(bar_t) * x0 + math.sqrt(1 - bar_t - std**2) * eps + std * z
    agree(ours(f"ddim(eta={eta})", process, steps=STEPS, seed=5), x)


@over_processes
def test_euler_maruyama(process):
    """Song et al. 2021, eq. 6, by the Euler–Maruyama rule backwards in t."""
    model, knots, x = setup(process)
    for (s, t), z in zip(zip(knots, knots[1:]), recorded_noise(5, STEPS)):
        dt, g = s.t - t.t, process.diffusion(s.t)
        x = x - (process.drift(x, s.t) - g**2 * model.score(x, s.t)) * dt + g * math.sqrt(dt) * z
    agree(ours("euler-maruyama", process, steps=STEPS, seed=5), x)


@over_forms
@over_processes
def test_dpmpp_2m_sde(process, below, lower_order_final):
    """Lu et al. 2022 (DPM-Solver++), SDE-DPM-Solver++(2M), with the last step of order 1 or without."""
    model, knots, x = setup(process)
    previous = None
    for i, ((s, t), z) in enumerate(zip(zip(knots, knots[1:]), recorded_noise(5, STEPS))):
        h, now = t.half_log_snr - s.half_log_snr, model.x0(x, s.t)
        grow = t.alpha * (1 - math.exp(-2 * h))
        x = t.sigma / s.sigma * math.exp(-h) * x + grow * now + t.sigma * math.sqrt(1 - math.exp(-2 * h)) * z
        if i > 0 and not (lower_order_final and i == STEPS - 1):
            r = (s.half_log_snr - knots[i - 1].half_log_snr) / h
            x = x + grow / 2 * (now - previous) / r
        previous = now
    agree(ours(f"dpmpp-2m-sde(lower_order_below={below})", process, steps=STEPS, seed=5), x)
