"""What ``compare`` keeps: a self-describing record for each cell, and the folder that holds them with their samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

PREVIEW = 256  # samples of each cell that are kept for pictures


@dataclass(frozen=True)
class Cell:
    """One measurement: a line of ``results.jsonl``, which says by itself what was measured and how.

    Attributes:
        metrics: by name in ``metrics.METRICS``; paired ones are absent for stochastic solvers.
        jackknife: each metric's values without one group of the samples in turn (``jackknife.left_out``), which give
            the errors of metrics and of their differences; empty where there are too few samples.
        floor: the value of each metric that means no more can be seen; see ``Comparison.floor``.
        seconds: wall time of sampling alone.
        note: why there are no metrics; empty where there are.
        network, data, plan: digests of the network's weights, the real data with the feature map, and the table.
        key: digest of all that decides the metrics; cells of equal key are computed once.

    >>> cell = Cell("digits", "VP()", "ddim", "logsnr", 5, 64, 0)
    >>> Cell.from_json(cell.to_json()) == cell
    True
    """

    target: str
    process: str
    solver: str
    grid: str
    nfe: int
    samples: int
    seed: int
    stochastic: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)
    floor: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    note: str = ""
    device: str = "cpu"
    versions: Mapping[str, str] = field(default_factory=dict)
    network: str = ""
    data: str = ""
    plan: str = ""
    key: str = ""
    jackknife: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line of JSON, without the line's end."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Cell | None:
        """The cell of that line; None for a line that is cut off or of another kind."""
        try:
            record = json.loads(line)
            return cls(**record) if isinstance(record, dict) else None
        except (json.JSONDecodeError, TypeError):
            return None


class Store:
    """The finished cells and their samples, in memory and, where there is a folder, on disk."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.cells: dict[str, Cell] = {}
        self.tensors: dict[str, dict[str, Tensor]] = {}
        if folder is not None:
            (folder / "tensors").mkdir(parents=True, exist_ok=True)
            self._read(folder / "results.jsonl")

    def _read(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        found = (Cell.from_json(line) for line in text.splitlines())
        self.cells.update({cell.key: cell for cell in found if cell is not None})
        if text and not text.endswith("\n"):
            self._append("")  # a line cut off by a kill: the next record starts on its own line

    def _append(self, line: str) -> None:
        if self.folder is not None:
            with (self.folder / "results.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def add(self, cell: Cell, x: Tensor | None) -> None:
        if x is not None:
            self.save(cell.key, {"x": x[:PREVIEW]})
        self.cells[cell.key] = cell
        self._append(cell.to_json())

    def save(self, key: str, tensors: dict[str, Tensor]) -> None:
        self.tensors[key] = {name: tensor.contiguous() for name, tensor in tensors.items()}
        if self.folder is not None:
            part = self.folder / "tensors" / f"{key}.part"
            save_file(self.tensors[key], part)
            part.replace(part.with_suffix(".safetensors"))  # so that a killed run leaves no half file

    def load(self, key: str) -> dict[str, Tensor]:
        """What was saved under the key; empty where nothing was."""
        if key not in self.tensors and self.folder is not None:
            path = self.folder / "tensors" / f"{key}.safetensors"
            self.tensors[key] = load_file(path) if path.exists() else {}
        return self.tensors.get(key, {})
