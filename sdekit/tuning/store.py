"""Tuned solvers as readable JSON: every number is checked, and the sentence names its field."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sdekit.door import FileName, door
from sdekit.files import write_whole
from sdekit.identity import UnidentifiedError, alike, behaviour, identify
from sdekit.names import lookup
from sdekit.prediction import PREDICTIONS
from sdekit.process import Process
from sdekit.process.description import build_process, describe_process
from sdekit.sampling import Model
from sdekit.tuning.plan import Tuned
from sdekit.tuning.table import Table

if TYPE_CHECKING:
    from sdekit.tuning.family import Family

FORMAT = "sdekit tuned solver 1"
FAMILY = "sdekit tuned family 1"
_LARGEST = 1e6  # a coefficient beyond it multiplies rounding in float32 to the size of the data


def write(plan: Tuned, path: str | os.PathLike[str]) -> None:
    """What ``Tuned.save`` does."""
    assert plan.process is not None
    description = describe_process(plan.process)
    build_process(description)  # refuses what ``load`` would refuse
    table = plan.table
    rows = [
        {"t": t, "anchor": anchor, "history": list(history)}
        for t, anchor, history in zip(table.times, table.anchor, table.history)
    ]
    contents = {
        "format": FORMAT, "process": description, "predicts": table.predicts, "nfe": table.nfe, "rows": rows,
        "record": dict(plan.record),
    }  # fmt: skip
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(contents, indent=1) + "\n").encode())


def write_family(family: Family, path: str | os.PathLike[str]) -> None:
    """What ``Family.save`` does."""
    curve = family.curve
    description = describe_process(curve.process)
    build_process(description)
    contents = {
        "format": FAMILY, "process": description, "solver": curve.solver, "grid": curve.grid, "least": family.least,
        "most": family.most, "numbers": list(curve.numbers), "record": dict(family.record),
    }  # fmt: skip
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(contents, indent=1) + "\n").encode())


@door
def load_solver(path: FileName, model: Model | None = None, *, force: bool = False) -> Tuned | Any:
    """The solver that ``Tuned.save`` or ``Family.save`` wrote.

    Args:
        model: the model that it is to run on; refused unless it is the one it was fitted to, by all that it is made of
            (``identity.identify``) or by what it gives at a few fixed points (``identity.behaviour``).
        force: take it for another model all the same. Another process is refused whatever this says.

    Raises ValueError for a file that is missing or no such JSON, a number in it that makes no sense, and another model.

    >>> import tempfile
    >>> import torch
    >>> from sdekit import VP, targets, tune
    >>> model = targets.Gaussian(torch.zeros(2), torch.eye(2)).model(VP())
    >>> tuned = tune(model, (1, 2), nfe=3, starts=60, budget=500)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tuned.save(f"{folder}/plan.json")
    ...     load_solver(f"{folder}/plan.json", model).name == tuned.name
    True
    """
    plan = _read(os.fspath(path))
    if model is not None:
        if model.process != plan.process:
            raise ValueError(f"path={os.fspath(path)!r} is for {plan.process}: the model's process is {model.process}")
        if not force:
            _check_model(plan, model, os.fspath(path))
    return plan


def _check_model(plan: Tuned | Family, model: Model, path: str) -> None:
    made, now = digests(model, plan.record["event"]), plan.record
    if now.get("model") is not None and made["model"] == now["model"]:
        return
    if None in (made["behaviour"], now["behaviour"]) or not alike(tuple(now["behaviour"]), tuple(made["behaviour"])):
        raise ValueError(f"path={path!r} was fitted to another model than this one; force=True takes it all the same")


def digests(model: Model, event: Sequence[int]) -> dict[str, Any]:
    """What tells a model from others: a digest of all that it is made of, and what it gives at a few points.

    None stands for what cannot be had: the state of a part that cannot be read, a network that needs conditions.
    """
    digest: str | None = None
    seen: list[float | None] | None = None
    with suppress(UnidentifiedError):
        digest = identify(model)
    with suppress(Exception):  # in whatever way a network says that it misses a condition
        seen = list(behaviour(model, event))
    return {"model": digest, "behaviour": seen}


def _read(path: str) -> Tuned | Family:
    try:
        contents = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"path={path!r}: no readable JSON ({error})") from error
    fields = _Fields(path, "", cast("dict[str, Any]", contents) if isinstance(contents, dict) else {})
    readers = {FORMAT: _read_tuned, FAMILY: _read_family}
    read = readers.get(str(fields.values.get("format")))
    if read is None:
        raise ValueError(f"path={path!r} holds no tuned solver; save() of what sdekit.tune returns writes one")
    return read(path, fields)


def _read_tuned(path: str, fields: _Fields) -> Tuned:
    process = _process(fields)
    predicts = fields.text("predicts")
    lookup(f"predicts of {path!r}:", predicts, PREDICTIONS)
    rows = fields.each("rows")
    if len(rows) < 2 or fields.number("nfe", 2, math.inf) != len(rows):
        raise fields.wrong("nfe", f"it must count the {len(rows)} rows, at least 2")
    table = Table(
        predicts,
        _times(rows, process),
        tuple(row.number("anchor", -_LARGEST, _LARGEST) for row in rows),
        tuple(row.numbers("history", i + 1) for i, row in enumerate(rows)),
    )
    return Tuned.make(table, process, _record(fields.inner("record")))


def _read_family(path: str, fields: _Fields) -> Family:
    from sdekit.tuning.curve import COUNT, Curve
    from sdekit.tuning.family import LEAST, MOST, SOLVERS, Family, whole
    from sdekit.tuning.search import GRIDS

    solver, grid = fields.text("solver"), fields.text("grid")
    lookup(f"solver of {path!r}:", solver, dict.fromkeys(SOLVERS))
    lookup(f"grid of {path!r}:", grid, dict.fromkeys(GRIDS))
    least = fields.whole("least", LEAST, MOST)
    most = fields.whole("most", least, MOST)
    curve = Curve(_process(fields), solver, grid, fields.numbers("numbers", COUNT, "one for each part of the curve"))
    for nfe in range(least, most + 1):
        if not whole(curve, nfe):
            raise ValueError(f"path={path!r}: numbers give no falling times with nfe={nfe}")
    record = fields.inner("record")
    for name in ("start", "validation"):
        for nfe in record.inner(name).values:
            for error in ("median", "rmse"):
                record.inner(name).inner(nfe).number(error, 0, math.inf)
    return Family.make(curve, least, most, _about(record))


def _process(fields: _Fields) -> Process:
    description = fields.inner("process").values
    try:
        return build_process(description)
    except (ValueError, TypeError, KeyError) as error:
        raise fields.wrong("process", f"it is no process of this package ({error})") from error


def _times(rows: Sequence[_Fields], process: Process) -> tuple[float, ...]:
    times = tuple(row.number("t", process.t_min, process.t_max) for row in rows)
    if times[0] != process.t_max:
        raise rows[0].wrong("t", f"the first evaluation is at t_max={process.t_max}")
    for row, before, now in zip(rows[1:], times, times[1:]):
        if not (now < before and process.half_log_snr(now) > process.half_log_snr(before)):
            raise row.wrong("t", f"it must be below that of the row before, {before}")
    return times


def _record(fields: _Fields) -> dict[str, Any]:
    for name in ("train", "validation"):
        for part in (fields.inner(name), fields.inner("start").inner(name)):
            for error in ("median", "rmse"):
                part.number(error, 0, math.inf)
    return _about(fields)


def _about(fields: _Fields) -> dict[str, Any]:
    """What the records of both say alike."""
    record = fields.values
    for name in ("train", "validation"):
        fields.inner("starts").number(name, 1, math.inf)
    for name in ("evaluations", "seconds"):
        fields.number(name, 0, math.inf)
    event, seen = record.get("event"), record.get("behaviour")
    if not isinstance(event, list) or any(type(size) is not int or size < 1 for size in cast("list[Any]", event)):
        raise fields.wrong("event", "it must be a list of whole numbers of at least 1")
    if seen is not None and not (
        isinstance(seen, list) and all(_is_number(v) or v is None for v in cast("list[Any]", seen))
    ):
        raise fields.wrong("behaviour", "it must be null or a list of finite numbers and nulls")
    return record


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


class _Fields:
    """A JSON object whose entries are asked for by name and type; ``where`` leads there from the top."""

    def __init__(self, path: str, where: str, values: Mapping[str, Any]) -> None:
        self.path, self.where, self.values = path, where, dict(values)

    def wrong(self, name: str, rule: str) -> ValueError:
        given = f"{self.values[name]!r:.60}" if name in self.values else "missing"
        return ValueError(f"path={self.path!r}: {self.where}{name} is {given}: {rule}")

    def number(self, name: str, low: float, high: float) -> float:
        value = self.values.get(name)
        if not _is_number(value) or not low <= cast("float", value) <= high:
            raise self.wrong(name, f"it must be a finite number from {low:g} to {high:g}")
        return float(cast("float", value))

    def whole(self, name: str, low: int, high: int) -> int:
        value = self.values.get(name)
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(name, f"it must be a whole number from {low} to {high}")
        return value

    def numbers(self, name: str, count: int, what: str = "one for each evaluation so far") -> tuple[float, ...]:
        value = self.values.get(name)
        if not isinstance(value, list) or len(cast("list[Any]", value)) != count:
            raise self.wrong(name, f"it must be a list of {count} numbers, {what}")
        each = _Fields(
            self.path, f"{self.where}{name}", {f"[{i}]": one for i, one in enumerate(cast("list[Any]", value))}
        )
        return tuple(each.number(f"[{i}]", -_LARGEST, _LARGEST) for i in range(count))

    def text(self, name: str) -> str:
        value = self.values.get(name)
        if not isinstance(value, str):
            raise self.wrong(name, "it must be text")
        return value

    def inner(self, name: str) -> _Fields:
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise self.wrong(name, "it must be an object")
        return _Fields(self.path, f"{self.where}{name}.", cast("dict[str, Any]", value))

    def each(self, name: str) -> list[_Fields]:
        value = self.values.get(name)
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in cast("list[Any]", value)):
            raise self.wrong(name, "it must be a list of objects")
        return [_Fields(self.path, f"{self.where}{name}[{i}].", one) for i, one in enumerate(cast("list[Any]", value))]
