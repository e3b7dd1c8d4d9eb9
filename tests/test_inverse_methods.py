"""Posterior sampling: each method against its formula written out, and the laws that all of them keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from strategies import PREDICTIONS, PROCESSES, at
from torch import Tensor

import sdekit as sk
from sdekit import inverse
from sdekit.guidance import WeightsWarning
from sdekit.inverse.conditioned import Conditioned
from sdekit.inverse.methods.ddnm import DDNM
from sdekit.inverse.methods.diffpir import DiffPIR
from sdekit.inverse.methods.mmps import MMPS
from sdekit.inverse.methods.pigdm import PiGDM
from sdekit.inverse.methods.tds import Twisted
from sdekit.inverse.methods.tmpd import TMPD
from sdekit.targets import Gaussian, GaussianMixture
from sdekit.testing import simgpu

F64 = torch.float64
ROOT = torch.tensor([[1.0, 0.2, -0.1], [0.3, 0.7, 0.4], [0.2, -0.5, 0.6]], dtype=F64)
COV = ROOT @ ROOT.T
GAUSSIAN = Gaussian(torch.tensor([0.3, -0.2, 0.5], dtype=F64), COV)
TWO = inverse.Projection((3,), 2, seed=1)
SEEN = inverse.Measurement(TWO, torch.tensor([0.5, -0.4], dtype=F64), inverse.GaussianNoise(0.3))
MASK = inverse.Mask(torch.tensor([True, False, True]))
MASKED = inverse.Measurement(MASK, torch.tensor([0.5, -0.4], dtype=F64), inverse.GaussianNoise(0.3))
MIXTURE = GaussianMixture(torch.tensor([[-1.0, 0.5, 0.0], [1.0, 0.3, 1.0], [0.0, -1.0, 0.5]], dtype=F64), 0.3)
WRAPPERS: dict[str, Callable[[Any, inverse.Measurement], Conditioned]] = {
    "mmps": lambda model, seen: MMPS(model, seen, 3),
    "pigdm": PiGDM,
    "pigdm with a covariance": lambda model, seen: PiGDM(model, seen, covariance=COV),
    "tmpd": TMPD,
    "ddnm": DDNM,
    "diffpir": DiffPIR,
    "twisted": Twisted,
    "twisted plainly": lambda model, seen: Twisted(model, seen, tau=0.0),
}


def run(method: str, target: Any = MIXTURE, seen: inverse.Measurement = MASKED, n: int = 32, **options: Any) -> Any:
    chosen: dict[str, Any] = {"nfe": 12, "seed": 0, "dtype": F64, **options}
    return inverse.sample_posterior(target.model(sk.VP()), seen, (n, 3), method=method, **chosen)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_moment_methods_are_exact_on_gaussians(process: str, predicts: str) -> None:
    chosen = PROCESSES[process]
    law, model = inverse.posterior(GAUSSIAN, SEEN), GAUSSIAN.model(chosen, predicts)
    for share in (0.01, 0.3, 0.9):
        t = at(chosen, share)
        x = GAUSSIAN.sample(4, seed=1, t=t, process=chosen)
        known = law.score(x, t, chosen)
        times = torch.full((4,), t, dtype=F64)
        for wrapped in (MMPS(model, SEEN, 2), PiGDM(model, SEEN, covariance=COV)):
            for kind in ("score", "x0"):
                exact = known if kind == "score" else law.conditional_means(x, t, chosen)[0]
                torch.testing.assert_close(wrapped.predict(kind, x, t), exact, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(wrapped.predict("score", x, times), known, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", sk.solvers.names())
def test_every_solver_runs_a_wrapper_as_it_runs_the_posterior_itself(solver: str) -> None:
    options: dict[str, Any] = {"solver": solver, "nfe": 8, "seed": 0, "dtype": F64, "final": "denoise"}
    exact = sk.sample(inverse.posterior(GAUSSIAN, SEEN).model(sk.VP()), (3, 3), **options)
    found = sk.sample(MMPS(GAUSSIAN.model(sk.VP()), SEEN, 2), (3, 3), **options)
    torch.testing.assert_close(found.x, exact.x, rtol=1e-6, atol=1e-6)


NOTHING = [
    inverse.Measurement(inverse.Mask(torch.zeros(3, dtype=torch.bool)), torch.zeros(0), inverse.GaussianNoise(0.3)),
    inverse.Measurement(inverse.Linear(lambda x: 0 * x[:, :2], (3,)), torch.ones(2), inverse.GaussianNoise(0.3)),
]


CHAINS = ("daps", "ddrm", "gibbs")


@pytest.mark.parametrize("seen", NOTHING, ids=["an empty mask", "zeros"])
@pytest.mark.parametrize("method", inverse.names())
def test_with_nothing_measured_the_samples_are_the_priors_to_the_bit(method: str, seen: inverse.Measurement) -> None:
    known = inverse.method(method)
    if known.operators == "mask" and not isinstance(seen.operator, inverse.Mask):
        pytest.skip("takes a mask alone")
    if method in CHAINS:
        pytest.skip("its steps are its own, not a solver's: see its formula")
    for dtype in (torch.float32, F64):
        found = run(method, seen=seen, solver="ddpm", dtype=dtype)
        plain = sk.sample(
            MIXTURE.model(sk.VP()),
            (32, 3),
            solver="ddpm",
            grid=known.grid,
            nfe=12,
            seed=0,
            final="denoise",
            dtype=dtype,
        )
        assert torch.equal(found.x, plain.x)


@pytest.mark.parametrize("method", inverse.names())
def test_runs_repeat_and_count_and_agree_in_float32(method: str) -> None:
    one, same, narrow = run(method), run(method), run(method, dtype=torch.float32)
    assert torch.equal(one.x, same.x)
    assert one.nfe == 12
    torch.testing.assert_close(narrow.x.double(), one.x, rtol=0, atol=2e-3)
    assert not torch.equal(run(method, seed=1).x, one.x)
    assert one.x.isfinite().all()


GRADIENTS = {"mmps(iterations=3)": 48, "pigdm": 12, "tmpd": 24, "dps": 12, "tds": 12, "mcg": 12, "ddnm": 0, "gibbs": 0}


@pytest.mark.parametrize("method", GRADIENTS)
def test_gradients_are_counted(method: str) -> None:
    assert run(method).gradients == GRADIENTS[method]
    if method != "tds":
        parts = run(method, batch_size=10)
        assert (parts.nfe, parts.gradients) == (12, GRADIENTS[method])
        torch.testing.assert_close(parts.x, run(method).x)


@pytest.mark.parametrize("method", [name for name in inverse.names() if not inverse.method(name).exact])
def test_a_measurement_for_each_sample_is_that_of_its_own_run(method: str) -> None:
    rows = torch.tensor([[0.1, 0.2], [-0.5, 0.9], [1.0, -1.0]], dtype=F64)
    found = run(method, n=3, measured=rows, batch_size=2)
    for i, y in enumerate(rows):
        seen = inverse.Measurement(MASK, y, MASKED.noise)
        torch.testing.assert_close(found.x[i], run(method, n=3, seen=seen).x[i])


@pytest.mark.parametrize("name", WRAPPERS)
def test_samples_are_their_own(name: str) -> None:
    """A permutation of the batch is one of the predictions."""
    process = sk.Flow()
    wrapped, t = WRAPPERS[name](MIXTURE.model(process), SEEN), 0.4
    x, order = MIXTURE.sample(7, seed=1, t=t, process=process), torch.tensor([3, 1, 6, 0, 2, 5, 4])
    torch.testing.assert_close(wrapped.predict("v", x[order], t), wrapped.predict("v", x, t)[order])


def test_particles_may_be_permuted() -> None:
    """Weights, and with them the evidence, do not ask for an order; neither do the counts of resampling, but for 1."""
    from sdekit.guidance.resampling import effective, log_mean, systematic

    log_weights = torch.randn(2, 50, generator=torch.Generator().manual_seed(0), dtype=F64)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(effective(log_weights[:, order]), effective(log_weights))
    torch.testing.assert_close(log_mean(log_weights[:, order]), log_mean(log_weights))
    wanted = 50 * log_weights.softmax(1)
    for given, expected in ((log_weights, wanted), (log_weights[:, order], wanted[:, order])):
        picks = systematic(given, torch.tensor([[0.2], [0.7]], dtype=F64))
        counts = torch.stack([row.bincount(minlength=50) for row in picks])
        assert ((counts - expected).abs() < 1).all()


def differentiated(model: sk.ScoreModel, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """x_0 at x, and its Jacobian for each sample [batch, D, D], by torch.autograd."""
    x = x.clone().requires_grad_()
    with torch.enable_grad():
        x0 = model.x0(x, t)
        rows = [torch.autograd.grad(x0[:, i].sum(), x, retain_graph=True)[0] for i in range(x.shape[1])]
    return x0.detach(), torch.stack(rows, 1)


@pytest.mark.parametrize("name", ["mmps", "pigdm", "tmpd", "ddnm", "diffpir", "twisted", "twisted plainly"])
def test_wrappers_are_their_formulas(name: str) -> None:
    """With dense Jacobians and matrices, for a law and an operator under which nothing is simple."""
    process, t = sk.VP(), 0.3
    model, matrix, y, std = MIXTURE.model(process, "v"), TWO.matrix(), SEEN.y, 0.3
    x = MIXTURE.sample(5, seed=2, t=t, process=process)
    x0, jacobian = differentiated(model, x, t)
    alpha, sigma = process.alpha(t), process.sigma(t)
    r, eye, cov = y - x0 @ matrix.T, torch.eye(2, dtype=F64), sigma**2 / alpha * jacobian
    spread = sigma**2 / (alpha**2 + sigma**2)
    whole = std**2 * eye + matrix @ cov @ matrix.T
    sums = torch.diag_embed((whole.sum(2) - std**2).clamp(min=0)) + std**2 * eye
    known = {
        "mmps": torch.linalg.solve(whole, r),
        "pigdm": torch.linalg.solve(std**2 * eye + spread * matrix @ matrix.T, r.T).T,
        "tmpd": torch.linalg.solve(sums, r),
        "twisted": torch.linalg.solve(std**2 * eye + spread * matrix @ matrix.T, r.T).T,
        "twisted plainly": r / std**2,
    }
    if name in known:
        score = (jacobian.mT @ (known[name] @ matrix)[..., None])[..., 0]
        change = sigma**2 / alpha * score
    elif name == "ddnm":
        change = r @ torch.linalg.pinv(matrix).T
    else:
        rho = 7.0 * std**2 * (alpha / sigma) ** 2
        system = matrix.T @ matrix + rho * torch.eye(3, dtype=F64)
        change = torch.linalg.solve(system, (y @ matrix + rho * x0).T).T - x0
    wrapped = WRAPPERS[name](model, SEEN)
    torch.testing.assert_close(wrapped.predict("x0", x, t), x0 + change, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(wrapped.predict("eps", x, t), (x - alpha * (x0 + change)) / sigma, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("noise", [inverse.GaussianNoise(0.3), inverse.PoissonNoise(5.0, offset=3.0)])
def test_dps_is_its_algorithm(noise: inverse.Noise) -> None:
    """Algorithm 1 (2 for Poisson), written with torch.autograd, on the noise of the run, for an operator that bends."""
    bent = inverse.Differentiable(lambda x: torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin()], 1), (3,))
    seen = inverse.Measurement.of(MIXTURE.sample(1, seed=1)[0], bent, noise, seed=2)
    for solver in ("ddpm", "euler-maruyama"):
        plan = sk.solvers.get(solver).plan(sk.VP(), nfe=9, grid="logsnr", final="denoise")
        model, samples = MIXTURE.model(sk.VP()), torch.arange(4)
        draw = sk.noise.SOURCES["independent"](0, plan.intervals, samples, (3,), F64)
        x, here = sk.noise.normal(0, 0, samples, (3,), F64) * plan.start.sigma, plan.start
        for row in plan.rows:
            x = x.requires_grad_()
            r = seen.y - bent(model.x0(x, here.t))
            weights = 1 / (2 * (seen.y + 3)) if isinstance(noise, inverse.PoissonNoise) else 1.0
            squares = (weights * r.square()).sum(1)
            (slope,) = torch.autograd.grad(squares.sum(), x)
            x, shift = x.detach(), -0.7 * slope / squares.detach().sqrt()[:, None]
            z = sum(c.coefficient * draw(c.start, c.end) for c in row.noise)
            x = row.anchor * x + row.history[0] * model.predict(plan.predicts, x, here.t) + z + shift
            here = row.to
        found = run("dps(zeta=0.7)", seen=seen, n=4, nfe=9, solver=solver)
        torch.testing.assert_close(found.x, x.detach(), rtol=1e-7, atol=1e-9)


def test_ddnm_keeps_what_was_measured_without_noise_and_has_its_variance_with_it() -> None:
    exact = inverse.Measurement(MASK, MASKED.y, inverse.GaussianNoise(0.0))
    torch.testing.assert_close(run("ddnm", seen=exact).x[:, MASK.keep], MASKED.y.expand(32, 2))
    plan = sk.solvers.get("ddpm").plan(sk.VP(), nfe=12, grid="logsnr", final="denoise")
    from sdekit.inverse.methods.ddnm import quieter, shares

    found = shares(plan, sk.VP(), 0.3)
    quiet = quieter(sk.solvers.get("ddpm"), sk.VP(), 0.3).plan(sk.VP(), nfe=12, grid="logsnr", final="denoise")
    here = plan.start
    for row, new in zip(plan.rows[:-1], quiet.rows):
        b = abs(row.history[0] * here.alpha / here.sigma)  # eps = (x − α x_0)/σ
        c, left = row.noise[0].coefficient, new.noise[0].coefficient
        assert left**2 + (b * found[here.t] * 0.3) ** 2 == pytest.approx(c**2, rel=1e-9)
        assert found[here.t] == pytest.approx(min(1.0, c / (0.3 * b)))
        here = row.to
    assert min(found.values()) < 1


def test_replacement_puts_the_known_where_the_process_has_it() -> None:
    from sdekit.inverse.methods.replacement import Replacement

    model = MIXTURE.model(sk.VP())
    corrector, options = Replacement(MASKED), {"solver": "ddpm", "grid": "logsnr", "nfe": 8, "seed": 0, "dtype": F64}
    out = sk.sample(model, (4000, 3), corrector=corrector, keep="all", **options)
    assert out.trajectory is not None
    for t, x in list(zip(out.t, out.trajectory))[1:-1]:
        alpha, sigma = sk.VP().alpha(t), sk.VP().sigma(t)
        z = (x[:, MASK.keep] - alpha * MASKED.y) / sigma
        assert z.mean(0).abs().max() < 0.07
        assert (z.std(0) - 1).abs().max() < 0.05
    several = sk.sample(model, (8, 3), corrector=corrector, batch_size=3, **options)
    torch.testing.assert_close(several.x, out.x[:8])


def test_repaint_goes_back_and_takes_each_step_again() -> None:
    from sdekit.inverse.methods.repaint import RePaint

    corrector = RePaint(MASKED, resamplings=3)
    plan, _ = corrector.plan(sk.solvers.get("ddpm"), sk.VP(), 12, None, "logsnr", "auto")
    assert plan.nfe == 12
    assert len(plan.intervals) == 3 + 2 * 8  # every draw is one of its own
    back = [(before.to, row) for before, row in zip(plan.rows, plan.rows[1:]) if not row.evaluate]
    assert len(back) == 8  # three steps, taken 4, 4 and 3 times
    for t, row in back:
        (draw,) = row.noise
        assert row.anchor == pytest.approx(row.to.alpha / t.alpha)
        assert (row.anchor * t.sigma) ** 2 + draw.coefficient**2 == pytest.approx(row.to.sigma**2)


def chain(n: int, seen: inverse.Measurement) -> Any:
    from sdekit.inverse.chains import Chain

    asked = inverse.registry.Run(
        MIXTURE.model(sk.VP()), seen, (n, 3), 5, 0, sk.solvers.get("ddpm"), "logsnr", None, 1, F64, None
    )
    return Chain(asked, inverse.Spectrum.of(seen.operator), torch.arange(n), seen.y.expand(n, -1), {})


def test_draws_near_the_measurement_are_those_of_a_gaussian() -> None:
    x = torch.tensor([0.3, -1.0, 0.6], dtype=F64)
    found = chain(40_000, SEEN).given(x.expand(40_000, 3), 0.4, 3)
    law = inverse.posterior(Gaussian(x, 0.4 * torch.eye(3, dtype=F64)), SEEN)
    assert isinstance(law, Gaussian)
    torch.testing.assert_close(found.mean(0), law.location, rtol=0, atol=0.015)
    torch.testing.assert_close(found.T.cov(), (law.basis * law.variances) @ law.basis.T, rtol=0, atol=0.01)


def test_ddrm_is_its_equations() -> None:
    """Written out element by element for a mask, whose singular directions are the elements."""
    nfe, eta, eta_b, std = 7, 0.8, 0.6, 0.3
    knots, own = sk.Grid.make(sk.VP(), "logsnr", [1] * (nfe - 1)).knots, chain(4, MASKED)
    y, model = torch.tensor([0.5, 0.0, -0.4]).double(), MIXTURE.model(sk.VP())
    first, z = knots[0].sigma / knots[0].alpha, own.normal(0)
    x = torch.stack([(y[i] + (first**2 - std**2) ** 0.5 * z[:, i]) if i != 1 else first * z[:, i] for i in range(3)], 1)
    for step, (s, t) in enumerate(zip(knots, knots[1:]), start=1):
        x0, z, new = model.x0(s.alpha * x, s.t), own.normal(step), []
        tau, after, rest = s.sigma / s.alpha, t.sigma / t.alpha, (1 - eta**2) ** 0.5
        for i in range(3):
            X, noise = x0[:, i], eta * after * z[:, i]  # noqa: N806
            if i == 1:
                new.append(X + rest * after * (x[:, i] - X) / tau + noise)
            elif after < std:
                new.append(X + rest * after * (y[i] - X) / std + noise)
            else:
                new.append((1 - eta_b) * X + eta_b * y[i] + (after**2 - (std * eta_b) ** 2) ** 0.5 * z[:, i])
        x = torch.stack(new, 1)
    found = run(f"ddrm(eta={eta}, eta_b={eta_b})", n=4, nfe=nfe)
    torch.testing.assert_close(found.x, model.x0(knots[-1].alpha * x, knots[-1].t))


def test_daps_is_its_algorithm() -> None:
    """Two levels of two evaluations each, on the chain's own draws."""
    own, model = chain(4, MASKED), MIXTURE.model(sk.VP())
    knots, last = sk.Grid.make(sk.VP(), "logsnr", [1, 1]).knots[:2], sk.VP().knot(sk.VP().t_min)
    x0 = torch.zeros(4, 3, dtype=F64)
    for i, knot in enumerate(knots):
        x = knot.alpha * x0 * (i > 0) + knot.sigma * own.normal(4 * i)
        eps = model.eps(x, knot.t)
        x = last.alpha * (x - knot.sigma * eps) / knot.alpha + last.sigma * eps  # a step of DDIM, then the denoising
        x0 = own.given(model.x0(x, last.t), (knot.sigma / knot.alpha) ** 2, 4 * i + 1)
    torch.testing.assert_close(run("daps(ode_steps=2)", n=4, nfe=4).x, x0)


def test_split_gibbs_comes_near_the_posterior() -> None:
    """Of a Gaussian: between modes its turns go slowly, as docs/inverse.md measures."""
    truth = inverse.posterior(GAUSSIAN, SEEN).sample(20_000, seed=4)
    x = run("gibbs(steps=20)", GAUSSIAN, SEEN, n=2000, nfe=600).x
    torch.testing.assert_close(x.mean(0), truth.mean(0), rtol=0, atol=0.08)
    torch.testing.assert_close(x.T.cov(), truth.T.cov(), rtol=0, atol=0.08)


@pytest.mark.parametrize("target", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("method", ["tds", "tds(tau=0.3)", "tds(resample_below=0.0)"])
def test_evidence_is_unbiased(target: Any, method: str) -> None:
    """The mean of the estimates of p(y) over 48 populations lies within its error bars of the exact p(y)."""
    seen = inverse.Measurement.of(target.sample(1, seed=8)[0], TWO, inverse.GaussianNoise(0.3), seed=3)
    out = run(method, target, seen, n=48 * 100, nfe=150, populations=48)
    ratios = (out.log_evidence - inverse.log_evidence(target, seen)).exp()
    stderr = ratios.std() / 48**0.5
    assert stderr < 0.05
    assert abs(ratios.mean() - 1) < 3 * stderr


def test_particles_are_the_posterior() -> None:
    seen = inverse.Measurement.of(MIXTURE.sample(1, seed=8)[0], TWO, inverse.GaussianNoise(0.3), seed=3)
    law = inverse.posterior(MIXTURE, seen)
    out, truth = run("tds", seen=seen, n=4000, nfe=250), law.sample(20_000, seed=4)
    weights = out.weights / 4000
    torch.testing.assert_close(weights.sum(), torch.ones((), dtype=F64))
    torch.testing.assert_close(weights @ out.x, truth.mean(0), rtol=0, atol=0.03)
    apart = out.x - weights @ out.x
    torch.testing.assert_close((weights * apart.T) @ apart, truth.T.cov(), rtol=0, atol=0.03)
    assert sk.metrics.mode_weights_error(out.even(), law) < 0.03
    assert out.ess.shape == (251, 1)


def test_each_population_has_its_own_measurement() -> None:
    rows = torch.tensor([[0.1, 0.2], [-0.5, 0.9]], dtype=F64)
    out = run("tds", n=2 * 400, nfe=60, populations=2, measured=rows)
    for y, x, weights, found in zip(rows, out.x.chunk(2), out.weights.chunk(2), out.log_evidence):
        seen = inverse.Measurement(MASK, y, MASKED.noise)
        law = inverse.posterior(MIXTURE, seen)
        torch.testing.assert_close(weights @ x / 400, law.sample(20_000).mean(0), rtol=0, atol=0.12)
        assert abs(found - inverse.log_evidence(MIXTURE, seen)) < 0.3
        assert out.even().chunk(2)[0].shape == (400, 3)


@pytest.mark.filterwarnings("ignore::sdekit.guidance.WeightsWarning")
@pytest.mark.parametrize("method", inverse.names())
def test_on_a_device_the_numbers_are_the_cpus_and_no_step_reads(method: str) -> None:
    here = [run(method, nfe=nfe, seen=MASKED) for nfe in (4, 8)]
    reads = list[int]()
    with simgpu.device() as gpu:
        model = GaussianMixture(MIXTURE.location, 0.3).to(gpu.device).model(sk.VP())
        for cpu, nfe in zip(here, (4, 8)):
            gpu.reset()
            there = inverse.sample_posterior(model, MASKED, (32, 3), method=method, nfe=nfe, seed=0, dtype=F64)
            reads.append(gpu.host_reads)
            assert there.x.device.type == "simgpu"
            torch.testing.assert_close(cpu.x, there.x.cpu())
    assert reads[0] == reads[1], "reads belong to a run's ends, not to its steps"


ANY = inverse.Measurement(inverse.Differentiable(torch.sin, (3,)), torch.zeros(3), inverse.GaussianNoise(0.1))
COUNTS = inverse.Measurement(MASK, torch.zeros(2), inverse.PoissonNoise(5.0))
ROUND = inverse.Measurement(inverse.Differentiable(torch.round, (3,)), torch.zeros(3), inverse.GaussianNoise(0.1))
EXACT = inverse.Measurement(MASK, torch.zeros(2), inverse.GaussianNoise(0.0))
BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "unknown": (lambda: run("mmsp"), r"unknown method 'mmsp': did you mean 'mmps'"),
    "option": (lambda: run("mmps(iteration=3)"), r"unknown option of mmps 'iteration': did you mean 'iterations'"),
    "value": (lambda: run("dps(zeta=-1.0)"), r"dps: zeta=-1.0 is not a number from 0"),
    "not linear": (lambda: run("mmps", seen=ANY), r"operator: MMPS takes a linear one, Differentiable is not"),
    "counts": (lambda: run("pigdm", seen=COUNTS), r"PiGDM takes GaussianNoise; dps and tds"),
    "counts, without gradients": (lambda: run("ddnm", seen=COUNTS), r"DDNM takes GaussianNoise"),
    "rounds": (lambda: run("dps", seen=ROUND), r"Differentiable changes with x but its gradient is 0"),
    "no mask": (lambda: run("replacement", seen=SEEN), r"operator: replacement takes a Mask, not Projection"),
    "no density": (lambda: run("tds", seen=EXACT), r"std=0: a measurement without noise has no density"),
    "few": (lambda: run("tds", n=8), r"shape: 8 particles in 1 populations: each needs the same number, at least 16"),
    "uneven": (lambda: run("tds", populations=3), r"32 particles in 3 populations"),
    "batches": (lambda: run("tds", batch_size=16), r"batch_size=16: particles are weighed together"),
    "two stages": (lambda: run("dps", solver="heun"), r"solver: dps needs one with one evaluation for each step"),
    "no noise": (lambda: run("tds", solver="ddim"), r"solver: tds needs one that draws noise once a step"),
    "history": (lambda: run("tds", solver="dpmpp-2m-sde"), r"solver: tds needs one whose steps each make one"),
    "shape": (
        lambda: inverse.sample_posterior(MIXTURE.model(sk.VP()), MASKED, (4, 2)),
        r"shape=\[4, 2\]: the operator measures samples of shape \[3\]",
    ),
    "measured": (lambda: run("mmps", measured=torch.zeros(5, 2)), r"measured has shape \[5, 2\]: for 32 samples"),
    "populations": (lambda: run("tds", measured=torch.zeros(32, 2)), r"particles take one for each population"),
    "covariance": (
        lambda: PiGDM(MIXTURE.model(sk.VP()), MASKED, covariance=torch.eye(2)),
        r"covariance has shape \[2, 2\]: it must be \[3, 3\]",
    ),
    "no run": (
        lambda: inverse.methods.dps.DPS(MIXTURE.model(sk.VP()), MASKED, {0.5: 1.0}, "eps").predict(
            "eps", torch.zeros(1, 3), 0.4
        ),
        r"'eps' at t=0.4: DPS shifts the steps of one run",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_too_few_effective_particles_are_warned_of() -> None:
    sharp = inverse.Measurement(MASK, MASKED.y, inverse.GaussianNoise(0.01))
    with pytest.warns(WeightsWarning, match=r"effective sample size fell to .*; take more particles"):
        out = run("tds(tau=0.0, resample_below=0.0)", seen=sharp, n=64)
    assert out.ess.min() < 0.05
