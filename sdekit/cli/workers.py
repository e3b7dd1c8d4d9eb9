"""Several processes on one command: ``--workers``, and the same command under torchrun or srun."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager

_MARK = "SDEKIT_WORKER"
_RANKS = (_MARK, "RANK", "SLURM_PROCID")


def is_first() -> bool:
    """Whether this process tells what came out: of those started together, the first alone does."""
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)


def command_without(option: str, words: Sequence[str]) -> list[str]:
    """The words of a command without an option and its value.

    >>> command_without("--workers", ["compare", "--workers", "4", "--nfe", "5", "--workers=2"])
    ['compare', '--nfe', '5']
    """
    left, words = list[str](), list(words)
    while words:
        word = words.pop(0)
        if word == option:
            words.pop(0)
        elif not word.startswith(f"{option}="):
            left.append(word)
    return left


@contextmanager
def helped_by(workers: int) -> Generator[None]:
    """While the context lasts ``workers`` − 1 more processes run this command; it ends when they have ended.

    They share the folder, and nothing else. Each process has its share of the cores. One that was started so starts no
    others, whatever a file of options says.
    """
    if workers == 1 or _MARK in os.environ:
        yield
        return
    import torch

    threads = max(1, (os.cpu_count() or 1) // workers)
    torch.set_num_threads(threads)
    code = "from sdekit.cli import main; main()"
    command = [sys.executable, "-c", code, *command_without("--workers", sys.argv[1:])]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    started = [
        subprocess.Popen(command, env={**environment, _MARK: str(number)}, stdout=subprocess.DEVNULL)
        for number in range(1, workers)
    ]
    try:
        yield
    except BaseException:
        for process in started:
            process.terminate()
        raise
    finally:
        for process in started:
            process.wait()
