"""What else can stand in a comparison: adaptive methods, functions, several seeds, conditions, failures."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import sdekit as sk
from sdekit.adaptive import Adaptive, named
from sdekit.comparison import ADAPTIVE, OWN, Comparison, Function, compare
from sdekit.metrics import energy_distance
from sdekit.noise import normal
from sdekit.ranking import matrix, over_seeds
from sdekit.report import text, write
from sdekit.targets import Gaussian

PROCESS = sk.VP()
TARGET = Gaussian(torch.tensor([1.0, -0.5]), torch.tensor([[1.0, 0.6], [0.6, 0.5]]))
DATA, MORE = TARGET.sample(40, seed=1), TARGET.sample(30, seed=2)


def run(model: Any = None, **changes: Any) -> Comparison:
    options = {"solvers": ["ddim"], "nfe": [5], "samples": 32, "seed": 3, "real": MORE} | changes
    return compare(model or TARGET.model(PROCESS), options.pop("reference", DATA), **options)


# -- parallel in time ------------------------------------------------------------------------------


def test_a_parallel_run_is_a_row_that_counts_rounds_beside_evaluations(tmp_path: Path) -> None:
    spec = "parallel(solver='ddpm', window=10)"
    result = run(
        solvers=["ddpm", spec, sk.parallel.Parallel("ddim", tolerance=0.01)], nfe=[20], seed=[3, 4], out=tmp_path
    )
    alone, together, loose = (result.cells[place] for place in (0, 2, 4))
    assert (together.solver, loose.solver) == (spec, "parallel(solver='ddim', tolerance=0.01)")
    assert alone.rounds is None
    assert together.nfe == 20 < together.evaluations
    assert together.rounds is not None
    assert together.rounds < 20
    assert together.metrics["energy"] == pytest.approx(alone.metrics["energy"], abs=1e-4)
    assert together.stochastic
    assert "rmse" in loose.metrics
    assert over_seeds(result.cells)[1].rounds == pytest.approx(sum(c.rounds or 0 for c in result.cells[2:4]) / 2)
    assert all(path.exists() for path in write(result, tmp_path))


@pytest.mark.parametrize("spec", ["parallel(width=3)", "parallel(window=0)", "parallel(solver='dddim')"])
def test_a_bad_parallel_row_is_named(spec: str) -> None:
    with pytest.raises(ValueError, match=r"width|window=0|dddim"):
        run(solvers=[spec])


# -- adaptive methods -----------------------------------------------------------------------------


def test_an_adaptive_method_is_a_row_with_the_evaluations_that_it_took(tmp_path: Path) -> None:
    spec = "dpm-solver-23(rtol=0.01)"
    result = run(solvers=["ddim", spec, Adaptive("sde")], nfe=[5, 8], grid=["time", "logsnr"], out=tmp_path)
    assert [cell.solver for cell in result.cells] == ["ddim"] * 4 + [spec, "sde"]
    alone = sk.sample_adaptive(TARGET.model(PROCESS), (32, 2), method="dpm-solver-23", rtol=0.01, seed=3)
    ode, sde = result.cells[-2:]
    assert ode.grid == sde.grid == ADAPTIVE
    assert ode.evaluations == pytest.approx(alone.nfe.double().mean().item())
    assert ode.nfe == round(ode.evaluations) > 5
    assert ode.metrics["energy"] == pytest.approx(energy_distance(alone.x, DATA).item(), rel=1e-5)
    assert 0 < ode.metrics["rmse"] < result.cells[0].metrics["rmse"]
    assert sde.stochastic
    assert "rmse" not in sde.metrics
    assert spec in text(result)
    assert matrix(result, "energy").nfe == (5, 8)
    assert all(path.exists() for path in write(result, tmp_path))
    model = TARGET.model(PROCESS)
    assert run(model, solvers=[spec], out=tmp_path).cells == (ode,)
    assert model.nfe == 0


def test_an_adaptive_method_alone_makes_a_report(tmp_path: Path) -> None:
    result = run(solvers=["dpm-solver-12"])
    assert "dpm-solver-12" in text(result)
    assert {path.name for path in write(result, tmp_path)} == {"table.txt", "steps-vs-quality.png", "report.html"}


def test_names_of_adaptive_methods_are_read_back_and_checked() -> None:
    method = Adaptive("sde", rtol=0.01, control="i")
    assert named(method.label) == method
    assert named("sde").label == "sde"
    for spec, message in {
        "sde(rtol=-1)": "rtol=-1 is not a number from 0",
        "sde(rtoll=1)": "did you mean 'rtol'",
        "sde(control='p')": "control='p' is not one of",
    }.items():
        with pytest.raises(ValueError, match=message):
            named(spec)
    with pytest.raises(ValueError, match="unknown method 'sdee'"):
        Adaptive("sdee")


def test_a_method_that_does_not_arrive_is_a_note() -> None:
    cell = run(solvers=["dpm-solver-12(rtol=1e-12, atol=0)"]).cells[0]
    assert cell.note.startswith("failed: ValueError: rtol=1e-12, atol=0")
    assert not cell.metrics


# -- functions ------------------------------------------------------------------------------------


def ddim(model: Any, start: torch.Tensor, nfe: int) -> torch.Tensor:
    return sk.sample(model, start.shape, solver="ddim", nfe=nfe, start=start).x


def test_a_function_starts_where_the_solvers_do() -> None:
    named_, called = run(solvers=["ddim", Function("mine", ddim)], nfe=[5], batch_size=10).cells
    assert (called.solver, called.grid, called.nfe, called.evaluations) == ("mine", OWN, 5, 5.0)
    assert called.metrics == named_.metrics
    assert run(solvers=[ddim]).cells[0].metrics == run(solvers=["ddim"]).cells[0].metrics


def test_a_function_that_takes_other_evaluations_is_found_out() -> None:
    def twice(model: Any, start: torch.Tensor, nfe: int) -> torch.Tensor:
        return ddim(model, start, 2 * nfe)

    cell = run(solvers=[twice]).cells[0]
    assert (cell.nfe, cell.evaluations) == (5, 10.0)


def test_a_function_that_fails_costs_its_cell() -> None:
    def broken(model: Any, start: torch.Tensor, nfe: int) -> torch.Tensor:
        raise RuntimeError("no such scheduler")

    def flat(model: Any, start: torch.Tensor, nfe: int) -> torch.Tensor:
        return start.flatten()

    cells = run(solvers=[broken, flat, "ddim"]).cells
    notes = {cell.solver: cell.note for cell in cells}
    assert notes["broken"] == "failed: RuntimeError: no such scheduler"
    assert "returned [64] for a start of shape [32, 2]" in notes["flat"]
    assert notes["ddim"] == ""


def test_another_function_of_one_name_is_another_cell(tmp_path: Path) -> None:
    for factor in (1, 2):
        run(solvers=[Function("f", lambda model, start, nfe, k=factor: k * start)], out=tmp_path)
    one, two = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert one["metrics"] != two["metrics"]


def test_two_functions_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two different ones are called 'f'"):
        run(solvers=[Function("f", ddim), Function("f", lambda model, start, nfe: start)])


# -- seeds ----------------------------------------------------------------------------------------


def test_seeds_are_cells_of_their_own_and_their_means_are_shown() -> None:
    several = run(seed=[3, 4, 4], solvers=["ddim", "ddpm"])
    alone = [run(seed=seed, solvers=["ddim", "ddpm"]).cells for seed in (3, 4)]
    assert [(cell.solver, cell.seed) for cell in several.cells] == [(s, n) for s in ("ddim", "ddpm") for n in (3, 4)]
    for i, solver in enumerate(("ddim", "ddpm")):
        cells = [cells[i] for cells in alone]
        assert [cell.metrics for cell in several.cells if cell.solver == solver] == [cell.metrics for cell in cells]
        mean = over_seeds([cell for cell in several.cells if cell.solver == solver])[0]
        assert mean.metrics["energy"] == pytest.approx(sum(cell.metrics["energy"] for cell in cells) / 2)
    assert "means over seeds 3, 4" in text(several)
    with pytest.raises(ValueError, match="seed: none given"):
        run(seed=[])
    with pytest.raises(ValueError, match="seed=-1"):
        run(seed=[0, -1])


def test_more_seeds_leave_a_smaller_error() -> None:
    """The samples' part of the error of a mean over S seeds falls with √S, the data's part stays."""
    from sdekit.jackknife import standard_error

    data = TARGET.sample(600, seed=5)  # so many that their part is small

    def error(seeds: list[int]) -> float:
        cells = run(reference=data, real=data[:100], samples=24, seed=seeds, solvers=["ddpm"], nfe=[5]).cells
        (mean,) = over_seeds(list(cells))
        return standard_error(mean.jackknife["energy"])

    assert error(list(range(6))) < 0.7 * error([0])


# -- conditions -----------------------------------------------------------------------------------

MEANS = torch.tensor([-2.0, 0.0, 2.0])


def labelled() -> sk.ScoreModel:
    """Data N(mean of the label, 1) in one dimension."""

    def net(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        assert len(label) == len(x)
        alpha, sigma = PROCESS.alpha(t)[:, None], PROCESS.sigma(t)[:, None]
        return sigma * (x - alpha * MEANS.to(x)[label][:, None])

    return sk.ScoreModel(net, PROCESS)


def test_conditions_follow_their_samples_through_every_kind_of_row(tmp_path: Path) -> None:
    label = torch.arange(30) % 3
    data = MEANS[torch.arange(60) % 3][:, None] + torch.randn(60, 1, generator=torch.Generator().manual_seed(0))

    def function(model: Any, start: torch.Tensor, nfe: int, label: torch.Tensor) -> torch.Tensor:
        return sk.sample(model, start.shape, solver="ddim", nfe=nfe, start=start, label=label).x

    options: dict[str, Any] = {"solvers": ["ddim", "dpm-solver-23", function], "samples": 30, "real": data[:30]}
    found = compare(labelled(), data[30:], nfe=[5], label=label, out=tmp_path, **options)
    batched = compare(labelled(), data[30:], nfe=[5], label=label.tolist(), batch_size=7, **options)
    for one, other in zip(found.cells, batched.cells):
        assert one.metrics == pytest.approx(other.metrics, rel=1e-4)
    x = sk.sample(labelled(), (30, 1), solver="ddim", nfe=5, seed=0, label=label).x
    assert found.cells[0].metrics["energy"] == pytest.approx(energy_distance(x, data[30:]).item(), rel=1e-5)
    start = normal(0, 0, torch.arange(30), (1,), torch.float64)
    assert not torch.equal(start[label == 0].mean(), start[label == 2].mean())
    again = compare(labelled(), data[30:], nfe=[5], label=label.flip(0), out=tmp_path, **options)
    assert again.cells[0].key != found.cells[0].key


def test_a_misspelt_condition_is_named() -> None:
    with pytest.raises(ValueError, match=r"'labell'.*did you mean 'label'"):
        compare(labelled(), torch.zeros(8, 1), solvers=["ddim"], samples=8, labell=[0] * 8)


# -- memory ---------------------------------------------------------------------------------------


def test_a_cell_that_runs_out_of_memory_costs_itself_and_is_tried_again(tmp_path: Path) -> None:
    class Hungry(torch.nn.Module):
        limit = 6

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            self.calls = getattr(self, "calls", 0) + 1
            if len(x) > self.limit:
                raise MemoryError(f"{len(x)} samples")
            return 0.3 * x

    def model() -> sk.ScoreModel:
        return sk.ScoreModel(Hungry(), PROCESS)

    full = run(model(), solvers=["ddpm"], out=tmp_path)
    assert full.cells[0].note == "out of memory: MemoryError: 32 samples"
    enough = run(model(), solvers=["ddpm"], out=tmp_path, batch_size=6)
    assert enough.cells[0].metrics == run(model(), solvers=["ddpm"], batch_size=6).cells[0].metrics
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2
    assert run(model(), solvers=["ddpm"], out=tmp_path).cells == enough.cells


# -- what it costs --------------------------------------------------------------------------------


def test_seconds_are_parted_into_the_networks_and_the_solvers() -> None:
    class Slow(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            time.sleep(0.02)
            return 0.3 * x

    model = sk.ScoreModel(Slow(), PROCESS)
    cell = run(model, solvers=["ddpm"], nfe=[5], batch_size=16).cells[0]
    assert model.nfe == 2 * 5
    # two batches of five calls; what a busy machine adds to a sleep it may add to either
    assert cell.network_seconds >= 2 * 5 * 0.02
    assert cell.seconds >= 2 * 5 * 0.02
    assert cell.peak_memory is None
