"""What the commands share: options, texts that are lists, the device, tables and progress on a terminal."""

from __future__ import annotations

import inspect
import json
import math
import re
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdekit.names import unknown
from sdekit.subjects import DEFAULT_TARGET, TARGETS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sdekit.subjects import Subject

_SOON = 5.0  # seconds before which a guess of the time left is none
Target = Annotated[str | None, typer.Option(help=f"What ships to run on: {', '.join(TARGETS)}; default digits.")]
Model = Annotated[
    str, typer.Option(help="A model of your own: package.module:factory, or a folder of diffusers or sdekit.nn.save.")
]
Data = Annotated[
    str, typer.Option(help="Its data: a folder of images, or .npy, .npz or .safetensors (file.npz:name for one array).")
]
Features = Annotated[str, typer.Option(help="Feature map: package.module:function, dinov2:FOLDER or inception:FILE.")]
Shape = Annotated[str, typer.Option(help="Shape of one sample where there are no data, e.g. 3,32,32.")]
Condition = Annotated[
    list[str] | None,
    typer.Option(help="What the network is told: label=3, guidance=1.5, label=classes:10; may be repeated."),
]
BatchSize = Annotated[int | None, typer.Option(help="Samples run at once; default all, in compare at most 1024.")]
Seed = Annotated[int, typer.Option(help="Seed of all noise; the same for every solver.")]
Device = Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, mps, …")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, for other programs.")]


def subject_of(
    target: str | None,
    model: str,
    device: str,
    *,
    data: str = "",
    features: str = "",
    shape: str = "",
    limit: int | None = None,
) -> Subject:
    """What the options name: a shipped target, or a model of the user's with data or a shape."""
    from sdekit import subjects

    where, event = torch_device(device), whole_numbers("shape", shape, "3,32,32") if shape else []
    _check_together(target, model, data, shape, event)
    if model:
        found = subjects.own(model, where, data, event, limit)
    else:
        found = subjects.target(target or DEFAULT_TARGET, where)
    if found.note:
        typer.echo(found.note, err=True)
    return subjects.with_features(found, features, where) if features else found


def _check_together(target: str | None, model: str, data: str, shape: str, event: list[int]) -> None:
    if model and target is not None:
        raise ValueError("--model, --target: give one of them; a target has a model of its own")
    if not model and (data or shape):
        option = "--data" if data else "--shape"
        raise ValueError(f"{option} goes with --model; the target {target or DEFAULT_TARGET!r} has its own")
    if min(event, default=1) < 1:
        raise ValueError(f"--shape {shape!r}: each number must be at least 1")


def conditions_of(texts: Sequence[str], n: int, subject: Subject, run: Callable[..., object]) -> dict[str, Any]:
    """What the network is told in ``run``, which draws n samples, from ``name=value``; the network is tried with it."""
    from sdekit.loading import check_runs

    found = _read_conditions(texts, n, subject.model.device)
    for name in found.keys() & inspect.signature(run).parameters.keys():
        raise ValueError(f"--condition {name}: it is an argument of the run, which the network is not told")
    try:
        check_runs(subject.model, subject.event, found)
    except ValueError as error:
        raise ValueError(f"--condition {' '.join(texts)}: {error}" if texts else str(error)) from None
    return found


def _read_conditions(texts: Sequence[str], n: int, device: torch.device | str = "cpu") -> dict[str, Any]:
    """A whole number is a label: int64 [n], a row for each sample, as is ``classes:K``: sample i has the label i mod K.
    A number with a point is passed as it is.

    >>> _read_conditions(["label=classes:3", "guidance=1.5"], 4)
    {'label': tensor([0, 1, 2, 0]), 'guidance': 1.5}
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name.isidentifier() or name in found:
            raise ValueError(f"--condition {text!r}: write it as name=value, each name once")
        found[name] = _condition(text, value, n, device)
    return found


def _condition(text: str, value: str, n: int, device: torch.device | str) -> Tensor | float:
    import torch

    if classes := re.fullmatch(r"classes:([1-9]\d{0,8})", value):
        return torch.arange(n, device=device) % int(classes[1])
    if re.fullmatch(r"[+-]?\d{1,18}", value):
        return torch.full((n,), int(value), device=device)
    if re.fullmatch(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=e))(e[+-]?\d+)?", value, re.IGNORECASE):
        return float(value)
    raise ValueError(f"--condition {text!r}: its value is a whole number, a number with a point, or classes:K")


def from_toml(context: Any, path: Path | None) -> Path | None:
    """A file's values as the defaults of a command's options: lists as comma-separated, names with - or _."""
    if path is None:
        return None
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--sweep {str(path)!r}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"--sweep {str(path)!r} is no TOML file: {error}") from None
    known = [parameter.name or "" for parameter in context.command.params]
    defaults: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in known or name == "sweep":
            raise unknown(f"option in {str(path)!r}", key, [one for one in known if one not in ("sweep", "help")])
        several = name == "condition"  # the one option that is repeated
        defaults[name] = value if several or not isinstance(value, list) else ",".join(map(str, value))
    context.default_map = defaults
    return path


def folder_of(command: str, subject: Subject) -> Path:
    """Where a command writes by default; a name or path of the user's becomes one part of a path.

    >>> from types import SimpleNamespace
    >>> folder_of("compare", SimpleNamespace(name="runs/a model:best")).as_posix()
    'out/compare-runs-a-model-best'
    """
    return Path("out", f"{command}-{re.sub('[^A-Za-z0-9_.]+', '-', subject.name).strip('-.')}")


def names(text: str) -> list[str]:
    """Split at commas outside brackets.

    >>> names("heun, ddim(eta=0.5)")
    ['heun', 'ddim(eta=0.5)']
    """
    return [part.strip() for part in re.split(r",(?![^(]*\))", text) if part.strip()]


def whole_numbers(option: str, text: str, example: str) -> list[int]:
    """
    >>> whole_numbers("nfe", "5,10", "5,10")
    [5, 10]
    """
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", text):
        raise ValueError(f"--{option} {text!r}: whole numbers separated by commas are needed, such as {example}")
    return [int(part) for part in text.split(",")]


def torch_device(name: str) -> torch.device:
    import torch

    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name!r} cannot be used: {reason}") from None


def tell(as_json: bool, text: str, record: object) -> None:
    """The end of every command: what it says to people, or with ``--json`` to programs."""
    typer.echo(json.dumps(_told(record), indent=1, ensure_ascii=False, allow_nan=False) if as_json else text)


def _told(value: object) -> object:
    """JSON has no infinity and no NaN: they are null. What it does not know is told by its text."""
    if isinstance(value, Mapping):
        return {str(name): _told(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_told(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


def show(table: Callable[..., None], *what: object) -> None:
    from rich.console import Console

    table(*what, Console())


@contextmanager
def progress() -> Generator[Callable[[str, int, int], None], None, None]:
    """A bar with the time left on a terminal; elsewhere one line a cell. On stderr both."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    columns = (TextColumn("{task.description:<32}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    left = TimeRemainingColumn(elapsed_when_finished=False)
    with Progress(*columns, TextColumn("left"), left, console=console, transient=True, speed_estimate_period=30) as bar:
        task = bar.add_task("data and network", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def _lines() -> Callable[[str, int, int], None]:
    """One line for each thing begun, the first with the whole cost, and with the time left once some of it is known."""
    seen: set[str] = set()
    began = time.monotonic()

    def tell(what: str, done: int, total: int) -> None:
        if not seen and total:
            typer.echo(f"{total:,} network evaluations, each of one sample", err=True)
        if what not in seen:
            seen.add(what)
            took = time.monotonic() - began
            left = f", {took * (total - done) / done:.0f} s left" if done and took > _SOON else ""
            typer.echo(f"[{100 * done / max(total, 1):3.0f}%{left}] {what}", err=True)

    return tell
