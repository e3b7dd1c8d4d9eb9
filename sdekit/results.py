"""What ``compare`` keeps: a self-describing record for each cell, and the folder that holds them with their samples.

Several processes may share a folder. Each appends to ``results.jsonl`` while it holds the file's lock, and reads first
what others appended: no record is lost, and none is there twice.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdekit import claims
from sdekit.files import write_whole
from sdekit.identity import Behaviour, alike

PREVIEW = 256  # samples of each cell that are kept for pictures
OUT_OF_MEMORY = "out of memory"  # how the note of a cell begins that may succeed with other batches
_PAUSE = 0.1  # seconds between looks at what others have finished


@dataclass(frozen=True)
class Cell:
    """One measurement: a line of ``results.jsonl``, which says by itself what was measured and how.

    Attributes:
        metrics: by name in ``metrics.METRICS``; paired ones are absent for stochastic solvers.
        jackknife: each metric's values without one group of the samples in turn (``jackknife.left_out``), which give
            the errors of metrics and of their differences; empty where there are too few samples.
        floor: the value of each metric that means no more can be seen; see ``Comparison.floor``.
        evaluations: network evaluations that a sample took, in the mean: ``nfe``, unless an adaptive method or a
            function took others.
        rounds: calls of the network one after another, where they were fewer (``parallel``); None elsewhere.
        seconds: wall time of sampling alone.
        network_seconds: of the network's bare calls in it: their number times the time of one, measured apart, so that
            on a busy machine it may exceed ``seconds``; what is beyond it is the solver's own.
        peak_memory: bytes that the device held at most while sampling; None where the device does not count them.
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
    evaluations: float = 0.0
    rounds: float | None = None
    network_seconds: float = 0.0
    peak_memory: int | None = None

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
        self._read: tuple[int, int] = (0, 0)  # of results.jsonl: the file, and how far
        if folder is not None:
            (folder / "tensors").mkdir(parents=True, exist_ok=True)  # where that fails, before anything is computed
            with self._lock():
                _without_cut_lines(self._path)
            self.refresh()
            self.cells = {key: cell for key, cell in self.cells.items() if not cell.note.startswith(OUT_OF_MEMORY)}

    @property
    def _path(self) -> Path:
        assert self.folder is not None
        return self.folder / "results.jsonl"

    @contextmanager
    def _lock(self) -> Generator[None]:
        with FileLock(self._path.parent / "tensors" / ".lock"):
            yield

    def refresh(self) -> None:
        """Read the cells that other processes have appended since."""
        if self.folder is None or not self._path.exists():
            return
        with self._path.open("rb") as file:
            status = os.fstat(file.fileno())
            known, place = self._read
            if known != status.st_ino or place > status.st_size:  # written anew, without lines that were cut off
                place = 0
            file.seek(place)
            whole, _, _ = file.read().rpartition(b"\n")
        found = (Cell.from_json(line.decode()) for line in whole.split(b"\n") if _is_json(line))
        self.cells.update({cell.key: cell for cell in found if cell is not None})
        self._read = (status.st_ino, place + len(whole) + bool(whole))

    @contextmanager
    def claim(self, key: str) -> Generator[bool]:
        """Whether this process is the one to compute what has that key; see ``claims``."""
        if self.folder is None:
            yield True
            return
        with claims.claim(self.folder / "claims", key, claims.LEASE) as mine:
            if mine:
                self.refresh()
            yield mine and key not in self.cells

    def compute(self, keys: Sequence[str], one: Callable[[str], object]) -> None:
        """Call ``one(key)`` for each key that no process has finished or is at, until all of them are finished."""
        left = list(keys)
        while left:
            before = len(left)
            for key in left:
                if key not in self.cells:
                    with self.claim(key) as mine:
                        if mine:
                            one(key)
                            continue
                self.refresh()
            left = [key for key in left if key not in self.cells]
            if len(left) == before:
                time.sleep(_PAUSE)
        if self.folder is not None:
            with suppress(OSError):  # where others hold some
                (self.folder / "claims").rmdir()

    def once(self, key: str, tensors: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What is saved under the key; where nothing is, one process computes and saves it, and others wait."""
        while not (found := self.load(key)):
            with self.claim(key) as mine:
                if mine and not self.load(key):
                    self.save(key, tensors())
                    continue
            time.sleep(0 if mine else _PAUSE)
        return found

    def settled(self, network: str, found: Behaviour) -> Behaviour:
        """``found`` as the cells of that network have it, where one has it but for rounding."""
        known = (cell.behaviour for cell in self.cells.values() if cell.network == network)
        return next((one for one in known if alike(one, found)), found)

    def add(self, cell: Cell, x: Tensor | None) -> None:
        """Keep a cell and its first samples. Raises OSError where the disk is full: what was there stays whole."""
        if x is not None:
            self.save(cell.key, {"x": x[:PREVIEW]})
        if self.folder is not None:
            with self._lock():
                self.refresh()
                if cell.key not in self.cells:
                    _append(self._path, cell.to_json())
        self.cells.setdefault(cell.key, cell)

    def save(self, key: str, tensors: dict[str, Tensor]) -> None:
        self.tensors[key] = {name: tensor.contiguous() for name, tensor in tensors.items()}
        if self.folder is not None:
            whole = self.folder / "tensors" / f"{key}.safetensors"
            part = whole.with_suffix(f".{os.getpid()}.part")
            try:
                save_file(self.tensors[key], part)
            except SafetensorError as error:  # a full disk, in its own words
                part.unlink(missing_ok=True)
                raise OSError(f"{part}: {error}") from error
            part.replace(whole)  # so that a killed run leaves no half file

    def load(self, key: str) -> dict[str, Tensor]:
        """What was saved under the key; empty where nothing was."""
        if key not in self.tensors and self.folder is not None:
            path = self.folder / "tensors" / f"{key}.safetensors"
            if path.exists():
                self.tensors[key] = load_file(path)
        return self.tensors.get(key, {})


def _without_cut_lines(path: Path) -> None:
    """Other readers would stop on a line that a kill cut off."""
    contents = path.read_bytes() if path.exists() else b""
    kept = b"".join(line + b"\n" for line in contents.split(b"\n") if _is_json(line))
    if kept != contents:
        write_whole(path, kept)


def _append(path: Path, line: str) -> None:
    with path.open("ab") as file:
        end = file.tell()
        try:
            torn = end > 0 and not _ends_a_line(path)  # by a process that was killed in the middle
            file.write(b"\n" * torn + line.encode() + b"\n")
            file.flush()
        except OSError:
            file.truncate(end)
            raise


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
