"""Every registered solver: the laws, the registry, and the variance of the stochastic ones."""

import math
from typing import Annotated

import pytest
import torch

import sdekit as sk
from sdekit.solvers import Between, Draw, OneOf, Plan, Row, get, names, phi, register
from sdekit.solvers.tableau import DATA
from sdekit.testing import laws

VARIANTS = ["ddpm(variance='large')", "ddim(eta=0.5)", "ddim(eta=1.0)", "euler-maruyama(noise_level=0.5)",
            "euler-maruyama(noise_level=0.0)", "dpmpp-2m-sde(eta=0.5)", "dpmpp-2m-sde(correction='heun')",
            "dpmpp-2m-sde(eta=0.0)", "edm(churn=3)", "dpmpp-sde(eta=0.5)", "dpmpp-sde(r=0.3)", "dpmpp-sde(r=1)",
            "dpmpp-3m-sde(eta=0.5)", "dpmpp-3m-sde(curvature='exact')", "dpmpp-3m-sde(curvature='exact', eta=0)",
            "gddim(noise_level=0)", "gddim(noise_level=1.5)", "er-sde-1(scale='ode')", "er-sde-2(scale='sde')",
            "er-sde-3(scale='er-sde-4')", "sa-solver(tau=0)", "sa-solver(corrector=0)", "sa-solver(tau=0.5)",
            "sa-solver(predictor=1, corrector=1)", "restart(repeats=5)", "unipc-2(variant='bh1')"]  # fmt: skip


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", [*names(), *VARIANTS])
def test_law(name, law):
    law(name)


def test_a_wrong_order_fails_the_law():
    wrong = sk.solvers.Solver("wrong", get("ddim").rows, 2, "eps", 1, "", get("ddim").split)
    with pytest.raises(AssertionError, match="2 stated"):
        laws.check_order(wrong)


def test_a_wrong_weight_fails_the_law():
    def rows(grid):
        for s, t, _ in grid:
            yield Row(to=t, anchor=t.alpha / s.alpha, history=(1.01 * (t.sigma - t.alpha * s.sigma / s.alpha),))

    wrong = sk.solvers.Solver("wrong", rows, 1, "eps", 1, "", get("ddim").split)
    with pytest.raises(AssertionError, match="steps"):
        laws.check_constant(wrong)
    with pytest.raises(AssertionError, match="order"):
        laws.check_order(wrong)


@pytest.mark.parametrize("steps", [30, 100, 1000])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_variance_follows_the_papers_recursion(variance, steps):
    """Ho et al. 2020, algorithm 2 with α_t, β_t, ᾱ_t of the table; data N(0, 0.5²)."""
    process = sk.DiscreteVP.linear(steps)
    betas = torch.tensor(process.betas, dtype=torch.float64)
    alpha_bars = (1 - betas).cumprod(0)
    var = (alpha_bars[-1] * 0.25 + 1 - alpha_bars[-1]).item()
    for n in range(len(betas) - 1, 0, -1):
        beta, bar, before = betas[n].item(), alpha_bars[n].item(), alpha_bars[n - 1].item()
        eps = math.sqrt(1 - bar) / (bar * 0.25 + 1 - bar)  # E[ε | x] = eps · x
        factor = (1 - beta / math.sqrt(1 - bar) * eps) / math.sqrt(1 - beta)
        var = factor**2 * var + (beta if variance == "large" else beta * (1 - before) / (1 - bar))
    plan = get(f"ddpm(variance={variance!r})").plan(process, steps=steps - 1, grid="time", final="none")
    mean, std = laws.gaussian_moments(plan, process, 0.0, 0.5)
    assert mean == 0
    assert std**2 == pytest.approx(var, rel=1e-10)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_euler_maruyama_variance_follows_its_recursion(eta):
    process, std, steps = sk.VP(), 0.5, 20
    dt = (process.t_max - process.t_min) / steps
    var = process.alpha(1.0) ** 2 * std**2 + process.sigma(1.0) ** 2
    for i in range(steps):
        t = process.t_max - i * dt
        beta = 0.1 + 19.9 * t
        marginal = process.alpha(t) ** 2 * std**2 + process.sigma(t) ** 2
        var = (1 + 0.5 * beta * dt - 0.5 * (1 + eta**2) * beta * dt / marginal) ** 2 * var + eta**2 * beta * dt
    plan = get(f"euler-maruyama(noise_level={eta})").plan(process, steps=steps, grid="time", final="none")
    assert laws.gaussian_moments(plan, process, 0.0, std)[1] ** 2 == pytest.approx(var, rel=1e-10)


def test_the_correctors_bias_is_that_of_its_step():
    """At t_min on N(0, 0.1²), one step x (1 − ε/v) + √(2ε) z, after the predictor: its recursion by hand."""
    process, std = sk.VE(sigma_min=0.1, sigma_max=10.0), 0.1
    knots = sk.Grid.make(process, "logsnr", 400).knots
    var = knots[0].sigma ** 2 + std**2
    for s, t in zip(knots, knots[1:]):
        gap, size = s.sigma**2 - t.sigma**2, 2 * (0.16 * t.sigma) ** 2
        var = (1 - gap / (s.sigma**2 + std**2)) ** 2 * var + gap
        var = (1 - size / (t.sigma**2 + std**2)) ** 2 * var + 2 * size
    plan = get("pc").plan(process, steps=400, final="none")
    assert laws.gaussian_moments(plan, process, 0.0, std)[1] ** 2 == pytest.approx(var, rel=1e-10)
    assert (
        var / (knots[-1].sigma ** 2 + std**2) - 1 > 0.005
    )  # 400 steps, and the bias of r² σ²/(2 var x) is still there


def test_dpm_solver_1_is_ddim():
    plan = get("ddim").plan(sk.VP(), nfe=2, final="denoise")
    # a rest of one evaluation makes DPM-Solver-2 and -3 take one step of order 1
    for name in ("dpm-solver-2", "dpm-solver-3", "heun"):
        (row, _), (other, _) = plan.rows, get(name).plan(sk.VP(), nfe=2, final="denoise").rows
        assert other.anchor == row.anchor
        assert other.history == pytest.approx(row.history, rel=1e-12)


def test_ddim_with_eta_one_is_ddpm():
    for row, other in zip(get("ddim(eta=1.0)").plan(sk.VP(), nfe=9).rows, get("ddpm").plan(sk.VP(), nfe=9).rows):
        assert row.history == pytest.approx(other.history, rel=1e-10)
        assert [draw.coefficient for draw in row.noise] == pytest.approx([draw.coefficient for draw in other.noise])


@pytest.mark.parametrize("order", range(5))
@pytest.mark.parametrize("h", [-8.0, -1.0 - 1e-9, -1e-3, 1e-12, 0.4, 0.999, 1.0, 6.0])
def test_phi_is_its_integral(order, h):
    if order == 0:
        assert phi(0, h) == pytest.approx(math.exp(h), rel=1e-13)
        return
    from scipy.integrate import quad

    value, _ = quad(lambda u: math.exp((1 - u) * h) * u ** (order - 1) / math.factorial(order - 1), 0, 1, epsabs=1e-15)
    assert phi(order, h) == pytest.approx(value, rel=1e-11)


def test_a_users_solver_works_everywhere(monkeypatch):
    monkeypatch.setattr("sdekit.solvers.registry._SOLVERS", dict(sk.solvers.registry._SOLVERS))

    @register("my-midpoint", order=1, predicts="eps", reference="mine")
    def rows(grid, *, shrink: Annotated[float, Between(0, 1)] = 1.0):
        """Mine."""
        for s, t, _ in grid:
            weight = t.sigma - t.alpha * s.sigma / s.alpha
            yield Row(to=t, anchor=t.alpha / s.alpha, history=(shrink * weight,))

    laws.check_solver("my-midpoint")
    assert "my-midpoint" in names()
    assert get("my-midpoint(shrink=0.5)").options == (("shrink", 0.5),)
    for taken in ("my-midpoint", "ddim"):
        with pytest.raises(ValueError, match=rf"{taken}' is registered already, by .*rows|ddim"):
            register(taken, order=1, predicts="eps", reference="")(lambda grid: rows(grid))


def test_a_solver_that_is_defined_anew_gives_its_new_table(monkeypatch):
    """As a notebook's cell does when it is run again, with another number in it."""
    monkeypatch.setattr("sdekit.solvers.registry._SOLVERS", dict(sk.solvers.registry._SOLVERS))
    cell = """
@sk.solvers.register("again", order=1, predicts="eps", reference="mine")
def again(grid):
    for s, t, _ in grid:
        yield sk.solvers.Row(to=t, anchor={anchor}, history=(0.0,))
"""
    model = sk.ScoreModel(lambda x, t: x, sk.VP())
    start = torch.ones(1, 1)
    for anchor in (0.5, 0.25):
        namespace = {"sk": sk, "__name__": "__main__"}
        exec(compile(cell.format(anchor=anchor), f"<cell {anchor}>", "exec"), namespace)
        assert [row.anchor for row in get("again").plan(sk.VP(), steps=2, final="none").rows] == [anchor] * 2
        assert sk.sample(model, (1, 1), solver="again", steps=2, final="none", start=start).x.item() == anchor**2
    with pytest.raises(ValueError, match=r"'again' is registered already, by __main__.again"):
        exec(cell.replace("def again", "def other").format(anchor=1.0), {"sk": sk, "__name__": "__main__"})
    with pytest.raises(ValueError, match=r"'again' is registered already, by __main__.again"):
        exec(cell.format(anchor=1.0), {"sk": sk, "__name__": "elsewhere"})


def test_two_lambdas_are_not_the_same_solver(monkeypatch):
    monkeypatch.setattr("sdekit.solvers.registry._SOLVERS", dict(sk.solvers.registry._SOLVERS))
    add = register("nameless", order=1, predicts="eps", reference="mine")
    add(lambda grid: iter(()))
    with pytest.raises(ValueError, match="registered already"):
        add(lambda grid: iter([None]))


@pytest.mark.parametrize(("start", "end"), [(1.0, 0.5), (0.5, 0.5), (math.nan, 1.0), (0.0, math.inf)])
def test_a_draw_runs_upwards_in_half_log_snr(start, end):
    finite = math.isfinite(start) and math.isfinite(end)
    message = (
        r"Draw\(start=.*, end=.*\): start must be below end, both λ" if finite else "=(nan|inf): it must be a finite"
    )
    with pytest.raises(ValueError, match=message):
        Draw(0.3, start, end)


def test_a_solver_that_draws_over_times_is_named():
    def rows(grid):
        for s, t, _ in grid:
            yield Row(to=t, anchor=1.0, noise=(Draw(0.1, s.t, t.t),), evaluate=True, history=(0.0,))

    wrong = sk.solvers.Solver("wrong", rows, 1, "eps", 1, "", get("ddim").split)
    with pytest.raises(ValueError, match="half_log_snr, which rises towards the data"):
        wrong.plan(sk.VP(), nfe=5)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("dimm", "did you mean 'ddim'"),
        ("ddim(eta=2)", "eta=2 is not a number from 0 to 1"),
        ("ddim(eta=True)", "is not a number"),
        ("ddim(etta=0.1)", "did you mean 'eta'"),
        ("ddim(__import__('os'))", "cannot read"),
        ("ddim(eta=open('x'))", "cannot read"),
        ("ddpm(variance='huge')", "is not one of 'small', 'large'"),
    ],
)
def test_bad_names_and_options_are_named(spec, message):
    with pytest.raises(ValueError, match=message):
        get(spec)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nfe": 1, "final": "denoise"}, "nfe=1: it must be a whole number of at least 2"),
        ({"nfe": 0, "final": "none"}, "nfe=0: it must be a whole number from 1"),
        ({"steps": 0}, "steps=0"),
        ({"nfe": 5, "steps": 5}, "give one of them"),
        ({}, "give one of them"),
        ({"nfe": 5, "final": "denoised"}, "did you mean 'denoise'"),
        ({"nfe": 5, "grid": [1.0, 0.1]}, "2 times given, 4 steps need 5"),
    ],
)
def test_bad_budgets_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        get("ddim").plan(sk.VP(), **arguments)


@pytest.mark.parametrize("value", [2.5, True, "3", 0, None])
def test_counts_are_whole_numbers(value):
    with pytest.raises(ValueError, match=f"nfe={value!r}: it must be a whole number of at least 1"):
        sk.solvers.registry.check_count("nfe", value, 1, "why")


def test_explicit_times_say_the_steps():
    assert get("heun").plan(sk.VP(), grid=[1.0, 0.5, 0.01]).nfe == 5


def test_a_plan_that_cannot_run_is_refused():
    knot = sk.VP().knot(0.5)
    with pytest.raises(ValueError, match="only 1 were made"):
        Plan(knot, (Row(to=DATA, anchor=1.0, history=(1.0, 1.0)),), "eps")
    with pytest.raises(ValueError, match="must commit"):
        Plan(knot, (Row(to=DATA, anchor=1.0, commit=False),), "eps")


def test_a_plan_prints_its_table():
    text = str(get("ddpm").plan(sk.VP(), nfe=3))
    assert text.splitlines()[0] == "x at t=1; F = eps; NFE 3"
    assert len(text.splitlines()) == 6  # a heading more than three steps and the noise that is left taken off
    assert "z[" in text


def test_options_need_a_rule():
    with pytest.raises(ValueError, match="needs a default"):
        register("unruled", order=1, predicts="eps", reference="")(lambda grid, *, eta=0.5: iter(()))
    assert str(OneOf(1, 2)) == "one of 1, 2"
    assert Draw(1.0, 0.0, 1.0) == Draw(1.0, 0.0, 1.0)


FUSED = ["unipc-1", "unipc-2(variant='bh1')", "unipc-3(start='single-step')", "unipc-4", "unipc-3(lower_order_below=0)"]


@pytest.mark.parametrize("solver", FUSED)
@pytest.mark.parametrize("process", [sk.VP(), sk.VE(), sk.Flow()], ids=lambda process: type(process).__name__)
def test_fused_rows_give_the_same_result(solver, process):
    """One combination for each evaluation but two; what is looked at are the table's own states."""
    model = sk.ScoreModel(lambda x, t: torch.tanh(x + t.reshape(-1, 1)), process, predicts="x0")
    no_noise = lambda start, end: torch.zeros(())  # noqa: E731
    for nfe, final in [(5, "none"), (9, "reuse"), (10, "denoise"), (30, "none")]:
        arguments = {"solver": solver, "nfe": nfe, "final": final, "seed": 1, "dtype": torch.float64}
        plan = get(solver).plan(process, nfe=nfe, final=final)
        assert plan.fused.nfe == nfe
        assert len(plan.fused.rows) <= nfe + 2
        assert nfe == 5 or len(plan.fused.rows) < len(plan.rows)
        seen = sk.sample(model, (6, 2), keep="all", **arguments)
        assert torch.equal(sk.sample(model, (6, 2), **arguments).x, seen.x)
        times, states = zip(*((knot.t, x) for knot, x in sk.march(plan, model, seen.trajectory[0], no_noise)))
        assert seen.t[1:] == times
        torch.testing.assert_close(seen.trajectory[1:], torch.stack(states), rtol=1e-12, atol=1e-12)


def test_what_cannot_be_fused_stays():
    for solver in ("ddim", "ddpm", "dpmpp-2m", "sa-solver", "dpm-solver-3", "edm", "restart"):
        plan = get(solver).plan(sk.VP(), nfe=12)
        assert plan.fused is plan
    start, middle, end = (sk.VP().knot(t) for t in (1.0, 0.5, 0.1))
    rows = (
        Row(to=middle, anchor=0.5, history=(0.1,)),
        Row(to=end, anchor=0.1, history=(0.2,), evaluate=False, commit=False),
        Row(to=end, anchor=0.3, history=(0.2, 0.1)),  # more of the anchor than the row before has
    )
    plan = Plan(start, rows, "x0")
    assert plan.fused is plan
