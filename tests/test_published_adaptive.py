"""Each adaptive method against its paper's algorithm, one sample, in Python's floats."""

import math
from itertools import count

import pytest
import torch
from test_adaptive import EXACT, VP, mixture

import sdekit as sk
from sdekit.adaptive import CONTROLS, sample_adaptive
from sdekit.noise import normal


def eps_of_mixture(process):
    """The mixture's exact ε for a list of numbers at one time, written anew."""
    parts = list(zip((-1.5, 0.3, 1.0), (0.3, 0.5, 0.2)))

    def eps(x, t):
        alpha, sigma = process.alpha(t), process.sigma(t)
        v = (0.35 * alpha) ** 2 + sigma**2
        joint = [w * math.exp(-((x - alpha * m) ** 2) / (2 * v)) for m, w in parts]
        return sigma * sum(p * (x - alpha * m) for p, (m, _) in zip(joint, parts)) / v / sum(joint)

    return lambda x, t: [eps(value, t) for value in x]


def lu_12(process, eps, x, lam, h):
    """Lu et al. 2022: eq. 4.1 for the lower order, algorithm 1 for the higher."""
    t_of = process.t_of_half_log_snr
    s, middle, t = t_of(lam), t_of(lam + h / 2), t_of(lam + h)
    e = eps(x, s)

    def one(to, step):
        ratio, weight = process.alpha(to) / process.alpha(s), process.sigma(to) * math.expm1(step)
        return [ratio * a - weight * b for a, b in zip(x, e)]

    inner = eps(one(middle, h / 2), middle)
    ratio, weight = process.alpha(t) / process.alpha(s), process.sigma(t) * math.expm1(h)
    return one(t, h), [ratio * a - weight * b for a, b in zip(x, inner)]


def lu_23(process, eps, x, lam, h):
    """Lu et al. 2022: the general DPM-Solver-2 with r_1 = 1/3 for the lower order, algorithm 2 for the higher."""
    r1, r2, t_of = 1 / 3, 2 / 3, process.t_of_half_log_snr
    s, s1, s2, t = t_of(lam), t_of(lam + r1 * h), t_of(lam + r2 * h), t_of(lam + h)
    a, sig = process.alpha, process.sigma
    e = eps(x, s)
    u1 = [a(s1) / a(s) * p - sig(s1) * math.expm1(r1 * h) * q for p, q in zip(x, e)]
    d1 = [p - q for p, q in zip(eps(u1, s1), e)]
    bend = sig(s2) * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1)
    u2 = [a(s2) / a(s) * p - sig(s2) * math.expm1(r2 * h) * q - bend * d for p, q, d in zip(x, e, d1)]
    d2 = [p - q for p, q in zip(eps(u2, s2), e)]
    flat = [a(t) / a(s) * p - sig(t) * math.expm1(h) * q for p, q in zip(x, e)]
    low = [p - sig(t) / (2 * r1) * math.expm1(h) * d for p, d in zip(flat, d1)]
    return low, [p - sig(t) / r2 * (math.expm1(h) / h - 1) * d for p, d in zip(flat, d2)]


def jolicoeur_martineau(process, eps, noise):
    """Jolicoeur-Martineau et al. 2021, algorithm 1; their t is −u here."""

    def attempt(_, __, x, u, h):
        t = -u

        def move(y, at, z):
            score = [-e / process.sigma(at) for e in eps(y, at)]
            f, g = process.drift_rate(at), process.diffusion(at)
            return [-h * (f * p - g**2 * q) + math.sqrt(h) * g * w for p, q, w in zip(y, score, z)]

        z = noise()
        low = [p + k for p, k in zip(x, move(x, t, z))]
        other = [p + k for p, k in zip(x, move(low, t - h, z))]
        return low, [(p + q) / 2 for p, q in zip(low, other)]

    return attempt


def written_out(attempt, process, eps, x, u, end, h, r, rtol, atol, control):
    """The adaptive loop of both papers, with their step control or the PI control of Hairer et al. (II.4)."""
    before, e_before, accepted, rejected = x, 1.0, 0, 0
    while u < end:
        h = min(h, end - u)
        low, high = attempt(process, eps, x, u, h)
        delta = [max(atol, rtol * max(abs(p), abs(q))) for p, q in zip(low, before)]
        e = math.sqrt(sum(((p - q) / d) ** 2 for p, q, d in zip(low, high, delta)) / len(x))
        factor = 0.9 * e**-r
        if e <= 1:
            u = end if h == end - u else u + h
            x, before, accepted = high, low, accepted + 1
            if control == "pi":
                factor = min(max(0.9 * e ** (-0.7 * r) * max(e_before, 1e-4) ** (0.4 * r), 0.2), 10.0)
            e_before = e
        else:
            rejected += 1
            factor = max(factor, 0.2) if control == "pi" else factor
        h = h * factor
    return x, accepted, rejected


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize(("method", "attempt", "r"), [("dpm-solver-12", lu_12, 1 / 2), ("dpm-solver-23", lu_23, 1 / 3)])
@pytest.mark.parametrize(
    "process", [VP, sk.VE(t_min=0.1), sk.Flow(t_min=0.02, t_max=0.9)], ids=lambda p: type(p).__name__
)
def test_the_ode_methods_are_the_papers(method, attempt, r, control, process):
    x = [0.9, -0.4, 1.7]
    start = torch.tensor([x], dtype=EXACT)
    model = Elements(mixture()).model(process)
    out = sample_adaptive(
        model, (1, 3), method=method, control=control, rtol=1e-2, atol=1e-3, start=start, final="none"
    )
    ends = process.half_log_snr(process.t_max), process.half_log_snr(process.t_min)
    truth, accepted, rejected = written_out(
        attempt, process, eps_of_mixture(process), x, *ends, 0.05, r, 1e-2, 1e-3, control
    )
    assert out.x[0].tolist() == pytest.approx(truth, rel=1e-10, abs=1e-10)
    assert (out.accepted.item(), out.rejected.item()) == (accepted, rejected)
    assert rejected > 0 or control == "pi"  # else half of the algorithm was not run


@pytest.mark.parametrize("control", CONTROLS)
def test_the_sde_method_is_the_papers(control):
    # with the paper's noise, new at each attempt: a Brownian path is rough, and shows in z how h was rounded
    x, seed, attempts = [0.9, -0.4, 1.7], 11, count(1)
    attempt = jolicoeur_martineau(
        VP, eps_of_mixture(VP), lambda: normal(seed, next(attempts), torch.tensor([0]), (3,), EXACT)[0].tolist()
    )
    truth, accepted, rejected = written_out(attempt, VP, None, x, -1.0, -0.02, 0.01, 0.9, 0.05, 0.01, control)
    start = torch.tensor([x], dtype=EXACT)
    out = sample_adaptive(
        Elements(mixture()).model(VP), (1, 3), method="sde", control=control, noise="independent", rtol=0.05, atol=0.01,
        start=start, seed=seed, final="none",
    )  # fmt: skip
    assert out.x[0].tolist() == pytest.approx(truth, rel=1e-10, abs=1e-10)
    assert (out.accepted.item(), out.rejected.item()) == (accepted, rejected)
    assert rejected > 0


class Elements:
    """A 1-D target for each element of an event."""

    def __init__(self, target):
        self.target = target

    def model(self, process):
        inner = self.target.model(process)

        def net(x, t):
            times = t.repeat_interleave(x[0].numel(), output_size=x.numel())
            return inner.eps(x.reshape(-1, 1), times).reshape(x.shape)

        return sk.ScoreModel(net, process)
