"""Every option of every command, given odd texts: it runs, or one line names the option."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from sdekit import cli

ODD = (
    "x", "-1", "nan", "1000000000000", "", "0", "inf", "1e9", "1.5", "[1]", "None", "True", "a,b", ",", "x=1", "1,2",
    "\x00", "ü", "../none", "ddim(eta=2)", "{", "-",
)  # fmt: skip
FEW = int(os.environ.get("SDEKIT_DOOR_CALLS", "0")) < 10_000
"""With 10,000 every text in every place, some two minutes; else two in each."""
GOOD = {
    "compare": ["--target=gaussian", "--solvers=ddim", "--nfe=2", "--samples=4", "--out=o"],
    "sample": ["--target=gaussian", "--n=4", "--out=o"],
    "likelihood": ["--samples=2", "--out=o"],
    "invert": ["--target=gaussian", "--method=dps", "--nfe=3", "--n=2", "--out=o"],
    "report": ["o"],
    "solvers": [],
    "tune": ["--target=gaussian", "--nfe=2", "--starts=30", "--budget=100", "--out=o"],
    "train vectors": ["--data=vectors.npy", "--steps=1", "--width=8", "--batch=2", "--out=o"],
    "train images": ["--data=images.npy", "--steps=1", "--widths=8", "--batch=2", "--out=o"],
}
UNUSED = {"train digits", "train digits-few"}  # ten minutes and more for each value that is good
LONG = {
    ("sample", "target"): "",
    ("invert", "target"): "",
    ("compare", "target"): "",
    ("tune", "target"): "",
    ("tune", "budget"): ODD[3],
}
"""Good texts that take long: the default target, a budget for as long as it gets better."""
SECONDS = 60  # a hang, not a busy machine


class TooLong(BaseException):
    """No error of a call: nothing may catch it."""


def stop(*_: object) -> None:
    raise TooLong


def commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before}{name} ")
        else:
            yield before + name, command


COMMANDS = dict(commands(typer.main.get_command(cli.app)))


def test_every_command_has_a_good_call() -> None:
    assert {*COMMANDS} == {*GOOD} | UNUSED


def calls(name: str) -> Iterator[tuple[str, str, list[str]]]:
    """An option, an odd text, and the words of the command with it."""
    for place, option in enumerate(COMMANDS[name].params):
        if option.name == "help" or getattr(option, "is_flag", False):
            continue
        texts = [ODD[(7 * place + step) % len(ODD)] for step in range(2)] if FEW else ODD
        for text in texts:
            if LONG.get((name, option.name or "")) == text:
                continue
            words = [word for word in GOOD[name] if word.partition("=")[0] not in option.opts]
            if isinstance(option, click.Argument):
                yield option.name or "", text, [*name.split(), *(w for w in words if w.startswith("-")), "--", text]
            else:
                yield option.opts[0], text, [*name.split(), *words, f"{option.opts[0]}={text}"]


@pytest.mark.filterwarnings("ignore")  # of what an odd text, that is good, leads to
@pytest.mark.parametrize("name", GOOD)
def test_an_odd_text_runs_or_is_one_line_that_names_its_option(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    signal.signal(signal.SIGALRM, stop)
    np.save("vectors.npy", np.zeros((4, 3), dtype=np.float32))
    np.save("images.npy", np.zeros((4, 1, 8, 8), dtype=np.float32))
    wrong = list[str]()
    for option, text, words in calls(name):
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            done = CliRunner().invoke(cli.app, words)
        except TooLong:
            wrong.append(f"{option}={text!r}: more than {SECONDS} s")
            continue
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        named = re.search(rf"(?<!\w){re.escape(option.lstrip('-'))}(?!\w)", done.stderr.replace("_", "-"))
        refused = done.exit_code == 2 and named and "Traceback" not in done.stderr
        if done.exit_code and not refused:
            wrong.append(f"{option}={text!r}: {done.exit_code}, {done.stderr.strip()[-200:]}")
    assert not wrong, "\n".join(wrong)
