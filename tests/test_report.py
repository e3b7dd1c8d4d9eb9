"""Tables hold the numbers, in order, marked and aligned; pictures hold the points and the images."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console

from sdekit import report
from sdekit.comparison import Cell, Comparison
from sdekit.metrics import METRICS
from sdekit.report import pictures

VALUES = {  # solver: RMSE at NFE 5, 10, 20
    "ddim": (0.4, 0.2, 0.1),
    "heun": (8.0, 0.3, 0.05),
    "dpmpp-2m": (0.3, 0.1, 0.02),
}
NFE = (5, 10, 20)


def cell(solver: str, nfe: int, value: float, **changes) -> Cell:
    metrics = {"rmse": value, "energy": 10 * value}
    one = Cell("toy", "VP()", solver, "logsnr", nfe, 8, 0, metrics=metrics, key=f"{solver}{nfe}")
    one = replace(one, **changes)
    return replace(one, jackknife={metric: [value] * 10 for metric, value in one.metrics.items()})  # no error


def comparison(*more: Cell) -> Comparison:
    cells = [cell(solver, n, value) for solver, values in VALUES.items() for n, value in zip(NFE, values)]
    cells += [cell("ddpm", n, 0.05, stochastic=True, metrics={"energy": 0.9}) for n in NFE]
    images = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8).repeat(10, 1, 1, 1)
    samples = {one.key: images for one in cells}
    return Comparison((*cells, *more), {"rmse": 1e-6, "energy": 0.15}, {"energy": 0.02}, samples, images)


def rows(text: str, title: str) -> list[list[str]]:
    """The words of each line of the table under the title that starts so."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(title))
    end = next((i for i in range(start, len(lines)) if not lines[i].strip()), len(lines))
    return [line.split() for line in lines[start + 1 : end]]


def test_the_table_has_every_number_sorted_with_the_best_of_each_column_marked() -> None:
    table = rows(report.text(comparison()), METRICS["rmse"].label)
    assert table == [
        ["solver", "NFE", "5", "NFE", "10", "NFE", "20"],
        ["dpmpp-2m", "0.300*", "0.100*", "0.0200*"],
        ["ddim", "0.400", "0.200", "0.1000"],
        ["heun", "8.000", "0.300", "0.0500"],
    ]


def test_solvers_that_draw_noise_are_marked_and_have_no_rmse() -> None:
    text = report.text(comparison())
    assert "ddpm" not in [row[0] for row in rows(text, METRICS["rmse"].label)]
    assert ["ddpm", "~", "0.900*", "0.900*", "0.900"] in rows(text, METRICS["energy"].label)


def test_the_floor_is_a_row_and_stands_in_the_title_with_its_spread() -> None:
    text = report.text(comparison())
    assert rows(text, METRICS["energy"].label)[-1][0] == "floor"
    assert float(rows(text, METRICS["energy"].label)[-1][1]) == pytest.approx(0.15, abs=0.006)
    assert "(floor 0.15 ± 0.02: data against data)" in text
    assert "(floor 1e-06: the endpoint's own error)" in text


def test_numbers_are_aligned() -> None:
    lines = report.text(comparison()).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(METRICS["rmse"].label))
    points = [[i for i, letter in enumerate(line) if letter == "."] for line in lines[start + 2 : start + 5]]
    assert points[0] == points[1] == points[2]


def test_a_missing_cell_says_why_and_ranks_last() -> None:
    text = report.text(comparison(cell("unipc-2", 5, 0.0, metrics={}, note="nfe=5: 'unipc-2' needs 6")))
    table = rows(text, METRICS["rmse"].label)
    assert table[-1] == ["unipc-2", "n/a", "…", "…"]
    assert "n/a: unipc-2: nfe=5: a solver needs 6 (NFE 5, logsnr)" in text


def test_several_grids_are_a_column() -> None:
    table = rows(report.text(comparison(cell("ddim", 5, 0.01, grid="karras"))), METRICS["rmse"].label)
    assert table[0][:2] == ["solver", "grid"]
    assert ["ddim", "karras", "0.0100*", "…", "…"] in table


def test_plain_text_where_there_is_no_terminal_and_colour_where_there_is() -> None:
    for terminal in (False, True):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=60, color_system="standard")
        report.show(comparison(), console)
        shown = console.file.getvalue()
        assert ("\x1b[" in shown) == terminal
        assert "0.0200*" in shown


def test_nothing_finished_is_said() -> None:
    assert report.text(Comparison((), {}, {}, {}, torch.zeros(2, 2))) == "no cell was finished\n"


def test_panels_hold_the_points() -> None:
    panel = Figure().subplots()
    pictures._panel(panel, comparison(), "rmse", "logsnr")
    drawn = {line.get_label(): [tuple(point) for point in line.get_xydata()] for line in panel.get_lines()}
    assert drawn == {solver: list(zip(NFE, values)) for solver, values in VALUES.items()}  # the floor is far below
    assert [label.get_text() for label in panel.get_xticklabels()] == ["5", "10", "20"]
    assert (panel.get_xscale(), panel.get_yscale()) == ("log", "log")


def test_panels_draw_the_floor_and_dash_what_draws_noise() -> None:
    panel = Figure().subplots()
    pictures._panel(panel, comparison(), "energy", "logsnr")
    styles = {str(line.get_label()): line.get_linestyle() for line in panel.get_lines()}
    assert styles == {
        "ddim": "-",
        "heun": "-",
        "dpmpp-2m": "-",
        "ddpm (draws noise)": "--",
        "floor (± its spread)": ":",
    }
    floor = panel.get_lines()[-1].get_ydata()
    assert list(floor) == [0.15, 0.15]
    assert panel.get_ylim()[0] < 0.15


def test_panels_of_several_grids_show_all_that_was_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The second grid has one value, far below the others'."""
    figures: list[Figure] = []
    monkeypatch.setattr(pictures, "Figure", lambda **options: figures.append(Figure(**options)) or figures[-1])
    cells = [cell("ddim", n, value) for n, value in zip(NFE, VALUES["ddim"])]
    given = cell("ddim", 10, 0.05, grid="10 times 1 … 0.001 #ab12")
    assert report.picture(Comparison((*cells, given), {}, {}, {}, torch.zeros(1)), tmp_path / "x.png")
    for panel in figures[0].axes:
        scale = 10 if "energy" in panel.get_title() else 1
        assert panel.get_ylim()[0] < 0.05 * scale < 0.4 * scale < panel.get_ylim()[1]
        assert panel.get_xlim()[0] < 5 < 20 < panel.get_xlim()[1]


def test_every_solver_looks_different() -> None:
    colours, markers = pictures._COLOURS, pictures._MARKERS
    looks = {(colours[i % len(colours)], markers[i % len(markers)]) for i in range(14)}
    assert len(looks) == 14


def test_a_mosaic_is_the_images_side_by_side() -> None:
    panel = Figure().subplots()
    x = torch.rand(3, 1, 4, 5) * 2 - 1
    pictures._mosaic(panel, x, x)
    shown = torch.as_tensor(panel.get_images()[0].get_array())
    assert shown.shape == (6, 21, 3)
    for i in range(3):
        tile = shown[1:5, 7 * i + 1 : 7 * i + 6, 0]
        assert torch.allclose(tile, ((x[i, 0] + 1) / 2).to(tile.dtype), atol=1e-6)


@pytest.mark.parametrize("event", [(1, 8, 8), (3, 4, 6), (2,), (1,)])
def test_write_makes_every_file(tmp_path: Path, event: tuple[int, ...]) -> None:
    result = comparison(cell("unipc-2", 5, 0.0, metrics={}, note="too few"))
    data = torch.rand(10, *event)
    result = Comparison(result.cells, result.floor, result.spread, dict.fromkeys(result.samples, data), data)
    paths = report.write(result, tmp_path)
    assert [path.name for path in paths] == ["table.txt", "steps-vs-quality.png", "samples.png", "report.html"]
    assert paths[0].read_text(encoding="utf-8") == report.text(result)
    for path in paths[1:3]:
        assert matplotlib.image.imread(path).std() > 0.01  # not blank


def test_nothing_measured_makes_no_picture(tmp_path: Path) -> None:
    empty = Comparison((), {}, {}, {}, torch.zeros(2, 2))
    assert [path.name for path in report.write(empty, tmp_path)] == ["table.txt"]


def test_the_registry_table_has_every_solver() -> None:
    from sdekit import solvers

    console = Console(file=io.StringIO())
    report.show_solvers(console)
    shown = [line.split()[0] for line in console.file.getvalue().splitlines()[1:]]
    assert shown == solvers.names()
