"""The page holds the numbers of the records, loads nothing, and trusts no name."""

# ruff: noqa: F401, F811, fixtures are imported and then named
from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
import torch
from report_pages import Page, folder, group, near, page, result, truth

from sdekit import report
from sdekit.comparison import Cell, Comparison
from sdekit.metrics import METRICS
from sdekit.ranking import leaderboard
from sdekit.report.charts import look

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!-- <script ",
    '"><img src=x onerror=alert(2)>',
    "<!--",
    "a & b ' \" &lt;",
)


# -- the numbers ------------------------------------------------------------------------------------


def test_every_value_and_interval_is_that_of_the_records(page: Page, result: Comparison) -> None:
    checked = 0
    for metric in ("rmse", "energy", "sliced_wasserstein", "frechet"):
        head, *rows = page.tables[METRICS[metric].label]
        assert head == ["solver", "grid", "NFE 2", "NFE 4", "NFE 8"]
        for name, grid, *entries in rows:
            for nfe, entry in zip((2, 4, 8), entries):
                cells = group(result, name.removesuffix(" ~"), grid, nfe)
                assert len(cells) == 2
                if entry == "n/a":
                    assert all(cell.note for cell in cells)
                else:
                    assert near(entry, cells, metric), entry
                    checked += 1
        assert ("ddpm ~" in [row[0] for row in rows]) == (metric != "rmse")
    assert checked == 4 * (3 * 2 * 3 + 2) - 2 * 3  # three solvers on two grids, the function twice; ddpm has no rmse


def test_pictures_hold_the_points_with_their_intervals(page: Page, result: Comparison) -> None:
    titles = {chart["title"] for chart in page.charts}
    assert len(page.charts) == len(titles) == 2 * len({name for cell in result.cells for name in cell.metrics})
    for cost in ("network evaluations of a sample", "seconds for 40 samples"):
        (chart,) = (c for c in page.charts if c["title"] == f"{METRICS['energy'].label} against {cost}")
        lines = {(line.get("solver"), line.get("grid")): line for line in chart["data"]["datasets"]}
        assert set(lines) - {(None, None)} == {(cell.solver, cell.grid) for cell in result.cells}
        for nfe, point in zip((2, 4, 8), lines["ddim", "time"]["data"]):
            cells = group(result, "ddim", "time", nfe)
            value, half = truth(cells, "energy")
            assert point["y"] == pytest.approx(value, rel=1e-5)
            assert point["yMax"] - point["y"] == pytest.approx(half, rel=0.06)
            wanted = float(nfe) if cost.startswith("network") else sum(cell.seconds for cell in cells) / 2
            assert point["x"] == pytest.approx(wanted, rel=1e-5)
            assert point["value"] in page.text


def test_the_leaderboard_has_the_ranks_with_ties(page: Page, result: Comparison) -> None:
    for metric in METRICS:
        if not any(metric in cell.metrics for cell in result.cells):
            continue
        for nfe, places in leaderboard(result, metric).items():
            head = ["rank", "solver", "grid", "value", "floor"]
            source = page.source
            at = source.index(f'id="run-0-{metric}-values"')
            found = Page(re.findall(rf"<table><caption>NFE {nfe}</caption>.*?</table>", source[at:])[0]).tables
            assert found[f"NFE {nfe}"][0] == head
            for row, place in zip(found[f"NFE {nfe}"][1:], places):
                tie = f"{place.first}–{place.last} (tie)" if place.first < place.last else str(place.first)
                assert row[:3] == [tie, place.cell.solver + " ~" * place.cell.stochastic, place.cell.grid]
                assert near(row[3], group(result, place.cell.solver, place.cell.grid, nfe), metric)
                assert row[4] == "at the floor" * place.at_floor


def test_evaluations_to_reach_and_costs_are_there(page: Page, result: Comparison) -> None:
    (caption,) = (one for one in page.tables if one.startswith(METRICS["rmse"].label + " of "))
    best = min(truth(group(result, *row, 4), "rmse")[0] for row in (("ddim", "time"), ("ddim", "logsnr")))
    others = [truth(group(result, "dpm-solver-3", grid, 4), "rmse")[0] for grid in ("time", "logsnr")]
    others.append(truth(group(result, "by_hand", "its own", 4), "rmse")[0])
    assert float(caption.split(" of ")[-1].split(",")[0]) == pytest.approx(min(best, *others), rel=0.006)
    assert caption.endswith("the best at NFE 4")
    assert page.tables[caption][1][:3] == ["by_hand", "its own", "≤ 4"]  # its fewest: at 2 it fails
    (costs,) = (rows for caption, rows in page.tables.items() if caption.startswith("Seconds of wall time"))
    row = next(row for row in costs if row[:3] == ["ddim", "time", "8"])
    cells = group(result, "ddim", "time", 8)
    assert float(row[5]) == pytest.approx(sum(cell.seconds for cell in cells) / 2, rel=0.006)


def test_it_says_what_is_missing_and_how_to_make_it_again(page: Page, result: Comparison) -> None:
    assert "by_hand: failed: ValueError: two are too few (NFE 2, its own)" in page.text
    assert "sdekit compare --nfe 2,4,8" in page.text
    cell = result.cells[0]
    for fact in (*cell.versions.values(), cell.network, cell.data, "0; 1"):
        assert fact in page.text
    assert "adaptive" in page.text.lower()
    bare = Page(report.html(result))
    assert "nfe=[2, 4, 8]" in bare.text
    assert "seed=[0, 1]" in bare.text


# -- one file, that trusts nothing ------------------------------------------------------------------


def test_it_loads_nothing(page: Page) -> None:
    ids = {attributes.get("id") for _, attributes in page.tags}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "action", "poster", "data", "srcset", "background"):
                assert value.startswith("data:") or (value[0] == "#" and value[1:] in ids), (tag, name, value[:60])
            assert not name.startswith("on")
        assert tag not in ("link", "iframe", "object", "embed", "base")
    assert not re.search(r"url\(|@import", "".join(page.raw["style"]))
    assert not any("sourceMappingURL" in script for script in page.raw["script"])
    (policy,) = (one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    digests = [hashlib.sha256(script.encode()).digest() for script in page.raw["script"][1:]]
    assert allowed == [base64.b64encode(digest).decode() for digest in digests]
    assert len(page.source) < 1_500_000


def test_hostile_names_are_text() -> None:
    def cell(name: str, nfe: int) -> Cell:
        metrics, rest = {"energy": 1.0 / nfe}, {"energy": [1.0 / nfe] * 10}
        return Cell(
            f"target {name}", f"process {name}", f"solver {name}", f"grid {name}", nfe, 40, 0, metrics=metrics,
            jackknife=rest, seconds=1.0, versions={"torch": name}, device=name, network=name, key=f"{name}{nfe}",
        )  # fmt: skip

    for name in HOSTILE:
        bad = replace(cell(name, 30), metrics={}, jackknife={}, note=f"note {name}", solver=f"failing {name}")
        cells = (cell(name, 5), cell(name, 10), replace(cell(name, 5), solver="other", key="o"), bad)
        found = Page(report.html(Comparison(cells, {}, {}, {}, torch.zeros(1)), command=name, hardware=name))
        assert len(found.all("script")) == 4
        assert "<" not in found.raw["script"][0]
        assert found.all("img") == []
        assert not any(key.startswith("on") for _, attributes in found.tags for key in attributes)
        for what in ("target", "process", "solver", "grid", "note", "failing"):
            assert f"{what} {name}" in found.text
        numbers = {int(one["data-row"]) for one in found.all("tr") if "data-row" in one}
        assert {f"solver {name}", "other"} <= {found.data["rows"][0][i][0] for i in numbers}
        assert any(
            f"solver {name}" == line.get("solver") for chart in found.charts for line in chart["data"]["datasets"]
        )


def test_it_can_be_read_without_seeing_it(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for canvas in page.all("canvas"):
        assert canvas["role"] == "img"
        assert canvas["aria-label"]
        assert canvas["aria-describedby"] in ids
    for attributes in page.all("div"):
        if attributes.get("class") == "scroll":  # so that keys scroll it
            assert attributes["tabindex"] == "0"
            assert attributes["aria-label"]
    assert page.all("html")[0]["lang"] == "en"
    assert all(attributes["alt"] for attributes in page.all("img"))
    assert len(page.all("table")) == len(page.all("caption"))
    assert page.source.count("<label><input ") == len(page.all("input"))
    assert any("viewport" in meta.get("name", "") for meta in page.all("meta"))
    values = {box.get("data-solver") or box.get("data-grid") for box in page.all("input")}
    assert {"ddim", "ddpm", "logsnr", "time"} <= values


def test_the_contact_sheet_is_in_it(page: Page, folder: Path) -> None:
    (image,) = page.all("img")
    assert base64.b64decode(image["src"].split(",")[1]) == (folder / "samples.png").read_bytes()


def test_nothing_finished_makes_no_page(tmp_path: Path) -> None:
    empty = Comparison((), {}, {}, {}, torch.zeros(2, 2))
    assert [path.name for path in report.write(empty, tmp_path)] == ["table.txt"]
    with pytest.raises(ValueError, match="no cell was finished"):
        report.html(empty)


def test_what_is_below_0_is_in_the_tables_and_said_to_be() -> None:
    """An unbiased distance may be."""
    cells = [
        Cell("toy", "VP()", "ddim", "auto", n, 40, 0, metrics={"kernel": v}, key=str(n))
        for n, v in ((5, 0.5), (10, -0.0123))
    ]
    found = Page(report.html(Comparison(tuple(cells), {}, {}, {}, torch.zeros(1))))
    assert found.tables[METRICS["kernel"].label][1] == ["ddim", "0.500", "-0.0123"]
    (chart,) = found.charts  # no seconds are known
    assert [point["y"] for point in chart["data"]["datasets"][0]["data"]] == [0.5]
    assert "no place on a logarithmic axis" in found.text


def test_rows_of_one_colour_have_other_points() -> None:
    cells = [Cell("t", "p", f"s{i}", f"g{j}", 5, 8, 0) for i in range(16) for j in range(4)]
    looks = {look(Comparison(tuple(cells), {}, {}, {}, torch.zeros(1)), c.solver, c.grid) for c in cells}
    assert len(looks) == 64


# -- in a browser -----------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = """<script>
const shown = (row) => !row.hidden;
const numbered = (solver) => page.rows[0].flatMap(([name], i) => (name === solver ? [`tr[data-row="${i}"]`] : []));
const rows = (solver = "ddim") => [...document.querySelectorAll(numbered(solver))].filter(shown).length;
const lines = () => drawn[0].chart.data.datasets.filter((line) => !line.hidden).map((line) => line.label);
const before = [rows(), lines()];
document.querySelector("input[data-solver=ddim]").click();
const after = [rows(), lines()];
document.querySelector("input[data-family=dpm-solver]").click();
const family = [rows("dpm-solver-3"), rows("by_hand"), lines()];
const item = { raw: drawn[0].chart.data.datasets[0].data[0], dataset: drawn[0].chart.data.datasets[0] };
const hover = drawn[0].chart.options.plugins.tooltip.callbacks.label(item);
const wide = document.documentElement.scrollWidth <= innerWidth;
document.title = JSON.stringify({ before, after, family, hover, wide, charts: drawn.length });
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser_it_draws_filters_and_fits_a_phone(page: Page, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    file = tmp_path / "report.html"
    source = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.source)  # for the probe alone
    file.write_text(source.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    command = [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=500,900", "--dump-dom"]
    done = subprocess.run([*command, file.as_uri()], capture_output=True, text=True, timeout=60)
    found = json.loads(unescape(re.findall(r"<title>(.*?)</title>", done.stdout)[0]))
    assert found["charts"] == len(page.charts)
    assert found["before"][0] > 0
    assert found["after"][0] == 0
    assert found["after"][1] == [label for label in found["before"][1] if not label.startswith("ddim")]
    assert {"ddim, time", "ddim, logsnr"} <= set(found["before"][1])
    assert found["family"][0] == 0
    assert found["family"][1] > 0
    assert not [label for label in found["family"][2] if label.startswith("dpm-solver-3")]
    first = page.charts[0]["data"]["datasets"][0]
    assert found["hover"] == [f"{first['label']}: {first['data'][0]['value']}", first["data"][0]["about"]]
    assert found["wide"]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_policy_lets_its_own_scripts_run_and_no_other(page: Page, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    file = tmp_path / "report.html"
    alien = "<script>document.title = 'alien'</script></body>"
    file.write_text(page.source.replace("</body>", alien), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    command = [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "<title>alien" not in done.stdout
    assert re.search(r"<canvas[^>]* width=\"\d+\"", done.stdout)  # drawn
