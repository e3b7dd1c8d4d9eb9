"""A mark says what was measured: none for luck, one for a solver that is better, none for what is below the floor."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import sdekit as sk
from sdekit import report
from sdekit.comparison import Cell, Comparison, compare
from sdekit.jackknife import GROUPS, difference_error, left_out, standard_error
from sdekit.metrics import DEFAULT, METRICS, energy_distance, rmse
from sdekit.ranking import marks, matrix
from sdekit.solvers import get
from sdekit.targets import Gaussian

SETS = [name for name in DEFAULT if not METRICS[name].paired]


# -- the error of a value and of a difference -----------------------------------------------------


def test_the_error_of_a_mean_is_the_textbooks() -> None:
    """For a difference of means s² = s_x²/n + s_y²/m, whatever the groups."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(200):
        x = torch.randn(200, 1, generator=generator, dtype=torch.float64)
        y = 2 * torch.randn(300, 1, generator=generator, dtype=torch.float64)
        values = left_out(lambda x, y: x.mean() - y.mean(), x, y, paired=False)
        found.append(standard_error(values) ** 2)
    truth = 1 / 200 + 4 / 300
    # the relative spread of one estimate with G − 1 = 9 degrees of freedom is √(2/9)
    assert abs(sum(found) / len(found) / truth - 1) < 4 * math.sqrt(2 / 9 / 200)


def test_the_error_of_a_paired_difference_leaves_out_what_both_share() -> None:
    """x + shift and x have the same spread about 0: the difference of their means has no error."""
    x = torch.randn(100, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    reference = torch.zeros(100, 1, dtype=torch.float64)
    first, second = (left_out(lambda x, y: x.mean() - y.mean(), z, reference, paired=True) for z in (x, x + 1))
    assert difference_error(first, second) < 1e-12 < standard_error(first)


def test_data_that_repeat_with_the_groups_period_are_dealt_at_random() -> None:
    """Of data 0, 1, …, 9, 0, 1, … whole classes would be left out at once: an error of 1 instead of 0.13."""
    x = (torch.arange(500) % GROUPS).double()[:, None]
    values = left_out(lambda x, y: x.mean() - y.mean(), x, torch.zeros(500, 1).double(), paired=False)
    assert standard_error(values) < 0.4


def test_too_few_samples_have_no_error() -> None:
    x = torch.randn(2 * GROUPS - 1, 2)
    assert left_out(rmse, x, x + 1, paired=True) == []
    assert standard_error([]) == difference_error([], [1.0]) == math.inf


# -- marks ----------------------------------------------------------------------------------------


def drawn(solver: str, x: torch.Tensor, data: torch.Tensor) -> Cell:
    """A cell whose samples are x."""
    rest = left_out(energy_distance, x, data, paired=False)
    metrics = {"energy": energy_distance(x, data).item()}
    return Cell("toy", "VP()", solver, "logsnr", 5, len(x), 0, metrics=metrics, jackknife={"energy": rest}, key=solver)


def test_samplers_of_one_law_are_rarely_starred_and_a_better_one_is() -> None:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(600, 2, generator=generator)
    lucky, right = 0, 0
    for _ in range(60):
        # three of the same law, away from the data's; a fourth nearer by far
        worse = [drawn(f"worse-{i}", torch.randn(200, 2, generator=generator) + 1, data) for i in range(3)]
        better = drawn("better", torch.randn(200, 2, generator=generator) + 0.5, data)
        lucky += "*" in marks(worse, "energy", floor=0.08, spread=0.02).values()
        right += marks([*worse, better], "energy", floor=0.08, spread=0.02) == {("better", "logsnr"): "*"}
    assert lucky <= 4  # 1% expected; more than 4 of 60 has a chance of 3e-4
    assert right >= 57


def test_below_the_floor_there_is_no_star() -> None:
    generator = torch.Generator().manual_seed(1)
    data, more = torch.randn(600, 2, generator=generator), torch.randn(200, 2, generator=generator)
    cells = [drawn("as-good-as-data", more, data), drawn("worse", more + 2, data)]
    floor = cells[0].metrics["energy"]
    for lifted in (0.9, 1.0, 1.5):  # the best above, at and below the floor, by less than its error
        assert marks(cells, "energy", lifted * floor, 0.2 * floor) == {("as-good-as-data", "logsnr"): "="}
    assert marks(cells, "energy", 0.3 * floor, 0.2 * floor) == {("as-good-as-data", "logsnr"): "*"}


def test_a_paired_difference_within_the_endpoints_own_error_is_none() -> None:
    cells = [
        Cell("toy", "VP()", name, "logsnr", 5, 20, 0, metrics={"rmse": value}, jackknife={"rmse": [value] * GROUPS})
        for name, value in (("near", 1.0), ("far", 1.3))
    ]
    assert marks(cells, "rmse", floor=0.1, spread=0.0) == {("near", "logsnr"): "*"}
    assert set(marks(cells, "rmse", floor=0.2, spread=0.0).values()) == {"="}
    assert marks(cells[:1], "rmse", floor=0.1, spread=0.0) == {}


def test_records_without_errors_are_not_marked() -> None:
    cell = Cell("toy", "VP()", "ddim", "logsnr", 5, 20, 0, metrics={"energy": 1.0})
    assert marks([cell, replace(cell, solver="heun", metrics={"energy": 9.0})], "energy", 0.1, 0.01) == {}
    line = cell.to_json().replace(', "jackknife": {}', "")
    assert "jackknife" not in line
    assert Cell.from_json(line) == cell


# -- the whole comparison -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def twins() -> Comparison:
    """DDIM under two names and, for NFE 4 and 12, a far better one; Gaussian data of unequal widths."""
    target = Gaussian(torch.tensor([1.0, -0.5]), torch.diag(torch.tensor([1.0, 0.05])))
    twin = replace(get("ddim"), name="twin")
    return compare(
        target.model(sk.VP()), target.sample(400, seed=1), solvers=["ddim", twin, "dpmpp-2m"], nfe=[4, 12],
        samples=100, real=target.sample(400, seed=2),
    )  # fmt: skip


def test_one_sampler_under_two_names_is_never_starred(twins: Comparison) -> None:
    pair = replace(twins, cells=tuple(cell for cell in twins.cells if cell.solver != "dpmpp-2m"))
    for metric in DEFAULT:
        table = matrix(pair, metric)
        assert table.values[0] == table.values[1]
        assert set(table.marks) == {("=", "=")}


def test_a_better_solver_is_starred_and_the_legend_says_so(twins: Comparison) -> None:
    table = matrix(twins, "rmse")
    assert {row[0].solver: found for row, found in zip(table.rows, table.marks)}["dpmpp-2m"] == ("*", "*")
    assert "* better than every other of its column" in report.text(twins)
    assert "= cannot be told from the best" in report.text(twins)


@pytest.mark.parametrize("more", [60, 400])
def test_the_spread_is_that_of_sets_drawn_anew(more: int) -> None:
    """From 60 further data, no more than a cell has, and from subsets of 400, against 200 sets of 60 drawn anew."""
    target = Gaussian(torch.zeros(2), torch.eye(2))
    data = target.sample(200, seed=1)
    drawn = [energy_distance(target.sample(60, seed=10 + i), data).item() for i in range(200)]
    truth = torch.tensor(drawn).std().item()
    found = [
        compare(
            target.model(sk.VP()), data, solvers=["ddim"], nfe=[3], samples=60, real=target.sample(more, seed=seed)
        ).spread["energy"]
        for seed in range(300, 303)
    ]
    assert 0.5 * truth < sum(found) / len(found) < 2.5 * truth  # the jackknife errs upwards near a floor
