"""Intervals hold the truth as often as they say; ranks and evaluations to reach a quality say what can be known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from sdekit.comparison import ADAPTIVE, Cell, Comparison
from sdekit.jackknife import CONFIDENT, GROUPS, SIGNIFICANT, difference_error, half_width, left_out
from sdekit.metrics import frechet_distance, rmse
from sdekit.ranking import BEST, default_quality, leaderboard, marks, over_seeds, places, reach

TIMES = 200


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def share(hits: list[bool]) -> float:
    return sum(hits) / len(hits)


def test_the_factors_are_those_of_students_law() -> None:
    stats = pytest.importorskip("scipy.stats")
    for factor, level in ((CONFIDENT, 0.975), (SIGNIFICANT, 0.995)):
        assert factor == pytest.approx(stats.t.ppf(level, GROUPS - 1), abs=1e-3)


# Of 200 intervals at 95% between 182 and 198 hold the truth, but for 1 case in 1000


def test_the_interval_of_an_error_holds_the_truth() -> None:
    """Of x ~ N(0, s²) against 0 the RMSE is s."""
    source, hits = generator(), []
    for _ in range(TIMES):
        x, zero = 3 * torch.randn(300, 1, generator=source, dtype=torch.float64), torch.zeros(300, 1)
        hits.append(abs(rmse(x, zero).item() - 3) < half_width(left_out(rmse, x, zero, paired=True)))
    assert 0.91 <= share(hits) <= 0.99


def test_the_interval_of_a_distance_between_sets_holds_the_truth() -> None:
    """In one dimension the Fréchet distance of two normal laws is (μ − μ')² + (s − s')²; of sets, 1/n + 1/m more."""
    source, hits = generator(), []
    for _ in range(TIMES):
        x = 1 + 2 * torch.randn(200, 1, generator=source, dtype=torch.float64)
        y = torch.randn(300, 1, generator=source, dtype=torch.float64)
        truth = 2 + (4 / 200 + 1 / 300) * 1.5  # of the means, and half as much of the standard deviations
        half = half_width(left_out(frechet_distance, x, y, paired=False))
        hits.append(abs(frechet_distance(x, y).item() - truth) < half)
    assert 0.91 <= share(hits) <= 0.99


def test_the_interval_of_a_paired_difference_holds_the_truth_and_is_narrow() -> None:
    """x has RMSE 1, and 1.1 x + noise √(1.21 + 0.01): their difference is known better than either."""
    source, hits, narrower = generator(), [], []
    for _ in range(TIMES):
        x = torch.randn(300, 1, generator=source, dtype=torch.float64)
        other, zero = 1.1 * x + 0.1 * torch.randn(300, 1, generator=source, dtype=torch.float64), torch.zeros(300, 1)
        found, base = (left_out(rmse, one, zero, paired=True) for one in (other, x))
        half = CONFIDENT * difference_error(found, base)
        hits.append(abs(rmse(other, zero).item() - rmse(x, zero).item() - (math.sqrt(1.22) - 1)) < half)
        narrower.append(half < half_width(base) / 2)
    assert 0.91 <= share(hits) <= 0.99
    assert share(narrower) > 0.95


def test_the_interval_of_a_mean_over_seeds_holds_the_truth() -> None:
    """Of four seeds' sets, against the same data, the mean's error is half as large, since only the samples vary."""
    source, hits, widths = generator(), [], []
    for _ in range(TIMES):
        cells = []
        for seed in range(4):
            x, zero = 3 * torch.randn(100, 1, generator=source, dtype=torch.float64), torch.zeros(100, 1)
            metrics, rest = {"rmse": rmse(x, zero).item()}, {"rmse": left_out(rmse, x, zero, paired=True)}
            cells.append(Cell("toy", "VP()", "ddim", "logsnr", 5, 100, seed, metrics=metrics, jackknife=rest))
        (mean,) = over_seeds(cells)
        half = half_width(mean.jackknife["rmse"])
        hits.append(abs(mean.metrics["rmse"] - 3) < half)
        widths.append(half / CONFIDENT)
    assert 0.91 <= share(hits) <= 0.99
    assert sum(widths) / TIMES == pytest.approx(3 / math.sqrt(2 * 400), rel=0.1)


# -- ranks ------------------------------------------------------------------------------------------


def cell(solver: str, value: float, rest: list[float] | None = None, **changes) -> Cell:
    jackknife = {"energy": [value] * GROUPS if rest is None else rest}
    one = Cell("toy", "VP()", solver, "logsnr", 5, 20, 0, metrics={"energy": value}, jackknife=jackknife, key=solver)
    return replace(one, **changes)


def spread(value: float, error: float, at: int) -> list[float]:
    """Left-out values with that standard error, all from group ``at``: independent of another group's."""
    rest = [value] * GROUPS
    rest[at] += error * GROUPS / (GROUPS - 1)
    return rest


def test_the_helper_has_the_error_it_says() -> None:
    assert half_width(spread(2.0, 0.3, 4)) == pytest.approx(CONFIDENT * 0.3)


def test_neighbours_tie_and_those_further_apart_do_not() -> None:
    """Each with error 1, independent, at 0, 3 and 6 above 10: a difference has error about √2, and 3.25 √2 = 4.6."""
    cells = [cell(name, 10 + 3 * i, spread(10 + 3 * i, 1.0, i)) for i, name in enumerate("abc")]
    found = places(cells, "energy", floor=0.0, spread=0.0)
    assert [(one.cell.solver, one.rank) for one in found] == [("a", "1–2"), ("b", "1–3"), ("c", "2–3")]
    assert [one.half for one in found] == pytest.approx([CONFIDENT] * 3)


def test_what_differs_by_a_paired_hair_is_ranked() -> None:
    """The same errors in the same groups cancel."""
    cells = [cell(name, value, spread(value, 5.0, 3)) for name, value in (("a", 10.0), ("b", 10.1), ("c", 12.0))]
    assert [one.rank for one in places(cells, "energy", 0.0, 0.0)] == ["1", "2", "3"]


def test_below_the_floor_all_tie_and_nothing_is_said_without_errors() -> None:
    cells = [cell(name, value) for name, value in (("a", 1.0), ("b", 2.0), ("c", 9.0))]
    found = places(cells, "energy", floor=1.0, spread=0.5)  # up to 1 + 3.25 / 2 is the floor
    assert [(one.rank, one.at_floor) for one in found] == [("1–2", True), ("1–2", True), ("3", False)]
    bare = [replace(one, jackknife={}) for one in cells]
    found = places(bare, "energy", 1.0, 0.5)
    assert [(one.rank, one.half) for one in found] == [("1–3", math.inf)] * 3


def test_a_star_is_a_first_rank_alone_above_the_floor() -> None:
    source, seen = generator(), set()
    for _ in range(300):
        values = (torch.rand(3, generator=source) * 10 + 0.5).tolist()
        errors = torch.rand(3, GROUPS, generator=source)
        cells = [cell(str(i), v, (v + e).tolist()) for i, (v, e) in enumerate(zip(values, errors))]
        floor = 2.0
        starred = [key[0] for key, mark in marks(cells, "energy", floor, 0.2).items() if mark == BEST]
        ranked = places(cells, "energy", floor, 0.2)
        assert starred == [one.cell.solver for one in ranked if one.rank == "1" and not one.at_floor]
        seen.add(len(starred))
        for one in ranked:
            assert one.first <= one.last
    assert seen == {0, 1}


def test_the_leaderboard_has_a_column_for_each_nfe_and_the_mean_over_seeds() -> None:
    cells = [cell("a", v, seed=s, nfe=n, key=f"a{s}{n}") for n in (5, 10) for s, v in ((0, 1.0), (1, 3.0))]
    cells += [cell("b", 1.5, seed=s, nfe=5, key=f"b{s}") for s in (0, 1)]
    cells += [cell("adaptive", 0.1, grid=ADAPTIVE, nfe=7)]
    found = leaderboard(comparison(cells), "energy")
    assert {n: [(one.rank, one.cell.solver, one.value) for one in column] for n, column in found.items()} == {
        5: [("1", "b", 1.5), ("2", "a", 2.0)],
        10: [("1", "a", 2.0)],
    }


# -- evaluations to reach a quality -----------------------------------------------------------------


def comparison(cells: list[Cell], **floor: float) -> Comparison:
    return Comparison(tuple(cells), floor, {}, {}, torch.zeros(1))


def curve(values: dict[int, float], error: float = 0.0) -> list[Cell]:
    return [
        cell("ddim", v, spread(v, error, 0) if error else None, nfe=n, evaluations=float(n), key=str(n))
        for n, v in values.items()
    ]


def test_a_power_law_is_read_exactly() -> None:
    cells = curve({n: 100 * n**-1.5 for n in (5, 8, 21, 50)})
    for n in (5.5, 8, 13, 49):
        (one,) = reach(comparison(cells), "energy", 100 * n**-1.5)
        assert (one.evaluations, one.low, one.high) == pytest.approx((n, n, n), rel=1e-9)


def test_beyond_what_was_measured_it_says_so() -> None:
    (one,) = reach(comparison(curve({5: 4.0, 20: 1.0})), "energy", 5.0)
    assert (one.evaluations, one.fewest) == (0.0, 5.0)
    (one,) = reach(comparison(curve({5: 4.0, 20: 1.0})), "energy", 0.5)
    assert (one.evaluations, one.most) == (math.inf, 20.0)


def test_it_is_the_first_time_and_negative_values_count() -> None:
    (one,) = reach(comparison(curve({5: 4.0, 10: 1.0, 20: 3.0, 40: 0.1})), "energy", 2.0)
    assert one.evaluations == pytest.approx(math.sqrt(50))
    (one,) = reach(comparison(curve({5: 4.0, 10: -1.0})), "energy", 2.0)
    assert 5 < one.evaluations < 10


def test_the_interval_is_where_the_values_intervals_meet_the_quality() -> None:
    """Values 100/n ± 10%: the ends are 10% from the middle; an end that the curve does not reach is open."""
    cells = [
        cell("ddim", 100 / n, spread(100 / n, 10 / n / CONFIDENT, 0), nfe=n, evaluations=float(n), key=str(n))
        for n in (5, 10, 20, 40)
    ]
    (one,) = reach(comparison(cells), "energy", 100 / 13)
    assert (one.evaluations, one.low, one.high) == pytest.approx((13, 13 * 0.9, 13 * 1.1))
    (one,) = reach(comparison(cells), "energy", 100 / 39)
    assert (one.evaluations, one.low, one.high) == pytest.approx((39, 39 * 0.9, math.inf))
    (one,) = reach(comparison(cells), "energy", 100 / 5.2)
    assert (one.evaluations, one.low, one.high) == pytest.approx((5.2, 0.0, 5.2 * 1.1))
    (one,) = reach(comparison([replace(one, jackknife={}) for one in cells]), "energy", 100 / 13)
    assert one.evaluations == pytest.approx(13)
    assert math.isnan(one.low)
    assert math.isnan(one.high)


def test_the_interval_of_the_evaluations_holds_the_truth() -> None:
    """RMSE 10/n of normal errors: it is 0.7 at 10/0.7 evaluations."""
    source, hits = generator(), []
    for _ in range(TIMES):
        cells = []
        for n in (5, 10, 20, 40):
            x, zero = 10 / n * torch.randn(100, 1, generator=source, dtype=torch.float64), torch.zeros(100, 1)
            rest = {"rmse": left_out(rmse, x, zero, paired=True)}
            cells.append(cell("ddim", 0.0, nfe=n, metrics={"rmse": rmse(x, zero).item()}, jackknife=rest))
        (one,) = reach(comparison(cells), "rmse", 0.7)
        hits.append(one.low <= 10 / 0.7 <= one.high)
    # between two knots, whose errors are independent here, the ends err outwards
    assert share(hits) >= 0.91


def test_the_default_quality_is_the_best_of_the_middle_and_no_less_than_the_floor() -> None:
    cells = [*curve({5: 4.0, 10: 2.0, 20: 1.0, 50: 0.5}), cell("heun", 1.5, nfe=10)]
    assert default_quality(comparison(cells), "energy") == (1.5, 10)
    assert default_quality(comparison(cells, energy=1.8), "energy") == (1.8, 10)
    assert default_quality(comparison(cells), "rmse") is None


def test_errors_to_the_endpoint_leave_out_what_draws_noise() -> None:
    cells = [replace(one, metrics={"rmse": 1.0}, stochastic=True) for one in curve({5: 1.0, 10: 0.1})]
    assert reach(comparison(cells), "rmse", 0.5) == []


@pytest.mark.parametrize("quality", [0.0, -1.0, math.inf, math.nan])
def test_a_quality_that_has_no_logarithm_is_refused(quality: float) -> None:
    with pytest.raises(ValueError, match=f"quality={quality}: it must be positive and finite"):
        reach(comparison(curve({5: 1.0})), "energy", quality)


def test_old_records_have_the_evaluations_asked_for() -> None:
    cells: list[Cell] = [replace(one, evaluations=0.0) for one in curve({5: 4.0, 20: 1.0})]
    (one,) = reach(comparison(cells), "energy", 2.0)
    assert one.evaluations == pytest.approx(10)
