"""Grids: endpoints, monotony, each grid's own formula, and the errors."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sdekit as sk
from sdekit.grid import GRIDS, Grid

PROCESSES = [sk.VP(), sk.SubVP(), sk.VE(), sk.CosineVP(), sk.DiscreteVP(), sk.Flow()]
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


def test_cosine_is_uniform_in_t_for_the_cosine_process_up_to_its_offset():
    process = sk.CosineVP(s=1e-9, t_min=1e-3)
    times = [knot.t for knot in Grid.make(process, "cosine", 10).knots]
    gaps = [s - t for s, t in zip(times, times[1:])]
    assert max(gaps) == pytest.approx(min(gaps), rel=1e-6)


def test_explicit_times_are_kept():
    times = [0.9, 0.5, 0.1]
    assert [knot.t for knot in Grid.make(sk.VP(), times, 2).knots] == times


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("logsnrr", "did you mean 'logsnr'"),
        ("karras(rho=-1)", "rho=-1 is not a number from 1"),
        ("karras(roh=3)", "did you mean 'rho'"),
        ("karras(rho=", "cannot read"),
        ([1.0, 0.5, 0.5], "strictly decrease"),
        ([0.1, 0.5, 1.0], "strictly decrease"),
        ([1.5, 0.5, 0.1], "leave the process's range"),
        ([1.0, 0.5, 0.0], "leave the process's range"),
        ([1.0, float("nan"), 0.1], "strictly decrease"),
        ([1.0, 0.1], "2 steps need 3"),
    ],
)
def test_bad_grids_are_named(spec, message):
    with pytest.raises(ValueError, match=message):
        Grid.make(sk.VP(), spec, 2)
