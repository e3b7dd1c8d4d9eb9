"""What ``compare`` keeps: a self-describing record for each cell, and the folder that holds them with their samples.

Several processes may share a folder. Each appends to ``results.jsonl`` while it holds the file's lock, and reads first
what others appended: no record is lost, and none is there twice.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import sys
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdekit import claims
from sdekit.files import write_whole
from sdekit.identity import Behaviour, alike

if sys.platform != "win32":
    import fcntl
else:
    from filelock import FileLock

PREVIEW = 256  # samples of each cell that are kept for pictures
OUT_OF_MEMORY = "out of memory"  # how the note of a cell begins that may succeed with other batches
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=dict)
_DTYPES = {
    str(kind).removeprefix("torch."): kind for kind in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
}
# how a whole record ends, and no part of one: what others have finished is told without reading all of it
_KEY = re.compile(r'"key": "([^"\\]*)"\}$')
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
        preview: where in the folder's ``tensors/`` its first samples are: file, place, type and shape; empty without
            any.
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
    preview: str = ""

    def to_json(self) -> str:
        """One line of JSON, without the line's end."""
        record = dict(vars(self))
        record["key"] = record.pop("key")  # last: see ``_KEY``
        return _ENCODER.encode(record)

    @classmethod
    def from_json(cls, line: str) -> Cell | None:
        """The cell of that line; None for a line that is cut off or of another kind."""
        try:
            record: Any = json.loads(line)
            known: dict[str, Any] = {**record, "behaviour": tuple(record.get("behaviour", ()))}
            return cls(**known) if record else None
        except (json.JSONDecodeError, TypeError, AttributeError):
            return None


class BusyError(Exception):
    """What is needed is being computed by another process."""


class Store:
    """The finished cells and their samples, in memory and, where there is a folder, on disk."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._cells: dict[str, Cell] = {}
        self._unread: dict[str, str] = {}  # records of others by their keys
        self.tensors: dict[str, dict[str, Tensor]] = {}  # of a store on disk those alone that ``once`` gave
        self._read: tuple[int, int] = (0, 0)  # of results.jsonl: the file, and how far
        if folder is not None:
            self._path, self._claims = f"{folder}/results.jsonl", folder / "claims"
            self._previews = f"{folder}/tensors/previews-{secrets.token_hex(8)}"  # no other process's
            (folder / "tensors").mkdir(parents=True, exist_ok=True)  # where that fails, before anything is computed
            self._lock = _Lock(folder / "tensors" / ".lock")
            with self._lock:
                _without_cut_lines(Path(self._path))
            self.refresh()

    @property
    def cells(self) -> dict[str, Cell]:
        """What is finished, as far as it was read."""
        found = map(Cell.from_json, self._unread.values())
        self._cells.update({cell.key: cell for cell in found if cell is not None})
        self._unread.clear()
        return self._cells

    def done(self, key: str) -> bool:
        """Whether the cell is finished, as far as it was read."""
        return key in self._cells or key in self._unread

    def retry(self) -> None:
        """Take what ran out of memory for what was not measured: it may succeed with other batches."""
        self._cells = {key: cell for key, cell in self.cells.items() if not cell.note.startswith(OUT_OF_MEMORY)}

    def refresh(self) -> None:
        """Read the cells that other processes have appended since."""
        if self.folder is None or self._read == _end(self._path):
            return
        with open(self._path, "rb") as file:
            status = os.fstat(file.fileno())
            known, place = self._read
            if known != status.st_ino or place > status.st_size:  # written anew, without lines that were cut off
                place = 0
            file.seek(place)
            whole, _, _ = file.read().rpartition(b"\n")
        for line in whole.decode(errors="replace").split("\n"):  # a cut may part a letter
            if key := _KEY.search(line):
                self._unread[key[1]] = line
            elif (cell := Cell.from_json(line)) is not None:
                self.cells[cell.key] = cell
        self._read = (status.st_ino, place + len(whole) + bool(whole))

    @contextmanager
    def claim(self, key: str) -> Generator[bool]:
        """Whether this process is the one to compute what has that key; see ``claims``."""
        if self.folder is None:
            yield True
            return
        with claims.claim(self._claims, key, claims.LEASE) as mine:
            if mine:
                self.refresh()
            yield mine and not self.done(key)

    def compute(self, keys: Sequence[str], one: Callable[[str], object]) -> None:
        """Call ``one(key)`` for each key that no process has finished or is at, until all of them are finished.

        In order; who meets a key, or anything ``once`` for it, that another is at goes on from any other key, so that
        they seldom meet again.
        """
        left, first, pauses = list(keys), 0, _pauses()
        while left := [key for key in left if not self.done(key)] or [key for key in keys if key not in self.cells]:
            left, before = left[first:] + left[:first], len(self._cells)
            if self._walk(left, one):
                if len(self._cells) > before:
                    pauses = _pauses()
                else:  # not one in the whole walk: there is nothing to do but wait
                    time.sleep(next(pauses))
            first = secrets.randbelow(len(left))
        if self.folder is not None:
            with suppress(OSError):  # where others hold some
                self._claims.rmdir()

    def _walk(self, keys: Sequence[str], one: Callable[[str], object]) -> bool:
        """Call ``one`` for each that is not finished; whether it stopped at a key that another process is at."""
        for key in keys:
            if self.done(key):
                continue
            with self.claim(key) as mine, suppress(BusyError):
                if mine:
                    one(key)
            if not self.done(key):
                self.refresh()
                if not self.done(key):
                    return True
        return False

    def once(self, key: str, tensors: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What is saved under the key; where nothing is, one process computes and saves it.

        Raises ``BusyError`` where another process is at it.
        """
        if not self.has(key):
            with self.claim(key) as mine:
                if mine and not self.has(key):
                    self.save(key, tensors())
        if not (found := self.load(key)):
            raise BusyError(key)
        self.tensors[key] = found
        return found

    def settled(self, network: str, found: Behaviour) -> Behaviour:
        """``found`` as the cells of that network have it, where one has it but for rounding."""
        known = (cell.behaviour for cell in self.cells.values() if cell.network == network)
        return next((one for one in known if alike(one, found)), found)

    def add(self, cell: Cell) -> None:
        """Keep a cell. Raises OSError where the disk is full: what was there stays whole."""
        if self.folder is not None:
            with self._lock:
                self.refresh()
                if not self.done(cell.key):
                    torn = _end(self._path) != self._read  # by a process that was killed in the middle of a line
                    _append(self._path, b"\n" * torn + cell.to_json().encode() + b"\n")
                    self._read = _end(self._path)
        if not self.done(cell.key):
            self._cells[cell.key] = cell

    def keep(self, key: str, x: Tensor) -> str:
        """Keep the first samples of a cell; what its record says of them. Raises OSError as ``add``.

        One file takes those of all cells of a process: a file for each costs more than a small cell.
        """
        x = x[:PREVIEW].contiguous()
        if self.folder is None:
            self.tensors[key] = {"x": x}
            return ""
        place = _append(self._previews, x.view(torch.uint8).numpy().tobytes())
        shape = "x".join(map(str, x.shape))
        return f"{os.path.basename(self._previews)}:{place}:{str(x.dtype).removeprefix('torch.')}:{shape}"

    def preview(self, key: str) -> Tensor | None:
        """The first samples of that cell; None where there are none, or their file is damaged."""
        cell = self.cells[key]
        if self.folder is None or not cell.preview:
            return self.load(key).get("x")
        try:
            name, place, dtype, shape = cell.preview.split(":")
            sizes, kind = [int(size) for size in shape.split("x")], _DTYPES[dtype]
            with (self.folder / "tensors" / Path(name).name).open("rb") as file:
                begin, size = int(place), math.prod(sizes) * kind.itemsize
                if begin + size > file.seek(0, os.SEEK_END):
                    return None
                file.seek(begin)
                contents = bytearray(file.read(size))
            return torch.frombuffer(contents, dtype=kind).reshape(sizes)
        except (OSError, ValueError, KeyError, RuntimeError):
            return None

    def save(self, key: str, tensors: dict[str, Tensor]) -> None:
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        if self.folder is None:
            self.tensors[key] = tensors
            return
        whole = self._of_tensors(key)
        part = whole.with_suffix(f".{os.getpid()}.part")
        try:
            save_file(tensors, part)
        except SafetensorError as error:  # a full disk, in its own words
            part.unlink(missing_ok=True)
            raise OSError(f"{part}: {error}") from error
        part.replace(whole)  # so that a killed run leaves no half file

    def load(self, key: str) -> dict[str, Tensor]:
        """What was saved under the key; empty where nothing was."""
        if key in self.tensors or self.folder is None:
            return self.tensors.get(key, {})
        path = self._of_tensors(key)
        return load_file(path) if path.exists() else {}

    def has(self, key: str) -> bool:
        """Whether something was saved under the key."""
        return key in self.tensors or (self.folder is not None and self._of_tensors(key).exists())

    def _of_tensors(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / "tensors" / f"{key}.safetensors"


class _Lock:
    """Of one process among several, until it gives it back or dies."""

    def __init__(self, path: Path) -> None:
        if sys.platform == "win32":
            self._others = FileLock(path)  # does the same on any system, in twenty times the time
        else:
            self._file = os.open(path, os.O_CREAT | os.O_RDWR)
            weakref.finalize(self, os.close, self._file)

    def __enter__(self) -> None:
        if sys.platform == "win32":
            self._others.acquire()
        else:
            fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        if sys.platform == "win32":
            self._others.release()
        else:
            fcntl.flock(self._file, fcntl.LOCK_UN)


class Previews(Mapping[str, Tensor]):
    """The samples that a store keeps of some cells, by key: read from its folder when they are asked for."""

    def __init__(self, store: Store, keys: Sequence[str]) -> None:
        self._store, self._keys = store, dict.fromkeys(keys)

    def __getitem__(self, key: str) -> Tensor:
        if key not in self._keys or (found := self._store.preview(key)) is None:
            raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[str]:
        cells = ((key, self._store.cells[key]) for key in self._keys)
        return (key for key, cell in cells if cell.preview or self._store.has(key))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __reduce__(self) -> tuple[Any, ...]:  # to other processes and files as what it holds
        return dict, (dict(self),)


def _pauses() -> Iterator[float]:
    """Between looks at what others are at, ever longer: most of it is soon done."""
    pause = _PAUSE / 100
    while True:
        yield pause
        pause = min(2 * pause, _PAUSE)


def _without_cut_lines(path: Path) -> None:
    """Other readers would stop on a line that a kill cut off."""
    contents = path.read_bytes() if path.exists() else b""
    kept = b"".join(line + b"\n" for line in contents.split(b"\n") if _is_json(line))
    if kept != contents:
        write_whole(path, kept)


def _end(path: str) -> tuple[int, int]:
    """The file, and where it ends."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return 0, 0
    return status.st_ino, status.st_size


def _append(path: str, contents: bytes) -> int:
    """Put the contents at the file's end, whole or not at all; where they begin."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    try:
        end, done = os.lseek(file, 0, os.SEEK_END), 0
        try:
            while done < len(contents):
                done += os.write(file, contents[done:])
        except OSError:
            os.ftruncate(file, end)
            raise
    finally:
        os.close(file)
    return end


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
