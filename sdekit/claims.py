"""Who computes what, among processes that share a folder and nothing else: a claim is a file that one of them made.

A claim is made by creating a file that must not exist, which one process alone can do; while it is held its time is
renewed, and a claim whose time is older than the lease belongs to nobody: its process was killed, or its machine is
gone. Ages are told by the folder's own clock, since machines' clocks differ.
"""

from __future__ import annotations

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
    path, owner = folder / name, secrets.token_hex(8)
    if not (_create(path, owner) or _take_over(path, owner, lease)):
        yield False
        return
    over = threading.Event()
    thread = threading.Thread(target=_renew, args=(path, over, lease / _RENEWALS), daemon=True)
    thread.start()
    try:
        yield True
    finally:
        over.set()
        thread.join()
        _release(path, owner)


def _create(path: Path, owner: str) -> bool:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    except FileNotFoundError:  # who finished last removed the empty folder
        path.parent.mkdir(parents=True, exist_ok=True)
        return _create(path, owner)
    with os.fdopen(descriptor, "w") as file:
        file.write(owner)
    return True


def _take_over(path: Path, owner: str, lease: float) -> bool:
    """Of several that find a claim abandoned one alone renames it away, and gives back one that is new since."""
    try:
        holder = path.read_text()
        if _age(path) <= lease:
            return False
        gone = path.with_name(f".gone-{secrets.token_hex(8)}")
        path.rename(gone)
    except FileNotFoundError:  # released, or taken over, meanwhile
        return False
    if gone.read_text() != holder:
        with suppress(FileExistsError):
            os.link(gone, path)
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


def _renew(path: Path, over: threading.Event, every: float) -> None:
    while not over.wait(every):
        with suppress(FileNotFoundError):
            os.utime(path)


def _release(path: Path, owner: str) -> None:
    with suppress(FileNotFoundError):  # taken over while this process stood still
        if path.read_text() == owner:
            path.unlink()
