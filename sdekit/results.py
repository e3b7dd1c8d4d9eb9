"""What ``compare`` keeps: a self-describing record for each cell, and the folder that holds them with their samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from sdekit.files import write_whole
from sdekit.identity import Behaviour, alike

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
        network, data, plan: digests of all that decides the model's values, of the real data with the feature map,
            and of the table. "unidentified-…" where there is none: the cell is in no other run.
        behaviour: what the model gave at a few fixed points; see ``identity.behaviour``.
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
    behaviour: Behaviour = ()
    key: str = ""
    jackknife: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line of JSON, without the line's end."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Cell | None:
        """The cell of that line; None for a line that is cut off or of another kind."""
        try:
            record: Any = json.loads(line)
            known: dict[str, Any] = {**record, "behaviour": tuple(record.get("behaviour", ()))}
            return cls(**known) if record else None
        except (json.JSONDecodeError, TypeError, AttributeError):
            return None


class Store:
    """The finished cells and their samples, in memory and, where there is a folder, on disk."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.cells: dict[str, Cell] = {}
        self.tensors: dict[str, dict[str, Tensor]] = {}
        if folder is not None:
            (folder / "tensors").mkdir(parents=True, exist_ok=True)  # where that fails, before anything is computed
            self._read(folder / "results.jsonl")

    def _read(self, path: Path) -> None:
        contents = path.read_bytes() if path.exists() else b""
        whole = [line for line in contents.split(b"\n") if _is_json(line)]
        if (kept := b"".join(line + b"\n" for line in whole)) != contents:
            write_whole(path, kept)  # without a line cut off by a kill, on which other readers would stop
        found = (Cell.from_json(line.decode()) for line in whole)
        self.cells.update({cell.key: cell for cell in found if cell is not None})

    def settled(self, network: str, found: Behaviour) -> Behaviour:
        """``found`` as the cells of that network have it, where one has it but for rounding."""
        known = (cell.behaviour for cell in self.cells.values() if cell.network == network)
        return next((one for one in known if alike(one, found)), found)

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


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
