"""Who computes what, among processes that share a folder and nothing else: a claim is a file that one of them made.

A claim is made by creating a file that must not exist, which one process alone can do; while it is held its time is
renewed, and a claim whose time is older than the lease belongs to nobody: its process was killed, or its machine is
gone. Ages are told by the folder's own clock, since machines' clocks differ.
"""

from __future__ import annotations

import math
import os
import secrets
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

LEASE = 60.0  # seconds without a sign of life after which a claim is taken over
_RENEWALS = 6  # of a claim in one lease: a machine that is briefly busy loses nothing


@contextmanager
def claim(folder: Path, name: str, lease: float = LEASE) -> Generator[bool]:
    """Whether this process has ``name`` to itself while the context lasts; another may hold it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, claim(Path(folder), "a") as mine:
    ...     with claim(Path(folder), "a") as again:
    ...         mine, again
    (True, False)
    """
    path, owner = os.path.join(folder, name), secrets.token_hex(8)
    if not (_create(path, owner) or _take_over(path, owner, lease)):
        yield False
        return
    _heart.hold(path, lease / _RENEWALS)
    try:
        yield True
    finally:
        _heart.drop(path)
        _release(path, owner)


def _create(path: str, owner: str) -> bool:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    except FileNotFoundError:  # who finished last removed the empty folder
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return _create(path, owner)
    try:
        os.write(descriptor, owner.encode())
    except OSError:  # a full disk: a claim without an owner would be in the way for a lease
        os.unlink(path)
        raise
    finally:
        os.close(descriptor)
    return True


def _take_over(path: str, owner: str, lease: float) -> bool:
    """Of several that find a claim abandoned one alone renames it away, and gives back one that is new since."""
    held = Path(path)
    try:
        holder = held.read_text()
        if _age(held) <= lease:
            return False
        gone = held.with_name(f".gone-{secrets.token_hex(8)}")
        held.rename(gone)
    except FileNotFoundError:  # released, or taken over, meanwhile
        return False
    if gone.read_text() != holder:
        with suppress(FileExistsError):
            os.link(gone, held)
        gone.unlink()
        return False
    gone.unlink()
    return _create(path, owner)


def _age(path: Path) -> float:
    now = path.with_name(f".now-{secrets.token_hex(8)}")
    now.touch()
    try:
        return now.stat().st_mtime - path.stat().st_mtime
    finally:
        now.unlink()


class _Heart:
    """Renews all that this process holds, by one thread: a thread for each claim would cost more than small work."""

    def __init__(self) -> None:
        self.held: dict[str, None] = {}
        self.every = math.inf
        self.sooner = threading.Event()
        self.thread: threading.Thread | None = None

    def hold(self, path: str, every: float) -> None:
        self.held[path] = None
        if self.thread is None or not self.thread.is_alive():  # the child of a fork has none
            self.every, self.sooner = every, threading.Event()
            self.thread = threading.Thread(target=self.beat, args=(self.sooner,), daemon=True)
            self.thread.start()
        elif every < self.every:
            self.every = every
            self.sooner.set()

    def drop(self, path: str) -> None:
        self.held.pop(path, None)

    def beat(self, sooner: threading.Event) -> None:
        while True:
            sooner.wait(self.every)
            sooner.clear()
            for path in [*self.held]:
                with suppress(OSError):  # released meanwhile; or the folder is away for a moment
                    os.utime(path)


_heart = _Heart()


def _release(path: str, owner: str) -> None:
    with suppress(FileNotFoundError):  # taken over while this process stood still
        with open(path) as file:
            mine = file.read() == owner
        if mine:
            os.unlink(path)
