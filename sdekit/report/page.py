"""A comparison as one HTML file that needs nothing else: no network, no other file.

Pictures are drawn by Chart.js from the specifications of ``charts``, which the page holds with the library. Beside each
stands a table of its values. A policy in the page's head forbids the browser to load anything, or to run other scripts
than those written here.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from html import escape
from importlib import resources
from urllib.parse import quote

from sdekit.comparison import ADAPTIVE, Comparison
from sdekit.door import door
from sdekit.metrics import METRICS
from sdekit.ranking import columned, over_seeds
from sdekit.report.charts import COLOURS, Chart, charts, look, packed, rows_of
from sdekit.report.export import csv
from sdekit.report.families import families
from sdekit.report.numbers import measured
from sdekit.report.pictures import png, sheet
from sdekit.report.reproduce import reproduce
from sdekit.report.tables import heading, missing, title
from sdekit.report.values import adaptive, costs, leaders, reaching, values
from sdekit.report.ways import Drawn

_SCRIPTS = ("chart.umd.min.js", "chartjs-chart-error-bars.umd.min.js", "page.js")
_LICENCES = ("chart.LICENSE", "chartjs-chart-error-bars.LICENSE")
_NOTES = (
    "± is half of the 95% interval, from the jackknife over ten groups of the samples and data: where the metric's mean"
    " lies for as many samples, their bias included.",
    "A rank is one number where every other row is better or worse by more than 3.25 standard errors of the paired"
    " difference, and a range, a tie, where that cannot be said (by chance in 1 of 100 comparisons). Ranks are among"
    " all rows, also those that are filtered out.",
    "~ draws noise. Smaller is better in every metric.",
)


@dataclass(frozen=True)
class About:
    """What a page says that no record does.

    Attributes:
        command: how the comparison was made; the page works a call out from the records where it is empty.
        hardware: the machine that wrote it.
        note: what was left out.
        ways: pictures of how samples come about.
    """

    command: str = ""
    hardware: str = ""
    note: str = ""
    ways: Sequence[Drawn] = ()


@door
def html(result: Comparison, *, command: str = "", hardware: str = "") -> str:
    """The page, as text. Raises ValueError where nothing was finished.

    Args:
        command: how the comparison was made.
        hardware: where.

    >>> import torch
    >>> from sdekit import VP, compare, targets
    >>> target = targets.Gaussian(torch.zeros(2), torch.eye(2))
    >>> result = compare(target.model(VP()), target.sample(64), solvers=["ddim"], nfe=[5], samples=32)
    >>> html(result).lower()[:14]
    '<!doctype html'
    """
    if not result.cells:
        raise ValueError("result: no cell was finished, there is nothing to report")
    return page([(result, About(command, hardware), b"")])


def page(runs: Sequence[tuple[Comparison, About, bytes]]) -> str:
    """One page of several comparisons, each with its contact sheet as PNG; without one it is drawn."""
    drawn: list[Chart] = []
    sections = [_section(result, about, image, f"run-{i}", drawn) for i, (result, about, image) in enumerate(runs)]
    rows = [rows_of(result) for result, *_ in runs]
    names = ", ".join(dict.fromkeys(result.cells[0].target for result, *_ in runs))
    scripts = [_static(name) for name in _SCRIPTS]
    allowed = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(names)}: steps against quality</title>",
            f"<style>{_static('page.css')}</style></head><body>",
            f"<header><h1>Steps against quality: {escape(names)}</h1></header><main>",
            "<noscript><p>Pictures and filters need JavaScript; the tables have every value.</p></noscript>",
            *sections,
            "</main>",
            f'<script type="application/json" id="charts">{_json({**packed(drawn), "rows": rows})}</script>',
            *[f"<script>{script}</script>" for script in scripts],
            *[f"<!-- {_static(name)} -->" for name in _LICENCES],
            "</body></html>\n",
        ]
    )


def _section(result: Comparison, about: About, image: bytes, key: str, drawn: list[Chart]) -> str:
    parts = [f'<section class="run" id="{key}" aria-labelledby="{key}-title">', _opening(result, about, key)]
    names = measured(result.cells)
    mean = replace(result, cells=tuple(over_seeds(result.cells)))  # once, not for each table
    parts += [_filters(result, key), _contents(names, key)]
    parts += [_metric(mean, metric, f"{key}-{metric}", drawn) for metric in names]
    parts += [adaptive(mean, names), reaching(mean, names), costs(mean), _lost(result), _samples(result, image)]
    parts += [_way(drawn) for drawn in about.ways]
    return "\n".join([*parts, reproduce(result, about.command, about.hardware), _notes(result), "</section>"])


def _opening(result: Comparison, about: About, key: str) -> str:
    first, *rest = heading(result).splitlines()
    legend = "* better than every other of its column, = not to be told from the best of its column or from the floor."
    lines = [*rest, legend, *[about.note] * bool(about.note)]
    return f'<h2 id="{key}-title">{escape(first)}</h2>' + "".join(f"<p>{escape(line)}</p>" for line in lines)


def _filters(result: Comparison, key: str) -> str:
    solvers = list(dict.fromkeys(cell.solver for cell in result.cells))
    grids = list(dict.fromkeys(cell.grid for cell in result.cells))
    colours = {solver: look(result, solver, grids[0])[0] % COLOURS for solver in solvers}
    kinds = families(result.cells)
    boxes = [
        _box("solver", solver, f'<span class="swatch c{colours[solver]}"></span>', kinds[solver]) for solver in solvers
    ]
    groups = [("Solvers", boxes)]
    if 1 < len(set(kinds.values())) < len(solvers):
        groups.insert(0, ("Families", [_box("family", kind) for kind in dict.fromkeys(kinds.values())]))
    if len(grids) > 1:
        groups.append(("Grids", [_box("grid", grid) for grid in grids]))
    switches = '<button type="button" data-all="1">all</button><button type="button" data-all="">none</button>'
    sets = [f"<fieldset><legend>{label}</legend>{switches}{''.join(boxes)}</fieldset>" for label, boxes in groups]
    return f'<form class="filters" aria-label="Show" aria-controls="{key}">{"".join(sets)}</form>'


def _contents(names: Sequence[str], key: str) -> str:
    links = "".join(f'<li><a href="#{key}-{name}">{escape(METRICS[name].label)}</a></li>' for name in names)
    return f'<nav aria-label="Metrics"><ul>{links}</ul></nav>'


def _box(kind: str, value: str, swatch: str = "", family: str = "") -> str:
    there = f'type="checkbox" checked autocomplete="off" data-{kind}="{escape(value)}"'
    there += f' data-of="{escape(family)}"' * bool(family)
    return f"<label><input {there}>{swatch}{escape(value)}</label>"


def _metric(result: Comparison, metric: str, key: str, drawn: list[Chart]) -> str:
    figures: list[str] = []
    for chart in charts(result, metric):
        about = escape(f"{chart['title']}. The values are in the table that follows.")
        figures.append(
            f'<figure><div class="plot"><canvas role="img" aria-label="{about}" aria-describedby="{key}-values"'
            f' data-chart="{len(drawn)}"></canvas></div><figcaption>{escape(chart["title"])}</figcaption></figure>'
        )
        drawn.append(chart)
    head = f'<h3 id="{key}">{escape(title(result, metric))}</h3>'
    pictures = f'<div class="pictures">{"".join(figures)}</div>'
    return "\n".join([head, pictures, values(result, metric, f"{key}-values"), leaders(result, metric)])


def _lost(result: Comparison) -> str:
    lines = [line.removeprefix("n/a: ") for line in missing(result.cells) if line]
    listed = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<h3>Not measured</h3><ul>{listed}</ul>" if lines else ""


def _samples(result: Comparison, image: bytes) -> str:
    image = image or _drawn(result)
    if not image:
        return ""
    rows = list(dict.fromkeys(cell.solver for cell in over_seeds(columned(result.cells))))
    about = f"Samples of {', '.join(rows)}, a row each, under real data; a column for each number of evaluations."
    source = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    return (
        f'<h3>Samples</h3><figure class="sheet"><div class="scroll" tabindex="0" role="group" aria-label="Samples">'
        f'<img src="{source}" alt="{escape(about)}"></div>'
        "<figcaption>The same place is the same start.</figcaption></figure>"
    )


def _way(drawn: Drawn) -> str:
    title, about = escape(drawn.title), escape(drawn.about)
    if not drawn.png:
        return f"<h3>{title}</h3><p>{about}</p>"
    image = f'<img src="data:image/png;base64,{base64.b64encode(drawn.png).decode()}" alt="{about}">'
    return (
        f'<h3>{title}</h3><figure class="sheet"><div class="scroll" tabindex="0" role="group" aria-label="{title}">'
        f"{image}</div><figcaption>{about}</figcaption></figure>"
    )


def _drawn(result: Comparison) -> bytes:
    figure = sheet(result)
    return b"" if figure is None else png(figure, 120)


def _notes(result: Comparison) -> str:
    notes = [*_NOTES]
    if any(METRICS[name].paired for name in measured(result.cells)):
        notes.append(
            "Errors to the endpoint are of solvers that draw no noise; a difference within twice the endpoint's own"
            " error counts as none."
        )
    if any(cell.grid == ADAPTIVE for cell in result.cells):
        notes.append("Adaptive methods take what their tolerance asks for: they have no column and no rank.")
    if any(value <= 0 for cell in result.cells for value in cell.metrics.values()):
        notes.append("Values of 0 or below have no place on a logarithmic axis; the tables have them.")
    data = f"data:text/csv;charset=utf-8,{quote(csv(result), safe=',')}"
    link = f'<a download="results.csv" href="{data}">All values as CSV</a>'
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<h3>How to read it</h3><ul>{listed}</ul><p>{link}</p>"


def _json(drawn: Chart) -> str:
    """As the text of a script, in which nothing ends the script."""
    text = json.dumps(drawn, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def _static(name: str) -> str:
    text = (resources.files("sdekit.report") / "static" / name).read_text(encoding="utf-8")
    # a source map would be another file
    return "\n".join(line for line in text.splitlines() if not line.startswith("//# sourceMappingURL=")).strip()


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
