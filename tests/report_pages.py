"""A comparison of every kind of row, its page as a parser reads it, and its values worked out anew."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from statistics import pstdev

import pytest
import torch

import sdekit as sk
from sdekit import report
from sdekit.comparison import Cell, Comparison, compare
from sdekit.targets import Gaussian

VOID = {"meta", "img", "input", "br"}


@dataclass
class Page(HTMLParser):
    """What a browser would make of it: elements, tables, and the text of scripts and styles."""

    source: str
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    raw: dict[str, list[str]] = field(default_factory=lambda: {"script": [], "style": []})
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(self.source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self._rows, self._caption = [], ""
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")
        if tag in self.raw:
            self.raw[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "table":
            self.tables.setdefault(self._caption, self._rows)  # of several runs the first's

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside in self.raw:
            self.raw[inside][-1] += data
        elif inside == "caption":
            self._caption += data
        elif inside in ("td", "th"):
            self._rows[-1][-1] += data
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def data(self) -> dict:
        return json.loads(self.raw["script"][0])

    @property
    def charts(self) -> list[dict]:
        """As page.js makes them of what the page holds."""
        names, lines, found = ("x", "y", "yMin", "yMax", "value", "about"), list[list](), list[dict]()
        for chart in self.data["charts"]:
            lines = chart.get("lines", lines)
            sets = []
            for i, (line, points) in enumerate(lines):
                data = [dict(zip(names, point)) for point in points]
                for j, point in enumerate(data):
                    point["about"] = self.data["abouts"][point["about"]]
                    point["x"] = chart["x"][i][j] if "x" in chart else point["x"]
                sets.append({**self.data["lines"][line], "data": data})
            found.append({**chart, "data": {"datasets": sets}})
        return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


def by_hand(model: sk.ScoreModel, x: torch.Tensor, nfe: int) -> torch.Tensor:
    """Euler's method in x/α over σ/α, that fails for two evaluations."""
    if nfe == 2:
        raise ValueError("two are too few")
    process = model.process
    times = [process.t_max + (process.t_min - process.t_max) * i / nfe for i in range(nfe + 1)]
    for s, t in zip(times, times[1:]):
        x = x + (t - s) * model.flow(x, s)
    return x


@pytest.fixture(scope="module")
def result(folder: Path) -> Comparison:
    """Two seeds, two grids, noise, an adaptive method, a function that fails once."""
    target = Gaussian(torch.tensor([1.0, -0.5]), torch.diag(torch.tensor([1.0, 0.05])))
    return compare(
        target.model(sk.VP()), target.sample(200, seed=1),
        solvers=["ddim", "ddpm", "dpm-solver-3", "dpm-solver-12", by_hand],
        nfe=[2, 4, 8], grid=["logsnr", "time"], samples=40, real=target.sample(200, seed=2), seed=[0, 1], out=folder,
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(result: Comparison, folder: Path) -> Page:
    paths = report.write(result, folder, "sdekit compare --nfe 2,4,8")
    assert paths[-1] == folder / "report.html"
    return Page(paths[-1].read_text(encoding="utf-8"))


def group(result: Comparison, solver: str, grid: str, nfe: int) -> list[Cell]:
    return [cell for cell in result.cells if (cell.solver, cell.grid, cell.nfe) == (solver, grid, nfe)]


def truth(cells: list[Cell], metric: str) -> tuple[float, float]:
    """The mean over seeds and half of its interval, worked out here."""
    value = sum(cell.metrics[metric] for cell in cells) / len(cells)
    rest = [sum(values) / len(cells) for values in zip(*(cell.jackknife[metric] for cell in cells))]
    return value, 2.2622 * 3 * pstdev(rest)  # (G − 1)/G Σ (θ − mean)² = 9 var


def near(entry: str, cells: list[Cell], metric: str) -> bool:
    value, half = map(float, entry.rstrip("*=").split(" ± "))
    return (value, half) == (
        pytest.approx(truth(cells, metric)[0], rel=0.006),
        pytest.approx(truth(cells, metric)[1], rel=0.06),
    )
