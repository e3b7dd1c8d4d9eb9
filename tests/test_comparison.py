"""The sweep against closed forms on a Gaussian, and what it keeps: resume, kill, Ctrl-C, cells that cannot be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sdekit as sk
from sdekit.comparison import ENDPOINT, Cell, Comparison, Interrupted, compare
from sdekit.grid import Grid
from sdekit.metrics import DEFAULT, METRICS, energy_distance, frechet_distance, sliced_wasserstein
from sdekit.noise import normal
from sdekit.report import text
from sdekit.targets import Gaussian

PROCESS = sk.VP()
TARGET = Gaussian(torch.tensor([1.0, -0.5]), torch.tensor([[1.0, 0.6], [0.6, 0.5]]))
DATA, MORE = TARGET.sample(40, seed=1), TARGET.sample(30, seed=2)
SAMPLES = 32


def run(model: sk.ScoreModel | None = None, **changes: Any) -> Comparison:
    options = {"solvers": ["ddim", "heun"], "nfe": [5, 8], "samples": SAMPLES, "seed": 3, "real": MORE} | changes
    return compare(model or TARGET.model(PROCESS), options.pop("reference", DATA), **options)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


# -- what is measured -----------------------------------------------------------------------------


def test_rmse_is_to_the_closed_form_end_of_the_ode() -> None:
    start = normal(3, 0, torch.arange(SAMPLES), (2,), torch.float64) * PROCESS.prior_std
    end = TARGET.flow_map(start, PROCESS.t_max, PROCESS.t_min, PROCESS)
    exact = TARGET.conditional_means(end, PROCESS.t_min, PROCESS)[0]
    result = run()
    assert len(result.cells) == 4
    for cell in result.cells:
        solution = sk.sample(
            TARGET.model(PROCESS), (SAMPLES, 2), solver=cell.solver, nfe=cell.nfe, start=start, dtype=torch.float64
        )
        truth = (solution.x - exact).square().mean().sqrt().item()
        # float32 and the endpoint's error; Heun at NFE 5 is off by 13, and multiplies float32's rounding alike
        assert cell.metrics["rmse"] == pytest.approx(truth, abs=2e-4, rel=1e-4)
        assert truth > 20 * 2e-4
    assert 0 < result.floor["rmse"] < 1e-4


def test_distances_are_to_the_reference_and_the_floor_is_its_distance_to_real() -> None:
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    result = run(features=doubled)
    cell = result.cells[0]
    x = sk.sample(TARGET.model(PROCESS), (SAMPLES, 2), solver=cell.solver, nfe=cell.nfe, seed=3).x
    for set_, values in ((x, cell.metrics), (MORE, result.floor)):  # MORE has fewer than SAMPLES: taken whole
        assert values["sliced_wasserstein"] == pytest.approx(sliced_wasserstein(set_, DATA).item(), rel=1e-5)
        assert values["energy"] == pytest.approx(energy_distance(set_, DATA).item(), rel=1e-5)
        assert values["frechet"] == pytest.approx(frechet_distance(2 * set_, 2 * DATA).item(), rel=1e-5)
    assert cell.floor == result.floor


def test_the_floor_is_a_mean_over_subsets_of_the_size_of_a_cell() -> None:
    many = TARGET.sample(400, seed=4)
    result = run(solvers=["ddim"], nfe=[5], real=many)
    # E D² of equal laws is E|X − X'| (1/n + 1/m): for subsets of 32 against 40, not of 400
    spread = torch.cdist(many, many).mean().item() * (1 / SAMPLES + 1 / len(DATA))
    assert 0.4 * spread < result.floor["energy"] ** 2 < 2.5 * spread
    assert 0 < result.spread["energy"] < result.floor["energy"]


def test_without_more_data_the_reference_is_halved() -> None:
    result = run(solvers=["ddim"], nfe=[5], real=None)
    assert result.floor["energy"] == pytest.approx(energy_distance(DATA[1::2], DATA[::2]).item(), rel=1e-9)


def test_solvers_that_draw_noise_have_every_metric_but_the_paired() -> None:
    result = run(solvers=["ddim", "ddim(eta=1.0)", "ddpm"], nfe=[5])
    unpaired = {name for name in DEFAULT if not METRICS[name].paired}
    assert [cell.stochastic for cell in result.cells] == [False, True, True]
    assert [set(cell.metrics) for cell in result.cells] == [set(DEFAULT), unpaired, unpaired]


def test_cells_are_ordered_by_nfe_grid_solver_and_unique() -> None:
    result = run(nfe=[8, 5, 8], grid=["time", "logsnr"], solvers=["heun", "ddim", "heun"])
    axes = [(cell.nfe, cell.grid, cell.solver) for cell in result.cells]
    assert axes == [(n, g, s) for n in (5, 8) for g in ("time", "logsnr") for s in ("heun", "ddim")]


def test_times_are_a_grid_beside_names_and_run_where_they_fit() -> None:
    """A named grid's own times, given explicitly, are that grid."""
    times = [knot.t for knot in Grid.make(PROCESS, "time-quadratic", 8).knots]
    result = run(solvers=["ddim"], nfe=[5, 8], grid=["time-quadratic", times])
    named, given = ([cell for cell in result.cells if ("times" in cell.grid) is explicit] for explicit in (False, True))
    assert {re.sub("#.{4}$", "#", cell.grid) for cell in given} == {"9 times 1 … 0.001 #"}
    assert given[1].metrics == named[1].metrics
    assert not given[0].metrics
    assert "9 times given, 4 steps need 5" in given[0].note
    assert "9 times 1 … 0.001 #" in text(result)


def test_one_grid_of_times_needs_no_list_around_it() -> None:
    times = [1.0, 0.6, 0.3, 0.1, 0.001]
    alone, listed = (run(solvers=["ddim"], nfe=[5], grid=grid).cells for grid in (times, [tuple(times)]))
    assert alone[0].grid.startswith("5 times 1 … 0.001 #")
    assert [cell.key for cell in alone] == [cell.key for cell in listed]


def test_other_times_are_another_cell(tmp_path: Path) -> None:
    for middle in (0.5, 0.4):
        run(out=tmp_path, solvers=["ddim"], nfe=[3], grid=[1.0, middle, 0.001])
    assert len({line["grid"] for line in lines(tmp_path)}) == 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_data_may_be_numpy_arrays(dtype: Any) -> None:
    features = torch.nn.Linear(2, 3)
    arrays = run(reference=DATA.numpy().astype(dtype), real=MORE.numpy().astype(dtype), features=features)
    assert [cell.metrics for cell in arrays.cells] == [cell.metrics for cell in run(features=features).cells]


def test_batches_change_nothing() -> None:
    whole, split = run(), run(batch_size=7)
    for one, other in zip(whole.cells, split.cells):
        assert one.metrics == pytest.approx(other.metrics, rel=1e-4)


def test_progress_counts_every_evaluation_once() -> None:
    told: list[tuple[str, int, int]] = []
    run(batch_size=10, progress=lambda *now: told.append(now))
    done, totals = [now[1] for now in told], {now[2] for now in told}
    assert done == sorted(done)
    assert totals == {done[-1]}
    assert done[-1] >= SAMPLES * (2 * (5 + 8) + ENDPOINT[1])


# -- cells that cannot be measured ----------------------------------------------------------------


def test_a_budget_too_small_is_a_note() -> None:
    noisy = sk.ScoreModel(lambda x, t: x, sk.VP(t_min=0.1))  # so much noise is left that an evaluation takes it off
    small, enough = run(noisy, solvers=["ddim"], nfe=[1, 5]).cells
    assert not small.metrics
    assert "nfe=1" in small.note
    assert enough.metrics
    assert not enough.note


def test_samples_that_are_not_finite_are_a_note(tmp_path: Path) -> None:
    broken = sk.ScoreModel(lambda x, t: x / (x[:, :1] > 0), PROCESS)
    result = run(broken, solvers=["ddpm", "ddim"], nfe=[5], out=tmp_path)
    for cell in result.cells:
        assert cell.note.startswith("diverged")
        assert not cell.metrics
    assert "rmse" not in result.floor


# -- records --------------------------------------------------------------------------------------


def test_each_line_says_what_it_is(tmp_path: Path) -> None:
    result = run(out=tmp_path, target="toy")
    records = lines(tmp_path)
    assert [Cell.from_json(json.dumps(record)) for record in records] == list(result.cells)
    for record in records:
        assert record["target"] == "toy"
        assert record["versions"]["torch"] == torch.__version__
        assert {"solver", "grid", "nfe", "samples", "seed", "metrics", "seconds", "process", "floor"} <= record.keys()


def test_a_second_run_computes_only_what_is_missing(tmp_path: Path) -> None:
    model = TARGET.model(PROCESS)
    first = run(model, out=tmp_path)
    before = model.nfe
    again = run(model, out=tmp_path)
    assert model.nfe == before
    assert again.cells == first.cells
    assert again.samples.keys() == first.samples.keys()
    assert len(lines(tmp_path)) == 4
    run(model, out=tmp_path, nfe=[5, 6, 8])
    assert model.nfe == before + 2 * 6
    assert len(lines(tmp_path)) == 6


@pytest.mark.parametrize("changes", [{"seed": 4}, {"samples": 31}, {"reference": DATA + 1}, {"target": "other"}])
def test_another_setting_is_another_cell(tmp_path: Path, changes: dict[str, Any]) -> None:
    run(out=tmp_path, solvers=["ddim"], nfe=[5])
    run(out=tmp_path, solvers=["ddim"], nfe=[5], **changes)
    assert len(lines(tmp_path)) == 2


def test_other_weights_are_another_cell(tmp_path: Path) -> None:
    for scale in (1.0, 2.0):
        run(Gaussian(torch.zeros(2), scale * torch.eye(2)).model(PROCESS), out=tmp_path, solvers=["ddim"], nfe=[5])
    first, second = lines(tmp_path)
    assert first["metrics"] != second["metrics"]


def test_a_line_cut_off_by_a_kill_is_computed_again(tmp_path: Path) -> None:
    whole = run(out=tmp_path)
    path = tmp_path / "results.jsonl"
    path.write_text(path.read_text()[:-40])
    again = run(out=tmp_path)
    assert [cell.metrics for cell in again.cells] == [cell.metrics for cell in whole.cells]
    found = [Cell.from_json(line) for line in path.read_text().splitlines()]
    assert sum(cell is not None for cell in found) == 4


def test_ctrl_c_keeps_every_finished_cell(tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("ddim") and what.endswith("NFE 8"):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        run(out=tmp_path, progress=stop)
    kept = caught.value.result
    assert [(cell.solver, cell.nfe) for cell in kept.cells] == [("ddim", 5), ("heun", 5)]
    assert len(lines(tmp_path)) == 2
    assert run(out=tmp_path).cells[:2] == kept.cells
    assert [cell.metrics for cell in run(out=tmp_path).cells] == [cell.metrics for cell in run().cells]


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"solvers": ["dimm"]}, r"did you mean 'ddim'"),
        ({"solvers": []}, r"solvers: none given"),
        ({"grid": "logsrn"}, r"did you mean 'logsnr'"),
        ({"grid": "karras(rho=0)"}, r"rho=0"),
        ({"nfe": [0]}, r"nfe=0"),
        ({"nfe": []}, r"nfe: none given"),
        ({"samples": 1}, r"samples=1"),
        ({"real": DATA[:1]}, r"at least 2"),
        ({"reference": DATA[:0]}, r"reference=.*not empty"),
        ({"real": torch.zeros(5, 3)}, r"must be equal"),
        ({"reference": torch.zeros(9)}, r"reference has shape \[9\].*\[m, 1\]"),
        ({"real": torch.zeros(9, 2).int().numpy()}, r"real has shape.*floating-point"),
        ({"reference": torch.full((9, 2), torch.nan)}, r"reference=<tensor .* with .*(nan|inf) at "),
        ({"grid": [1.0, 0.2, 0.3]}, r"strictly decrease"),
        ({"grid": ["logsnr", [1.0]]}, r"1 times given"),
        ({"grid": [1.2, 0.3]}, r"leave the process's range"),
    ],
)
def test_bad_input_is_named_before_anything_runs(changes: dict[str, Any], message: str) -> None:
    model = TARGET.model(PROCESS)
    with pytest.raises(ValueError, match=message):
        run(model, **changes)
    assert model.nfe == 0
