"""Each stochastic solver against its paper's algorithm, written down again at tensor level, with the same noise.

The noise comes from the Brownian path itself, W of (seed 5, sample), over the interval that the paper's step covers.
Papers write y = x/α and κ = σ/α (their σ) unless they say otherwise.
"""

import math

import pytest
import torch
from scipy.integrate import quad

import sdekit as sk
from sdekit.grid import Grid
from sdekit.noise import path
from sdekit.testing import laws

PROCESSES = [sk.VP(), sk.VE(sigma_max=10.0), sk.CosineVP(), sk.Flow()]
START = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
STEPS = 7
over_processes = pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
over_forms = pytest.mark.parametrize(("below", "lower_order_final"), [("0", False), ("inf", True)])


def setup(process, steps=STEPS):
    model = laws._mixture().model(process)
    return model, Grid.make(process, "logsnr", steps).knots, START * process.sigma(process.t_max)


def wiener(half_log_snr):
    return math.exp(half_log_snr) * path(5, half_log_snr, torch.arange(len(START)), (1,), torch.float64)


def z(a, b):
    """(W(e^{2b}) − W(e^{2a}))/√(e^{2b} − e^{2a})."""
    return (wiener(b) - wiener(a)) / math.sqrt(math.exp(2 * b) - math.exp(2 * a))


def agrees(spec, process, theirs, **arguments):
    model, _, start = setup(process)
    arguments = {"steps": STEPS, **arguments}
    x = sk.sample(model, start.shape, solver=spec, start=start, final="none", seed=5, noise="brownian", **arguments).x
    assert ((x - theirs).abs() / theirs.abs().clamp(min=1e-3)).max() < 1e-8


@pytest.mark.parametrize(
    ("churn", "low", "high", "std"), [(10, 0, math.inf, 1.0), (4, 0.05, 2.0, 1.003)], ids=["all", "part"]
)
@over_processes
def test_edm(process, churn, low, high, std):
    """Karras et al. 2022, algorithm 2, for the denoiser D(y; κ); γ = 0 where t̂ would leave the range."""
    model, knots, x = setup(process)
    y, kappas = x / knots[0].alpha, [knot.sigma / knot.alpha for knot in knots]

    def denoise(y, kappa):
        knot = process.knot_at(-math.log(kappa))
        return model.x0(knot.alpha * y, knot.t)

    for i in range(STEPS):
        t, t_next = kappas[i], kappas[i + 1]
        gamma = min(churn / STEPS, math.sqrt(2) - 1) if low <= t <= high else 0
        t_hat = min(t + gamma * t, kappas[0])
        y_hat = y + math.sqrt(t_hat**2 - t**2) * std * z(knots[i].half_log_snr, knots[i + 1].half_log_snr)
        d = (y_hat - denoise(y_hat, t_hat)) / t_hat
        y = y_hat + (t_next - t_hat) * d
        d_next = (y - denoise(y, t_next)) / t_next
        y = y_hat + (t_next - t_hat) * (0.5 * d + 0.5 * d_next)
    high = repr(high) if math.isfinite(high) else "1e999"
    agrees(f"edm(churn={churn}, s_min={low}, s_max={high}, s_noise={std})", process, knots[-1].alpha * y)


@pytest.mark.parametrize(("eta", "r"), [(1.0, 0.5), (0.5, 0.5), (1.0, 0.3), (0.8, 1)])
@over_processes
def test_dpmpp_sde(process, eta, r):
    """DPM-Solver++ (stochastic) as k-diffusion states it, with noise from one path at both stages."""
    model, knots, x = setup(process)
    y = x / knots[0].alpha

    def ancestral(sigma, sigma_next):
        up = min(sigma_next, eta * math.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2))
        return math.sqrt(sigma_next**2 - up**2), up

    for i in range(STEPS):
        t, t_next = knots[i].half_log_snr, knots[i + 1].half_log_snr
        s = t + r * (t_next - t)
        m = process.knot_at(s)
        first = model.x0(knots[i].alpha * y, knots[i].t)
        down, up = ancestral(math.exp(-t), math.exp(-s))
        y_2 = down / math.exp(-t) * y - math.expm1(t + math.log(down)) * first + z(t, s) * up
        second = model.x0(m.alpha * y_2, m.t)
        down, up = ancestral(math.exp(-t), math.exp(-t_next))
        mixed = (1 - 1 / (2 * r)) * first + 1 / (2 * r) * second
        y = down / math.exp(-t) * y - math.expm1(t + math.log(down)) * mixed + z(t, t_next) * up
    agrees(f"dpmpp-sde(eta={eta}, r={r})", process, knots[-1].alpha * y)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("curvature", ["published", "exact"])
@over_forms
@over_processes
def test_dpmpp_3m_sde(process, below, lower_order_final, eta, curvature):
    """As k-diffusion states it; with "exact" D'' doubled, as its Taylor formula has it.

    With ``lower_order_final`` its formula of two predictions makes the last step but one, that of one the last.
    """
    model, knots, x = setup(process)
    y, past, steps = x / knots[0].alpha, [], []
    for i, (s, t) in enumerate(zip(knots, knots[1:])):
        d, h = model.x0(s.alpha * y, s.t), t.half_log_snr - s.half_log_snr
        full, most = h * (eta + 1), {STEPS - 1: 0, STEPS - 2: 1}.get(i, 2) if lower_order_final else 2
        y = math.exp(-full) * y - math.expm1(-full) * d
        phi_2 = math.expm1(-full) / full + 1
        if len(past) > 1 and most > 1:
            r0, r1 = steps[-1] / h, steps[-2] / h
            d1_0, d1_1 = (d - past[-1]) / r0, (past[-1] - past[-2]) / r1
            d1 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1)
            d2 = (d1_0 - d1_1) / (r0 + r1) * (2 if curvature == "exact" else 1)
            y = y + phi_2 * d1 - (phi_2 / full - 0.5) * d2
        elif past and most:
            y = y + phi_2 * (d - past[-1]) / (steps[-1] / h)
        if eta:
            y = y + math.exp(-t.half_log_snr) * math.sqrt(-math.expm1(-2 * h * eta)) * z(s.half_log_snr, t.half_log_snr)
        past, steps = [*past, d], [*steps, h]
    agrees(f"dpmpp-3m-sde(eta={eta}, curvature={curvature!r}, lower_order_below={below})", process, knots[-1].alpha * y)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_gddim(level):
    """Zhang, Tao & Chen 2023, the scalar case of proposition 6 on VP: ā = α², R = √(1 − ā), Ψ̂ and P by quadrature."""
    process = sk.VP()
    model, knots, x = setup(process)

    def rate(t):  # F̂ = F + ½(1 + λ²) G Gᵀ Σ⁻¹
        beta = 0.1 + 19.9 * t
        return -0.5 * beta + 0.5 * (1 + level**2) * beta / (1 - process.alpha(t) ** 2)

    def transition(t, s):
        return math.exp(quad(rate, s, t, epsabs=1e-13, epsrel=1e-13)[0])

    for s, t in zip(knots, knots[1:]):
        shrink = transition(t.t, s.t)

        def grown(u, end=t.t):
            return transition(end, u) ** 2 * level**2 * (0.1 + 19.9 * u)

        variance = quad(grown, t.t, s.t, epsrel=1e-11)[0]
        eps = model.eps(x, s.t)
        along = t.alpha / s.alpha  # Ψ of F: the mean of x_t for the data point predicted is along · (x − R ε)
        mean = along * (x - s.sigma * eps) + shrink * s.sigma * eps
        x = mean + (math.sqrt(variance) * z(s.half_log_snr, t.half_log_snr) if level else 0)
    agrees(f"gddim(noise_level={level})", process, x)


@over_processes
def test_seeds_1(process):
    """Gonzalez et al. 2023, algorithm 1."""
    model, knots, x = setup(process)
    for s, t in zip(knots, knots[1:]):
        h = t.half_log_snr - s.half_log_snr
        noise = t.sigma * math.sqrt(math.exp(2 * h) - 1) * z(s.half_log_snr, t.half_log_snr)
        x = t.alpha / s.alpha * x - 2 * t.sigma * (math.exp(h) - 1) * model.eps(x, s.t) + noise
    agrees("seeds-1", process, x)


@over_processes
def test_seeds_2(process):
    """Gonzalez et al. 2023, algorithm 2."""
    model, knots, x = setup(process)
    for s, t in zip(knots, knots[1:]):
        h = t.half_log_snr - s.half_log_snr
        m = process.knot_at(s.half_log_snr + h / 2)
        z1, z2 = z(s.half_log_snr, m.half_log_snr), z(m.half_log_snr, t.half_log_snr)
        u = m.alpha / s.alpha * x - 2 * m.sigma * (math.exp(h / 2) - 1) * model.eps(x, s.t)
        u = u + m.sigma * math.sqrt(math.exp(h) - 1) * z1
        x = t.alpha / s.alpha * x - 2 * t.sigma * (math.exp(h) - 1) * model.eps(u, m.t)
        x = x + t.sigma * (math.sqrt(math.exp(2 * h) - math.exp(h)) * z1 + math.sqrt(math.exp(h) - 1) * z2)
    agrees("seeds-2", process, x)


@over_processes
def test_seeds_3(process):
    """Gonzalez et al. 2023, algorithm 3 with r_1 = 1/3, r_2 = 2/3."""
    model, knots, x = setup(process)
    r1, r2 = 1 / 3, 2 / 3
    for s, t in zip(knots, knots[1:]):
        h = t.half_log_snr - s.half_log_snr
        m1, m2 = (process.knot_at(s.half_log_snr + r * h) for r in (r1, r2))
        ends = [knot.half_log_snr for knot in (s, m1, m2, t)]
        z1, z2, z3 = (z(a, b) for a, b in zip(ends, ends[1:]))
        eps = model.eps(x, s.t)
        u1 = m1.alpha / s.alpha * x - 2 * m1.sigma * (math.exp(r1 * h) - 1) * eps
        u1 = u1 + m1.sigma * math.sqrt(math.exp(2 * r1 * h) - 1) * z1
        d1 = model.eps(u1, m1.t) - eps
        u2 = m2.alpha / s.alpha * x - 2 * m2.sigma * (math.exp(r2 * h) - 1) * eps
        u2 = u2 - 2 * m2.sigma * r2 / r1 * ((math.exp(r2 * h) - 1) / (r2 * h) - 1) * d1
        u2 = u2 + m2.sigma * math.sqrt(math.exp(2 * r2 * h) - math.exp(2 * r1 * h)) * z1
        u2 = u2 + m2.sigma * math.sqrt(math.exp(2 * r1 * h) - 1) * z2
        d2 = model.eps(u2, m2.t) - eps
        x = t.alpha / s.alpha * x - 2 * t.sigma * (math.exp(h) - 1) * eps
        x = x - 2 * t.sigma / r2 * ((math.exp(h) - 1) / h - 1) * d2
        x = x + t.sigma * math.sqrt(math.exp(2 * h) - math.exp(2 * r2 * h)) * z1
        x = x + t.sigma * math.sqrt(math.exp(2 * r2 * h) - math.exp(2 * r1 * h)) * z2
        x = x + t.sigma * math.sqrt(math.exp(2 * r1 * h) - 1) * z3
    agrees("seeds-3", process, x)


@pytest.mark.parametrize(
    ("predictor", "corrector", "tau", "low", "high"),
    [(3, 3, 1.0, 0.0, 1e9), (2, 0, 0.6, 0.0, 1e9), (1, 4, 1.0, 0.05, 1.0), (4, 2, 0.0, 0.0, 1e9)],
)
@over_forms
@over_processes
def test_sa_solver(process, below, lower_order_final, predictor, corrector, tau, low, high):
    """Xue et al. 2023, algorithm 1 and eq. 14 and 17: the integrals of the Lagrange polynomials by quadrature."""
    model, knots, x = setup(process)

    def integrals(points, s, t, rate):
        """b_j = σ_t ∫ e^{−∫_λ^{λ_t} τ²} (1 + τ²) e^λ l_j(λ) dλ, with l_j through ``points``."""

        def integrand(lam, j):
            lagrange = math.prod((lam - p) / (points[j] - p) for p in points if p != points[j])
            return math.exp(-rate * (t.half_log_snr - lam)) * (1 + rate) * math.exp(lam) * lagrange

        ends = s.half_log_snr, t.half_log_snr
        return [t.sigma * quad(integrand, *ends, args=(j,), epsabs=0, epsrel=1e-12)[0] for j in range(len(points))]

    past = [(knots[0].half_log_snr, model.x0(x, knots[0].t))]
    for i, (s, t) in enumerate(zip(knots, knots[1:])):
        rate = tau**2 if low <= s.sigma / s.alpha <= high else 0.0
        h = t.half_log_snr - s.half_log_snr
        mean = t.sigma / s.sigma * math.exp(-rate * h) * x
        if rate:
            mean = mean + t.sigma * math.sqrt(1 - math.exp(-2 * rate * h)) * z(s.half_log_snr, t.half_log_snr)
        left = STEPS - i if lower_order_final else STEPS  # the last step has a predictor of one point
        used = past[: min(predictor, left)]
        x = mean + sum(b * d for b, (_, d) in zip(integrals([lam for lam, _ in used], s, t, rate), used))
        if i == STEPS - 1:
            break
        new = (t.half_log_snr, model.x0(x, t.t))
        if corrector:
            used = [new, *past[: min(corrector, left)]]
            x = mean + sum(b * d for b, (_, d) in zip(integrals([lam for lam, _ in used], s, t, rate), used))
        past = [new, *past]
    spec = f"sa-solver(predictor={predictor}, corrector={corrector}, tau={tau}, s_min={low}, s_max={high}"
    spec += f", lower_order_below={below})"
    agrees(spec, process, x)


def test_reverse_diffusion_on_a_table():
    """Song et al. 2021, algorithm 3 and appendix E, for VP: x ← (2 − √(1 − β)) x + β s + √β z."""
    process = sk.DiscreteVP.linear(30)
    model, _, x = setup(process)
    lambdas = [process.half_log_snr((n + 1) / 30) for n in range(30)]
    for n in range(29, 0, -1):
        beta = process.betas[n]
        x = (2 - math.sqrt(1 - beta)) * x + beta * model.score(x, (n + 1) / 30)
        x = x + math.sqrt(beta) * z(lambdas[n], lambdas[n - 1])
    agrees("reverse-diffusion", process, x, steps=29, grid="time")


@pytest.mark.parametrize("corrections", [1, 3])
def test_pc(corrections):
    """Song et al. 2021, algorithms 2 and 4 (VE), with ε = 2 (r σ)²."""
    process = sk.VE(sigma_max=10.0)
    model, knots, x = setup(process)
    for s, t in zip(knots, knots[1:]):
        ends = [
            s.half_log_snr + (t.half_log_snr - s.half_log_snr) * k / (corrections + 1) for k in range(corrections + 2)
        ]
        gap = s.sigma**2 - t.sigma**2
        x = x + gap * model.score(x, s.t) + math.sqrt(gap) * z(*ends[:2])
        size = 2 * (0.2 * t.sigma) ** 2
        for pair in zip(ends[1:], ends[2:]):
            x = x + size * model.score(x, t.t) + math.sqrt(2 * size) * z(*pair)
    agrees(f"pc(corrections={corrections}, snr=0.2)", process, x)


@over_processes
def test_restart(process):
    """Xu et al. 2023, algorithm 1 with K = 2: Heun to the end of the interval, noise up, Heun down, twice; then on."""
    model, knots, x = setup(process, 8)
    y, kappas = x / knots[0].alpha, [knot.sigma / knot.alpha for knot in knots]

    def heun(y, i):
        step = kappas[i + 1] - kappas[i]
        d = model.eps(knots[i].alpha * y, knots[i].t)
        d_next = model.eps(knots[i + 1].alpha * (y + step * d), knots[i + 1].t)
        return y + step * (d + d_next) / 2

    first, last = knots[0].half_log_snr, knots[-1].half_log_snr
    for i in range(8):
        y = heun(y, i)
        for k in range(2 if i == 5 else 0):  # the interval is that of the steps 5 and 6: from 1/2 to 3/4 of the way
            ends = [first + (last - first) * part / 2 for part in (k, k + 1)]
            y = y + math.sqrt(kappas[4] ** 2 - kappas[6] ** 2) * z(*ends)
            y = heun(heun(y, 4), 5)
    agrees("restart", process, knots[-1].alpha * y, steps=8)


def test_restart_spends_any_budget():
    for budget in range(1, 60):
        evaluations = list(sk.solvers.get("restart(repeats=3)").split(budget))
        assert sum(evaluations) == budget
        assert evaluations.count(2) + evaluations.count(1) >= len(evaluations) - 1
    with pytest.raises(ValueError, match="the interval needs low < high"):
        sk.solvers.get("restart(low=0.6, high=0.5)")


SCALES = {
    "ode": lambda k: k,
    "sde": lambda k: k**2,
    "er-sde-4": lambda k: k**0.9 * math.log10(1 + 100 * k**1.5),
    "er-sde-5": lambda k: k * (math.exp(k**0.3) + 10),
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("stages", [1, 2, 3])
@over_forms
@over_processes
def test_er_sde(process, below, lower_order_final, stages, scale):
    """Cui et al. 2023, algorithms 1 to 3, in y; the paper's integrals by adaptive quadrature."""
    model, knots, x = setup(process)
    phi, y = SCALES[scale], x / knots[0].alpha
    kappas, past, slopes = [knot.sigma / knot.alpha for knot in knots], [], []
    for i, (s, t) in enumerate(zip(knots, knots[1:])):
        k_s, k_t, left = kappas[i], kappas[i + 1], STEPS - i if lower_order_final else STEPS
        d = model.x0(s.alpha * y, s.t)
        ratio = phi(k_t) / phi(k_s)
        y = ratio * y + (1 - ratio) * d
        if past and min(stages, left) > 1:
            slope = (d - past[-1]) / (k_s - kappas[i - 1])
            integral = quad(lambda k: 1 / phi(k), k_t, k_s, epsabs=0, epsrel=1e-13, limit=200)[0]
            y = y + (k_t - k_s + phi(k_t) * integral) * slope
            if slopes and min(stages, left) > 2:
                curve = 2 * (slope - slopes[-1]) / (k_s - kappas[i - 2])
                integral = quad(lambda k, k_s=k_s: (k - k_s) / phi(k), k_t, k_s, epsabs=0, epsrel=1e-13, limit=200)[0]
                y = y + ((k_t - k_s) ** 2 / 2 + phi(k_t) * integral) * curve
            slopes.append(slope)
        if scale != "ode":
            y = y + math.sqrt(k_t**2 - (k_s * ratio) ** 2) * z(s.half_log_snr, t.half_log_snr)
        past.append(d)
    option = f", lower_order_below={below}" * (stages > 1)
    agrees(f"er-sde-{stages}(scale={scale!r}{option})", process, knots[-1].alpha * y)


@over_processes
def test_consistency(process):
    """Song et al. 2023, algorithm 1, with f(y, κ) = E[x_0] (the identity of times is what is tested) and ε = κ_min."""
    model, knots, x = setup(process)
    kappas = [knot.sigma / knot.alpha for knot in knots]
    y = model.x0(x, knots[0].t)
    for i in range(1, STEPS):
        noisy = y + math.sqrt(kappas[i] ** 2 - kappas[-1] ** 2) * z(knots[i - 1].half_log_snr, knots[i].half_log_snr)
        y = model.x0(knots[i].alpha * noisy, knots[i].t)
    agrees("consistency", process, knots[-1].alpha * y)


@over_processes
def test_lcm(process):
    """Luo et al. 2023, algorithm 3."""
    model, knots, x = setup(process)
    for s, t in zip(knots, knots[1:]):
        x = t.alpha * model.x0(x, s.t) + t.sigma * z(s.half_log_snr, t.half_log_snr)
    agrees("lcm", process, x)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_tcd(gamma):
    """Zheng et al. 2024, algorithm 4, on a table: from the entry n to s = (1 − γ) n', then forward to n'."""
    process = sk.DiscreteVP.linear(101)
    model, x = laws._mixture().model(process), START
    entries = [100, 80, 50, 30, 10, 0]
    bars = torch.cumprod(1 - torch.tensor(process.betas, dtype=torch.float64), 0).tolist()
    times = [(n + 1) / 101 for n in entries]
    lambdas = [process.half_log_snr(t) for t in times]
    for i, (n, after) in enumerate(zip(entries, entries[1:])):
        below = round((1 - gamma) * after)
        assert below == pytest.approx((1 - gamma) * after)
        x0 = model.x0(x, times[i])
        eps = (x - math.sqrt(bars[n]) * x0) / math.sqrt(1 - bars[n])
        x = math.sqrt(bars[below]) * x0 + math.sqrt(1 - bars[below]) * eps
        if gamma:
            ratio = bars[after] / bars[below]
            x = math.sqrt(ratio) * x + math.sqrt(1 - ratio) * z(lambdas[i], lambdas[i + 1])
    out = sk.sample(
        model, x.shape, solver=f"tcd(gamma={gamma})", start=START, final="none", seed=5, noise="brownian", grid=times
    )
    assert ((out.x - x).abs() / x.abs().clamp(min=1e-3)).max() < 1e-8


@pytest.mark.parametrize("spec", ["consistency", "lcm", "tcd(gamma=1.0)"])
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_a_consistency_function_gives_the_data_at_any_number_of_steps(spec, steps):
    """The exact jump from x_t to data N(0, std²) gives that variance, to 5 standard errors of 4,001 samples."""
    process, std = sk.VE(sigma_min=1e-6, sigma_max=10.0), 0.5

    def jump(x, t):
        return x * std / (std**2 + process.sigma(t) ** 2).sqrt()[:, None]

    model = sk.ScoreModel(jump, process, predicts="x0")
    quantiles = torch.linspace(-1, 1, 4003, dtype=torch.float64)[1:-1, None].erfinv() * math.sqrt(2)
    start = quantiles * math.hypot(process.sigma(1.0), std)
    x = sk.sample(model, start.shape, solver=spec, steps=steps, start=start, seed=0).x
    assert x.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * len(start)))
