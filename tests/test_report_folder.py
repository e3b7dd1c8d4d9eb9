"""A page and exports from the records of a folder: what they hold, and which records count."""

# ruff: noqa: F401, F811, fixtures are imported and then named
from __future__ import annotations

import csv
import io
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import pstdev
from urllib.parse import unquote

import pytest
import torch
from report_pages import Page, folder, group, near, page, result, truth
from typer.testing import CliRunner

import sdekit as sk
from sdekit import cli, report
from sdekit.comparison import Cell, Comparison, Interrupted
from sdekit.targets import Gaussian

# -- from the records again -------------------------------------------------------------------------


def test_rebuilt_it_is_the_same(page: Page, folder: Path, result: Comparison) -> None:
    done = CliRunner().invoke(cli.app, ["report", str(folder)])
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{folder / 'report.html'}\n"
    again = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert again.tables == page.tables
    assert again.charts == page.charts
    assert "sdekit compare --nfe 2,4,8" in again.text
    (found,) = report.read(folder)
    assert report.text(found) == report.text(result)
    assert set(found.samples) == set(result.samples)
    assert torch.equal(found.real, result.real)


@pytest.fixture
def copy(folder: Path, result: Comparison, page: Page, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def rewrite(folder: Path, *cells: Cell) -> None:
    (folder / "results.jsonl").write_text("".join(cell.to_json() + "\n" for cell in cells), encoding="utf-8")


def test_records_alone_are_enough(copy: Path, result: Comparison) -> None:
    for path in (copy / "tensors").glob("about-*"):
        path.unlink()
    (found,) = report.read(copy)
    assert [cell.key for cell in found.cells] == [cell.key for cell in result.cells]
    assert found.floor == pytest.approx(dict(result.floor))
    assert Page(report.rebuild(copy).read_text(encoding="utf-8")).all("img") == []


def test_what_ran_out_of_memory_is_in_a_page_made_anew(copy: Path, result: Comparison) -> None:
    lost = replace(
        result.cells[0], solver="greedy", metrics={}, jackknife={}, note="out of memory: by 3 GiB", key="oom"
    )
    rewrite(copy, *result.cells, *(replace(lost, seed=seed, key=f"oom{seed}") for seed in (0, 1)))
    found = Page(report.rebuild(copy).read_text(encoding="utf-8"))
    assert "greedy: out of memory: by 3 GiB (NFE 2, logsnr)" in found.text
    assert "by_hand: failed: ValueError: two are too few" in found.text


def test_paths_density_and_score_are_in_the_page_and_in_one_made_anew(copy: Path, result: Comparison) -> None:
    law = Gaussian(torch.tensor([1.0, -0.5]), torch.diag(torch.tensor([1.0, 0.05])))
    model = law.model(sk.VP())
    report.write(result, copy, origin=report.Origin(model, law))
    assert model.nfe == 0
    first = Page((copy / "report.html").read_text(encoding="utf-8"))
    alts = [one["alt"] for one in first.all("img")]
    assert [alt.split(" ")[0] for alt in alts] == ["Samples", "Step", "Paths", "The"]
    assert "ddim, ddpm, dpm-solver-3 at NFE 4, grid logsnr" in alts[1]
    report.write(result, copy)  # without the model: what was drawn before stays
    again = Page(report.rebuild(copy).read_text(encoding="utf-8"))
    assert [one["src"] for one in again.all("img")][1:] == [one["src"] for one in first.all("img")][1:]
    report.write(result, copy, origin=report.Origin(model))
    assert len(Page((copy / "report.html").read_text(encoding="utf-8")).all("img")) == 2


def test_runs_of_one_folder_stand_apart_the_last_first(copy: Path, result: Comparison) -> None:
    others = [replace(cell, target="another", key="x" + cell.key) for cell in result.cells]
    rewrite(copy, *result.cells, *others)
    assert [found.cells[0].target for found in report.read(copy)] == ["another", result.cells[0].target]
    assert len(Page(report.rebuild(copy).read_text(encoding="utf-8")).all("section")) == 2


def test_of_a_cell_computed_again_the_last_counts(copy: Path, result: Comparison) -> None:
    again = replace(result.cells[0], key="later", metrics={"energy": 123.0}, jackknife={})
    rewrite(copy, *result.cells, again)
    (found,) = report.read(copy)
    assert len(found.cells) == len(result.cells)
    assert [cell.key for cell in found.cells if cell.metrics.get("energy") == 123.0] == ["later"]


def test_seeds_that_only_some_rows_have_are_left_out_and_said(copy: Path, result: Comparison) -> None:
    rewrite(copy, *[cell for cell in result.cells if cell.seed == 0 or cell.solver == "ddim"])
    (found,) = report.read(copy)
    assert {cell.seed for cell in found.cells} == {0}
    assert len(found.cells) == len(result.cells) / 2
    assert "not every row has them: seeds 1." in report.rebuild(copy).read_text(encoding="utf-8")
    rewrite(copy, *[cell for cell in result.cells if (cell.seed == 0) == (cell.solver == "ddim")])
    (found,) = report.read(copy)
    assert {cell.seed for cell in found.cells} == {0, 1}  # none is in all rows


def test_a_folder_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"folder=.*it has no results.jsonl"):
        report.rebuild(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no record"):
        report.read(tmp_path)
    done = CliRunner().invoke(cli.app, ["report", str(tmp_path / "none")])
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1


def test_an_interrupted_run_has_its_page(result: Comparison, tmp_path: Path) -> None:
    part = Interrupted(replace(result, cells=result.cells[:3])).result
    assert report.write(part, tmp_path)[-1].name == "report.html"


# -- exports ----------------------------------------------------------------------------------------


def test_csv_is_exact(result: Comparison, page: Page) -> None:
    text = report.csv(result)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == len(result.cells)
    for row, cell in zip(rows, result.cells):
        assert (row["solver"], row["grid"], int(row["nfe"]), int(row["seed"])) == (
            cell.solver, cell.grid, cell.nfe, cell.seed,
        )  # fmt: skip
        for metric, value in cell.metrics.items():
            assert float(row[metric]) == value
            assert float(row[f"{metric}_stderr"]) == pytest.approx(3 * pstdev(cell.jackknife[metric]))
        assert row["note"] == cell.note
        assert not cell.note or row["energy"] == ""
    (link,) = (one for one in page.all("a") if "download" in one)
    assert unquote(link["href"]).split(",", 1)[1] == text


def test_the_frame_has_the_columns_of_the_csv(result: Comparison) -> None:
    pytest.importorskip("pandas")
    found = report.frame(result)
    assert list(found.columns) == report.csv(result).splitlines()[0].split(",")
    assert found["energy"].dtype == float
    kept = found[(found.solver == "ddim") & (found.grid == "time") & (found.nfe == 8)]
    assert kept["energy"].mean() == pytest.approx(truth(group(result, "ddim", "time", 8), "energy")[0])
    assert math.isnan(found[found.note != ""]["energy"].iloc[0])


def test_latex_has_the_table(result: Comparison) -> None:
    text = report.latex(result, ["energy"])
    assert all(text.count(rule) == 1 for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{llrrr}"))
    lines = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(lines) == 7  # three solvers on two grids, and the function
    for line in lines:
        name, grid, *entries = line.removesuffix(r" \\").split(" & ")
        for nfe, entry in zip((2, 4, 8), entries):
            if entry != "--":
                plain = re.sub(r"\$|\\mathbf\{([^}]*)\}", r"\1", entry).replace(r"\pm", "±")
                assert near(
                    plain,
                    group(result, name.removesuffix(r" \textasciitilde{}").replace("\\", ""), grid, nfe),
                    "energy",
                )
    assert report.latex(result).count(r"\begin{table}") == len({m for c in result.cells for m in c.metrics})
    with pytest.raises(ValueError, match="'fid' was not measured"):
        report.latex(result, ["fid"])


def test_latex_marks_and_escapes() -> None:
    def cell(solver: str, value: float) -> Cell:
        rest = {"energy": [value] * 10}
        return Cell("a_b & 50%", "VP()", solver, "x^2#{}", 5, 40, 0, metrics={"energy": value}, jackknife=rest)

    text = report.latex(Comparison((cell("ddim_$", 2e-7), cell("b\\c", 1.0)), {}, {}, {}, torch.zeros(1)))
    assert r"a\_b \& 50\%" in text
    assert r"ddim\_\$ & $\mathbf{2.00 \cdot 10^{-7}} \pm 0$" in text
    assert r"b\textbackslash{}c & $1.00 \pm 0$" in text
