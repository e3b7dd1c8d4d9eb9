"""One fit for a range: nearer than what it began from and every untuned cell where it was not fitted too."""

from __future__ import annotations

import json
import math

import pytest
import torch

import sdekit as sk
from sdekit.targets import GaussianMixture
from sdekit.tuning import Interrupted, Table, starts
from sdekit.tuning.curve import COUNT, Curve
from sdekit.tuning.family import Family
from sdekit.tuning.search import CANDIDATES
from sdekit.tuning.table import follow
from sdekit.tuning.teacher import distance

RANGE = range(4, 13)


def eight_modes(process=sk.VP()):  # noqa: B008
    angles = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    return GaussianMixture(torch.stack([angles.cos(), angles.sin()], dim=1), 0.1).model(process)


@pytest.fixture(scope="module")
def circle():
    model = eight_modes()
    return model, sk.tune_family(model, (1, 2), RANGE, starts=400, budget=1_600_000)


@pytest.fixture(scope="module")
def straight():
    """Not fitted at all: what it is does not depend on that."""
    model = eight_modes()
    return model, sk.tune_family(model, (1, 2), RANGE, starts=192, budget=0)


def test_it_beats_every_untuned_cell_with_a_number_that_was_not_fitted(circle):
    model, family = circle
    assert family.record["stage"] == "refined"
    assert 8 not in family.record["fitted"]
    start = starts(model, (2,), "report", 255, seed=3)
    end = sk.sample(model, start.shape, solver="dpm-solver-3", nfe=300, start=start, final="denoise").x

    def errors(nfe, **run):
        return distance(sk.sample(model, start.shape, start=start, nfe=nfe, **run).x, end)

    cells = [errors(8, solver=solver, grid=grid, final="reuse") for solver, grid in CANDIDATES]
    tuned = errors(8, solver=family)
    assert tuned.median() < min(cell.median() for cell in cells)
    assert tuned.square().mean() < min(cell.square().mean() for cell in cells)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "deis-3", "ipndm-4"])
@pytest.mark.parametrize("process", [sk.VP(), sk.VE(), sk.Flow()], ids=lambda p: type(p).__name__)
def test_a_straight_curve_is_the_solver_of_the_registry(solver, process):
    model, grid = eight_modes(process), "vp-time(power=2.5)"
    x = starts(model, (2,), "train", 7)
    for nfe in (4, 9):
        straight = Curve(process, solver, grid, (0.0,) * COUNT).table(nfe)
        plan = sk.solvers.get(solver).plan(process, nfe=nfe, grid=grid, final="reuse")
        expected = Table.of(plan, process)
        assert straight.times == pytest.approx(expected.times, rel=2e-3)  # the grid between 481 knots
        ours, theirs = (follow(model, table, x, {}).end for table in (straight, expected))
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


def test_what_bends_the_curve_vanishes_with_many_evaluations():
    straight = Curve(sk.VP(), "ddim", "time", (0.0,) * COUNT)
    bent = straight.bent([*[0.0] * 6, *[0.02] * (COUNT - 6)])
    few, many = (
        max(abs(a - b) / abs(a) for a, b in zip(straight.table(nfe).anchor[:-1], bent.table(nfe).anchor[:-1]))
        for nfe in (32, 256)
    )
    assert many < few / 5  # as 1/N


def test_it_is_a_value_for_solver_and_names_what_it_refuses(straight):
    model, family = straight
    out = sk.sample(model, (5, 2), solver=family, nfe=7, seed=0)
    assert (out.nfe, out.sigma, family.stochastic, family.name) == (7, 0.0, False, "tuned-4-12")
    assert torch.equal(sk.sample(model, (5, 2), solver=family, nfe=7, seed=0, batch_size=2).x, out.x)
    for run, error in (
        ({"nfe": 13}, "nfe=13, steps=None: solver 'tuned-4-12' runs with nfe from 4 to 12"),
        ({"nfe": 3}, "nfe=3"),
        ({"steps": 5}, "steps=5"),
        ({"nfe": 5, "grid": "time"}, "grid='time'"),
        ({"nfe": 5, "final": "none"}, "final='none'"),
    ):
        with pytest.raises(ValueError, match=error):
            sk.sample(model, (5, 2), solver=family, **run)
    with pytest.raises(ValueError, match="was fitted for VP"):
        sk.sample(eight_modes(sk.Flow()), (5, 2), solver=family, nfe=5)


def test_it_is_read_as_it_was_written_and_each_number_is_checked(straight, tmp_path):
    model, family = straight
    path = tmp_path / "new" / "family.json"
    family.save(path)
    again = sk.solvers.load(path, model)
    assert isinstance(again, Family)
    assert again == family
    assert again.record == json.loads(json.dumps(family.record))
    other = GaussianMixture(torch.eye(2).double(), 0.1).model(sk.VP())
    with pytest.raises(ValueError, match="was fitted to another model"):
        sk.solvers.load(path, other)
    assert sk.solvers.load(path, other, force=True) == family
    for name, value, error in (
        ("solver", "unipc-2", "solver of .*unipc-2"),
        ("grid", "karras", "grid of .*karras"),
        ("least", 2, "least is 2: it must be a whole number from 3 to 100"),
        ("most", 4.5, "most is 4.5"),
        ("most", 3, "most is 3"),
        ("numbers", [0.0], "numbers is .*a list of 96 numbers"),
        ("numbers", [math.nan] * COUNT, r"numbers\[0\] is nan"),
        ("numbers", [100.0] * COUNT, "no falling times with nfe=4"),
        ("record", {**family.record, "start": {"4": {"median": -1, "rmse": 1}}}, "start.4.median is -1"),
        ("process", {"name": "VX"}, "process is "),
    ):
        edited = tmp_path / "edited.json"
        edited.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
        with pytest.raises(ValueError, match=error):
            sk.solvers.load(edited)


def test_without_a_budget_the_curve_stays_straight():
    model = eight_modes()
    told = []
    family = sk.tune_family(model, (1, 2), range(4, 6), starts=192, budget=0, progress=lambda *x: told.append(x))
    assert family.record["stage"] == "search"
    assert set(family.curve.numbers) == {0.0}
    assert family.record["start"] == family.record["validation"]
    assert told[0][:2] == ("teacher", 0)
    assert family.record["evaluations"] <= told[0][2]


def test_ctrl_c_keeps_the_best_so_far():
    model = eight_modes()
    calls = 0

    def stop(what, done, total):
        nonlocal calls
        calls += what == "refine"
        if calls == 40:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        sk.tune_family(model, (1, 2), range(4, 6), starts=192, progress=stop)
    assert sk.sample(model, (2, 2), solver=caught.value.plan, nfe=5).nfe == 5


def test_bad_input_is_named():
    model = eight_modes()
    for nfe in (range(4, 21, 2), range(2, 9), range(4, 5), range(4, 300)):
        with pytest.raises(ValueError, match="it must be a range of at least 2 numbers from 3 to 100"):
            sk.tune_family(model, (1, 2), nfe)
    with pytest.raises(ValueError, match="starts=100: it must be a whole number of at least 192"):
        sk.tune_family(model, (1, 2), starts=100)
