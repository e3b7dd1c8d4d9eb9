"""Files of a comparison, and comparisons back from the records of a folder."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sdekit.comparison import ADAPTIVE, Cell, Comparison
from sdekit.door import FileName, door
from sdekit.files import read_tensors, write_tensors, write_whole
from sdekit.identity import identify
from sdekit.metrics import METRICS
from sdekit.report.page import About, page
from sdekit.report.pictures import contact_sheet, picture
from sdekit.report.tables import text
from sdekit.report.ways import Origin, packed, pictures_of_ways, unpacked
from sdekit.results import Previews, Store

PAGE = "report.html"


@door
def write(result: Comparison, out: FileName, command: str = "", origin: Origin | None = None) -> list[Path]:
    """Write ``table.txt``, ``steps-vs-quality.png``, ``samples.png``, ``report.html`` under ``out``; those made.

    What the page shows beyond the records (some real data, the spread of the floor, ``command``, the machine) is kept
    in ``tensors/about-….safetensors``, from which ``rebuild`` takes it.

    Args:
        command: how the comparison was made, for the page.
        origin: the model, and the law where it is known, of which the page then shows how samples come about.

    >>> import tempfile
    >>> import torch
    >>> from sdekit import VP, compare, targets
    >>> target = targets.Gaussian(torch.zeros(2), torch.eye(2))
    >>> result = compare(target.model(VP()), target.sample(64), solvers=["ddim"], nfe=[5], samples=32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     [path.name for path in write(result, folder)][-1]
    'report.html'
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "table.txt"
    table.write_text(text(result), encoding="utf-8")
    drawn = [picture(result, folder / "steps-vs-quality.png"), contact_sheet(result, folder / "samples.png")]
    found = [table, *[path for path in drawn if path is not None]]
    if not result.cells:
        return found
    if origin is None:  # those of the run before, if it was this one
        tensors, known = _remembered(folder, _run(result.cells[0]))
        ways = unpacked(tensors, known.get("ways", []))
    else:
        ways = pictures_of_ways(result, origin)
    about = About(command, hardware(), ways=tuple(ways))
    _remember(result, about, folder)
    image = drawn[1].read_bytes() if drawn[1] is not None else b""
    write_whole(folder / PAGE, page([(result, about, image)]).encode())
    return [*found, folder / PAGE]


@door
def rebuild(folder: FileName) -> Path:
    """Write ``report.html`` anew from the records in a folder of ``compare``, of all its runs; its path.

    Raises ValueError where there are no records.

    >>> import tempfile
    >>> import torch
    >>> from sdekit import VP, compare, targets
    >>> target = targets.Gaussian(torch.zeros(2), torch.eye(2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = compare(target.model(VP()), target.sample(64), solvers=["ddim"], nfe=[5], samples=32, out=folder)
    ...     rebuild(folder).name
    'report.html'
    """
    path = Path(folder)
    found = [(one.result, one.about, b"") for one in _runs(path)]
    write_whole(path / PAGE, page(found).encode())
    return path / PAGE


@door
def read(folder: FileName) -> list[Comparison]:
    """The comparisons whose records a folder of ``compare`` holds, the last begun first.

    Records are of one comparison where target, process, network, data and number of samples are the same. Of a cell
    that was computed again, with another version say, the last record counts. Solvers are compared over the seeds that
    every row has; where no seed is in all of them, over those of each. Without ``tensors/about-….safetensors``, which
    ``write`` makes, there are no real data, no samples, and no spread of the floor.

    Raises ValueError where there are no records.

    >>> import tempfile
    >>> import torch
    >>> from sdekit import VP, compare, targets
    >>> target = targets.Gaussian(torch.zeros(2), torch.eye(2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = compare(target.model(VP()), target.sample(64), solvers=["ddim"], nfe=[5], samples=32, out=folder)
    ...     [run.cells[0].solver for run in read(folder)]
    ['ddim']
    """
    return [one.result for one in _runs(Path(folder))]


@dataclass(frozen=True)
class _Found:
    result: Comparison
    about: About


def _runs(folder: Path) -> list[_Found]:
    if not (folder / "results.jsonl").is_file():
        raise ValueError(f"folder={str(folder)!r}: it has no results.jsonl, which compare(out=...) writes")
    store = Store(folder)
    runs: dict[str, list[Cell]] = {}
    for cell in store.cells.values():
        runs.setdefault(_run(cell), []).append(cell)
    if not runs:
        raise ValueError(f"folder={str(folder)!r}: its results.jsonl holds no record")
    return [_found(cells, store, folder) for cells in reversed(runs.values())]


def _run(cell: Cell) -> str:
    return identify((cell.target, cell.process, cell.network, cell.data, cell.samples))[:16]


def _found(cells: list[Cell], store: Store, folder: Path) -> _Found:
    last = {(c.solver, c.grid, c.grid != ADAPTIVE and c.nfe, c.seed): c for c in cells}
    rows: dict[tuple[object, ...], set[int]] = {}
    for (*row, _), cell in last.items():
        rows.setdefault(tuple(row), set()).add(cell.seed)
    shared = set.intersection(*rows.values()) or set.union(*rows.values())
    left = sorted({cell.seed for cell in last.values()} - shared)
    kept = sorted((cell for cell in last.values() if cell.seed in shared), key=lambda c: (c.grid == ADAPTIVE, c.nfe))
    note = f"Left out, since not every row has them: seeds {', '.join(map(str, left))}." if left else ""
    tensors, known = _remembered(folder, _run(kept[0]))
    real, ways = tensors.get("real"), tuple(unpacked(tensors, known.get("ways", [])))
    about = About(str(known.get("command", "")), str(known.get("hardware", "")), note, ways)
    samples = Previews(store, [cell.key for cell in kept if real is not None])
    spread = {name: float(value) for name, value in known.get("spread", {}).items()}
    space = str(known.get("space", "data"))
    data = torch.zeros(0, 1) if real is None else real
    return _Found(Comparison(tuple(kept), _floor(kept), spread, samples, data, space), about)


def _floor(cells: list[Cell]) -> dict[str, float]:
    """The largest of those recorded: those of paired metrics differ from seed to seed."""
    names = [name for name in METRICS if any(name in cell.floor for cell in cells)]
    return {name: max(cell.floor[name] for cell in cells if name in cell.floor) for name in names}


def _about_path(folder: Path, run: str) -> Path:
    return folder / "tensors" / f"about-{run}.safetensors"


def _remember(result: Comparison, about: About, folder: Path) -> None:
    known: Mapping[str, Any] = {
        "command": about.command, "hardware": about.hardware, "spread": dict(result.spread), "space": result.space,
    }  # fmt: skip
    tensors, words = packed(about.ways)
    path = _about_path(folder, _run(result.cells[0]))
    write_tensors(path, {"real": result.real, **tensors}, {"about": json.dumps({**known, "ways": words})})


def _remembered(folder: Path, run: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    path = _about_path(folder, run)
    if not path.is_file():
        return {}, {}
    tensors, header = read_tensors(path)
    return tensors, json.loads(header["about"])


def hardware() -> str:
    """This machine in a line."""
    parts = [platform.platform(), _processor(), f"{os.cpu_count()} cores, torch on {torch.get_num_threads()}"]
    parts += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return "; ".join(part for part in [*parts, f"Python {platform.python_version()}"] if part)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
