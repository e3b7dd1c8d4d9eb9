"""Grids: endpoints, monotony, each grid's own formula, other libraries' timesteps, and the errors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import sdekit as sk
from sdekit.grid import GRIDS, Grid, table_times

PROCESSES = [sk.VP(), sk.SubVP(), sk.VE(), sk.CosineVP(), sk.DiscreteVP(), sk.Flow(), sk.EDM()]
ids = [type(process).__name__ for process in PROCESSES]


@pytest.mark.parametrize("process", PROCESSES, ids=ids)
@pytest.mark.parametrize("name", GRIDS)
@given(steps=st.integers(1, 60))
def test_endpoints_are_exact_and_half_log_snr_increases(process, name, steps):
    grid = Grid.make(process, name, steps)
    assert len(grid.knots) == steps + 1
    assert (grid.knots[0].t, grid.knots[-1].t) == (process.t_max, process.t_min)
    assert all(s.half_log_snr < t.half_log_snr for s, t, _ in grid)


# what is uniform along each grid
UNIFORM = {
    "time": lambda k: k.t,
    "time-quadratic": lambda k: math.sqrt(k.t),
    "logsnr": lambda k: k.half_log_snr,
    "karras": lambda k: (k.sigma / k.alpha) ** (1 / 7),
    "karras(rho=3)": lambda k: (k.sigma / k.alpha) ** (1 / 3),
    "cosine": lambda k: math.atan2(k.sigma, k.alpha),
    "exponential": lambda k: math.log(k.sigma / k.alpha),
    "shift": lambda k: k.sigma / (k.sigma + 3 * k.alpha),
    "shift(shift=0.5)": lambda k: k.sigma / (k.sigma + 0.5 * k.alpha),
}


@pytest.mark.parametrize("process", PROCESSES, ids=ids)
@pytest.mark.parametrize("name", UNIFORM)
def test_each_grid_is_uniform_in_its_variable(process, name):
    values = [UNIFORM[name](knot) for knot in Grid.make(process, name, 8).knots]
    for i, value in enumerate(values):
        expected = values[0] + (values[-1] - values[0]) * i / 8
        assert value == pytest.approx(expected, rel=1e-9, abs=1e-9 * abs(values[0]))


def test_karras_is_the_papers_formula():
    process = sk.VE(sigma_min=0.002, sigma_max=80.0)
    sigmas = [knot.sigma for knot in Grid.make(process, "karras", 17).knots]
    for i, sigma in enumerate(sigmas):  # Karras et al. 2022, eq. 5, N = 18
        expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        assert sigma == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("process", [sk.VP(), sk.VE(sigma_min=0.002, sigma_max=80.0), sk.Flow()])
def test_exponential_is_k_diffusions_formula(process):
    levels = [knot.sigma / knot.alpha for knot in Grid.make(process, "exponential", 12).knots]
    expected = np.exp(np.linspace(math.log(levels[0]), math.log(levels[-1]), 13))
    assert levels == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_shift_is_sd3s_formula_on_flow(shift):
    process = sk.Flow()
    times = [knot.t for knot in Grid.make(process, f"shift(shift={shift})", 9).knots]
    first, last = (t / (shift - (shift - 1) * t) for t in (process.t_max, process.t_min))  # the formula, inverted
    u = np.linspace(first, last, 10)
    assert times == pytest.approx(shift * u / (1 + (shift - 1) * u), rel=1e-12)


def test_shift_has_flows_noise_levels_under_every_process():
    """Flow's shifted grid and that of a VE with the same range of σ/α are the same noise levels."""
    flow, ve = sk.Flow(), sk.VE(sigma_min=1e-3 / (1 - 1e-3), sigma_max=(1 - 1e-3) / 1e-3)
    grids = [Grid.make(process, "shift", 7).knots for process in (flow, ve)]
    one, other = ([knot.sigma / knot.alpha for knot in knots] for knots in grids)
    assert one == pytest.approx(other, rel=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=ids)
@pytest.mark.parametrize(("alpha", "beta"), [(0.6, 0.6), (1.0, 1.0), (0.5, 2.0)])
def test_beta_has_the_distributions_quantiles(process, alpha, beta):
    times = [knot.t for knot in Grid.make(process, f"beta(alpha={alpha}, beta={beta})", 15).knots]
    quantiles = stats.beta.ppf(1 - np.linspace(0, 1, 16), alpha, beta)
    assert times == pytest.approx(process.t_min + (process.t_max - process.t_min) * quantiles, rel=1e-10)
    assert [knot.t for knot in Grid.make(process, "beta", 15).knots] == [
        knot.t for knot in Grid.make(process, "beta(alpha=0.6, beta=0.6)", 15).knots
    ]


AYS = {  # Sabour et al. 2024, table 3
    "sd15": [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029],
    "sdxl": [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029],
    "deepfloyd": [160.41, 8.081, 3.315, 1.885, 1.207, 0.785, 0.553, 0.293, 0.186, 0.030, 0.006],
    "svd": [700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002],
}


@pytest.mark.parametrize("table", AYS)
@pytest.mark.parametrize("steps", [1, 4, 10, 20, 33])
def test_ays_is_the_published_table_log_linear(table, steps):
    process = sk.VE(sigma_min=0.001, sigma_max=1000.0)
    levels = [knot.sigma for knot in Grid.make(process, f"ays(table={table!r})", steps).knots]
    place = np.linspace(0, 1, steps + 1)
    expected = np.exp(np.interp(place, np.linspace(0, 1, 11), np.log(AYS[table])))
    assert levels[1:-1] == pytest.approx(expected[1:-1], rel=1e-9)
    assert (levels[0], levels[-1]) == pytest.approx((1000.0, 0.001))


def test_ays_names_a_noise_level_that_the_process_does_not_have():
    process = sk.VE(sigma_min=0.01, sigma_max=50.0)
    with pytest.raises(ValueError, match=r"table='svd' has a step at σ/α = 54.5, the process allows .* 0.01 and 50"):
        Grid.make(process, "ays(table='svd')", 10)


def diffusers_timesteps(spacing, count, table, offset=0, multistep=False):
    """What its schedulers compute: DDIM's, or with ``multistep`` those of DPM-Solver, DEIS and UniPC."""
    if spacing == "trailing":
        steps = np.round(np.arange(table, 0, -table / count)).astype(np.int64) - 1
        return steps[steps >= 0].tolist()  # floating point lists an entry -1 for some counts
    points = count + multistep
    if spacing == "linspace":
        steps = np.linspace(0, table - 1, points).round()
    else:
        steps = np.arange(0, points) * (table // points) + offset
    return steps[::-1][:count].astype(np.int64).tolist()


def entries(process, times):
    found = [round(t * process.steps) - 1 for t in times]
    assert [(n + 1) / process.steps for n in found] == list(times)  # each is an entry, exactly
    return found


@pytest.mark.parametrize("table", [50, 1000])
@pytest.mark.parametrize("spacing", ["trailing", "linspace", "leading"])
def test_table_times_are_diffusers_timesteps(spacing, table):
    process = sk.DiscreteVP.linear(table)
    for count in [*range(2, 50), *range(61, table, 60)]:  # 61, 121: diffusers lists an entry -1
        ours = entries(process, table_times(process, spacing, count))
        assert ours == diffusers_timesteps(spacing, count, table)
        more = count + (spacing != "trailing")
        assert entries(process, table_times(process, spacing, more))[:count] == diffusers_timesteps(
            spacing, count, table, multistep=True
        )


def test_table_times_with_an_offset_and_of_sgm():
    process = sk.DiscreteVP()
    for count in (2, 7, 20, 50, 300):
        offset = entries(process, table_times(process, "leading", count, steps_offset=1))
        assert offset == diffusers_timesteps("leading", count, 1000, offset=1)
        sgm = entries(process, table_times(process, "sgm", count))
        assert sgm == np.linspace(999, 0, count, endpoint=False).astype(int).tolist()


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 49, 60])
def test_named_spacings_are_the_lists_between_the_processs_ends(steps):
    process = sk.DiscreteVP()

    def named(spec):
        return entries(process, [knot.t for knot in Grid.make(process, spec, steps).knots])

    assert named("trailing") == [*diffusers_timesteps("trailing", steps, 1000)[:steps], 0]
    assert named("linspace") == diffusers_timesteps("linspace", steps + 1, 1000)
    assert named("sgm") == [*np.linspace(999, 0, steps, endpoint=False).astype(int).tolist(), 0]
    for offset in (0, 1):
        inner = diffusers_timesteps("leading", steps + 1, 1000, offset)[1:-1]
        assert named(f"leading(steps_offset={offset})") == [999, *inner, 0]


def test_without_a_table_the_spacings_are_their_limits():
    process = sk.Flow()
    coarse, fine = (sk.DiscreteVP.linear(table) for table in (1000, 100_000))
    for name in ("trailing", "linspace", "leading", "sgm"):
        limit = [knot.t for knot in Grid.make(process, name, 9).knots][1:-1]
        errors = []
        for table in (coarse, fine):
            times = [knot.t for knot in Grid.make(table, name, 9).knots][1:-1]
            errors.append(max(abs(s - t) for s, t in zip(times, limit)))
        assert errors[1] < 2e-3  # Flow's own ends are 1e-3 from 0 and 1
        assert errors[0] < 12e-3


def test_table_times_make_diffusers_ddim():
    """DDIM as its scheduler writes it, with t − ⌊T/N⌋ after t and x_0 at the end."""
    process = sk.DiscreteVP()
    bar = np.cumprod(1 - np.array(process.betas))
    x = start = torch.linspace(-2, 2, 6, dtype=torch.float64).reshape(2, 3)

    def net(x, t):
        return torch.tanh(0.7 * x + torch.sin(t / 50)[:, None])

    for n in range(980, -1, -20):
        eps = net(x, torch.full((2,), n + 1.0, dtype=torch.float64))
        now, after = bar[n + 1], bar[n + 1 - 20] if n + 1 >= 20 else 1.0
        x0 = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
        x = math.sqrt(after) * x0 + math.sqrt(1 - after) * eps
    model = sk.ScoreModel(net, process, predicts="eps", time="index")
    out = sk.sample(
        model, (2, 3), solver="ddim", nfe=50, grid=table_times(process, "leading", 50, steps_offset=1), start=start
    )
    assert out.x.numpy() == pytest.approx(x.numpy(), rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tailing", 5, 0), "did you mean 'trailing'"),
        (("trailing", 0, 0), "count=0: it must be a whole number from 1"),
        (("linspace", 1, 0), "count=1: linspace takes whole numbers from 2 to 1000"),
        (("leading", 1001, 0), "count=1001: leading takes whole numbers from 2 to 1000"),
        (("trailing", 5, 1), "steps_offset=1: trailing .* from 0 to 0"),
        (("leading", 50, 20), "steps_offset=20: leading .* from 0 to 19"),
        (("leading", 50, -1), "steps_offset=-1: leading"),
    ],
)
def test_bad_table_times_are_named(arguments, message):
    spacing, count, offset = arguments
    with pytest.raises(ValueError, match=message):
        table_times(sk.DiscreteVP(), spacing, count, steps_offset=offset)


def test_bad_spacings_are_named():
    with pytest.raises(
        ValueError, match="steps_offset=1 counts a table's entries and needs a DiscreteVP process, got VP"
    ):
        Grid.make(sk.VP(), "leading(steps_offset=1)", 4)
    with pytest.raises(ValueError, match=r"grid='trailing' with 30 steps: half_log_snr must increase"):
        Grid.make(sk.DiscreteVP.linear(25), "trailing", 30)


def test_cosine_is_uniform_in_t_for_the_cosine_process_up_to_its_offset():
    process = sk.CosineVP(s=1e-9, t_min=1e-3)
    times = [knot.t for knot in Grid.make(process, "cosine", 10).knots]
    gaps = [s - t for s, t in zip(times, times[1:])]
    assert max(gaps) == pytest.approx(min(gaps), rel=1e-6)


def test_explicit_times_are_kept():
    times = [0.9, 0.5, 0.1]
    assert [knot.t for knot in Grid.make(sk.VP(), times, 2).knots] == times


def k_diffusion_sigmas(count):
    """k-diffusion's list in float32: Karras et al. 2022, eq. 5, and a 0 at the end."""
    ramp = torch.linspace(0, 1, count)
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    return [*((high + ramp * (low - high)) ** 7).tolist(), 0.0]


@pytest.mark.parametrize("count", [2, 5, 18, 40])
def test_k_diffusions_euler_on_its_own_list(count):
    """d = (x − D)/σ, x ← x + d Δσ along the whole list, its last step to σ = 0."""
    sigmas = k_diffusion_sigmas(count)
    x = start = 80 * torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2)

    def denoiser(x, sigma):
        return torch.tanh(x / (1 + sigma[:, None]))

    for now, after in zip(sigmas, sigmas[1:]):
        x = x + (x - denoiser(x, torch.full((3,), now, dtype=torch.float64))) / now * (after - now)
    model = sk.ScoreModel(denoiser, sk.EDM(), predicts="x0")
    for arguments in ({}, {"nfe": count}):
        out = sk.sample(model, (3, 2), solver="ddim", grid=sigmas, start=start, **arguments)
        assert out.nfe == count
        assert out.x.numpy() == pytest.approx(x.numpy(), rel=1e-5, abs=1e-9)  # its ends are roundings of 80 and 0.002


def test_a_last_time_of_zero_is_the_final_denoising_under_every_process():
    x = torch.linspace(-2, 2, 6, dtype=torch.float64).reshape(3, 2)
    for process in PROCESSES:
        if process.t_min == 0:  # VE: a time as any other
            assert Grid.make(process, [1.0, 0.5, 0.0], 2).knots[-1].t == 0
            continue
        model = sk.ScoreModel(lambda x, t: torch.tanh(x), process)
        times = [process.t_max, 0.5 * process.t_max]
        one, other = (sk.sample(model, (3, 2), solver="heun", grid=grid, start=x) for grid in (times, [*times, 0.0]))
        assert torch.equal(one.x, other.x)
        assert one.nfe == other.nfe == 3
        with pytest.raises(ValueError, match="leave the 0 out: the final denoising, final='denoise' of sample"):
            sk.sample(model, (3, 2), solver="heun", grid=[*times, 0.0], start=x, final="none")


def test_ends_that_are_outside_by_a_rounding_are_the_processs_ends():
    process = sk.EDM()
    for factor in (1 - 5e-7, 1 + 5e-7):
        knots = Grid.make(process, [80 * factor, 1.0, 0.002 * factor], 2).knots
        assert (knots[0].t, knots[-1].t) == (min(80.0, 80 * factor), max(0.002, 0.002 * factor))
    for times in ([80.01, 1.0, 0.002], [80.0, 1.0, 0.00199]):
        with pytest.raises(ValueError, match="leave the process's range"):
            Grid.make(process, times, 2)


def test_a_grid_that_begins_beyond_the_process_is_told_where_to_begin():
    with pytest.raises(ValueError, match=r"= \[0.001, 0.999\]; begin at t_max, .* \(t_max= of Flow says"):
        Grid.make(sk.Flow(), [1.0, 0.5, 0.1], 2)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("logsnrr", "did you mean 'logsnr'"),
        ("karras(rho=-1)", "rho=-1 is not a number from 1"),
        ("karras(roh=3)", "did you mean 'rho'"),
        ("beta(alpha=0)", "alpha=0 is not a number from 0.1 to 10"),
        ("shift(shift=-1)", "shift=-1 is not a number from 0.01"),
        ("leading(steps_offset=2)", "steps_offset=2 is not one of 0, 1"),
        ("ays(table='sd2')", "table='sd2' is not one of 'sd15'"),
        ("karras(rho=", "cannot read"),
        ([1.0, 0.5, 0.5], "strictly decrease"),
        ([0.1, 0.5, 1.0], "strictly decrease"),
        ([1.5, 0.5, 0.1], "leave the process's range"),
        ([1.0, 0.5, 0.0], "leave the process's range"),
        ([1.0, float("nan"), 0.1], "grid=.*each a finite number"),
        ([1.0, 0.1], "2 steps need 3"),
    ],
)
def test_bad_grids_are_named(spec, message):
    with pytest.raises(ValueError, match=message):
        Grid.make(sk.VP(), spec, 2)
