"""What other libraries run by default is here by name: their own code on the same network, start, times and noise.

The cases, and how each library is run, are those of ``benchmarks/libraries.py``, which writes the page.
"""

from __future__ import annotations

import importlib
import math
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

import sdekit as sk
from sdekit.grid import Grid

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))  # its modules import each other
libraries, runs = (importlib.import_module(name) for name in ("libraries", "library_runs"))
sys.path.remove(str(ROOT / "benchmarks"))

PAGE = (ROOT / "docs" / "libraries.md").read_text(encoding="utf-8")
TABLE = [line for line in PAGE.splitlines() if line.startswith("| ")][1:]
REMAKE = "python benchmarks/libraries.py FOLDER"
FLOAT64, FLOAT32 = 1e-8, 1e-3
"""A library's tables and most states are float32 as shipped: an error of 1e-7 a step, times what a step magnifies."""


def cases():
    for case in libraries.CASES:
        absent = not [*metadata.distributions(name=case.library)]  # k-diffusion's package imports more than it needs
        needs = "torchsde" if "SDE" in case.call and case.library == "diffusers" else case.library
        absent = absent or not [*metadata.distributions(name=needs)]
        skip = pytest.mark.skipif(absent, reason=f"{needs} is not installed")
        yield pytest.param(case, id=case.call, marks=skip)


over_cases = pytest.mark.parametrize("case", list(cases()))
# diffusers hands tensors to numpy in ways that numpy is to end
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


@over_cases
def test_the_algorithm_is_the_librarys(case):
    """Its own code in float64; the N lie on both sides of each library's rule for the order of the last steps."""
    assert max(case.difference(n, wide=True) for n in case.n) < FLOAT64


@over_cases
def test_so_is_the_result_as_shipped(case):
    assert case.difference(case.n[0], wide=False) < FLOAT32


def test_the_page_has_each_case():
    cases = [*libraries.CASES, *libraries.single_files(Path())]
    assert [row.strip("| ").split(" | ")[:6] for row in TABLE] == [libraries.declared(case) for case in cases], REMAKE


def test_the_page_has_the_scripts_text():
    assert PAGE.startswith(libraries.INTRODUCTION + libraries.HEADER), REMAKE
    assert PAGE.endswith(libraries.NOTES.partition("VERSIONS")[2]), REMAKE


def test_the_page_says_that_they_agree():
    for row in TABLE:
        wide, shipped = (float(cell) for cell in row.strip("| ").split(" | ")[6:])
        assert wide < FLOAT64, row
        assert shipped < FLOAT32, row


# dpm-solver and UniPC are no packages: their defaults are written down again


def on_uniform_time(steps):
    """The continuous linear schedule from 1 to 1e-3, uniform in time: the ``sample`` of both."""
    process = sk.VP()
    return runs.target().model(process), Grid.make(process, "time", steps).knots, runs.start(process)


def second_order_step(x, s, t, x0_s, older, share):
    """Both papers' step for the data prediction; ``share`` of the slope over ``older`` = (λ, x0) before s or at t."""
    h = t.half_log_snr - s.half_log_snr
    slope = 0 if older is None else (older[1] - x0_s) / ((older[0] - s.half_log_snr) / h)
    return t.sigma / s.sigma * x - t.alpha * math.expm1(-h) * x0_s + t.alpha * share(h) * slope


@pytest.mark.parametrize("steps", [9, 10])
def test_dpm_solver_lowers_the_last_order_below_ten_steps(steps):
    """``DPM_Solver(...).sample(x, steps)``: multistep DPM-Solver++ 2M, ``lower_order_final and steps < 10``."""
    model, knots, x = on_uniform_time(steps)
    older = None
    for i, (s, t) in enumerate(zip(knots, knots[1:])):
        x0 = model.x0(x, s.t)
        last = i == steps - 1 and steps < 10
        x = second_order_step(x, s, t, x0, None if last else older, lambda h: -math.expm1(-h) / 2)
        older = (s.half_log_snr, x0)
    case = libraries.single_files(Path())[0]
    assert (case.ours(steps) - x).abs().max() < 1e-12


@pytest.mark.parametrize("steps", [9, 20])
def test_unipc_lowers_the_last_order_always(steps):
    """``UniPC(...).sample(x, steps)``: order 2, B(h) = h, every step but the last corrected."""
    model, knots, x = on_uniform_time(steps)
    older, x0 = None, model.x0(x, knots[0].t)
    for i, (s, t) in enumerate(zip(knots, knots[1:])):
        ahead = second_order_step(x, s, t, x0, None if i == steps - 1 else older, lambda h: h / 2)
        if i == steps - 1:
            x = ahead
            break
        new = model.x0(ahead, t.t)
        x = corrected(x, s, t, x0, older, (t.half_log_snr, new))
        older, x0 = (s.half_log_snr, x0), new
    case = libraries.single_files(Path())[1]
    assert (case.ours(steps) - x).abs().max() < 1e-10


def corrected(x, s, t, x0, older, new):
    """UniC: of order 1 in the first step, then of order 2, with Σ a_k r_k^{n−1} = n! h φ_{n+1}(−h)/B for n = 1, 2."""
    h = t.half_log_snr - s.half_log_snr
    if older is None:
        return second_order_step(x, s, t, x0, new, lambda h: h / 2)
    phi_2 = (math.expm1(-h) + h) / h**2
    phi_3 = (1 / 2 - phi_2) / h
    r = (older[0] - s.half_log_snr) / h
    matrix = torch.tensor([[1.0, 1.0], [r, 1.0]], dtype=torch.float64)
    a = torch.linalg.solve(matrix, torch.tensor([phi_2, 2 * phi_3], dtype=torch.float64))
    slopes = a[0] / r * (older[1] - x0) + a[1] * (new[1] - x0)
    return t.sigma / s.sigma * x - t.alpha * math.expm1(-h) * x0 + t.alpha * h * slopes
