"""``sdekit tune``: fit solvers to a model, one JSON file for each number of evaluations."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdekit.cli import options
from sdekit.cli.options import Condition, Data, Device, Json, Model, Seed, Shape, Target
from sdekit.cli.shell import INTERRUPTED, app

if TYPE_CHECKING:
    from sdekit.tuning import Family, Tuned

Echo = Callable[[str], object]


@app.command()
def tune(
    target: Target = None,
    model: Model = "",
    data: Data = "",
    shape: Shape = "",
    condition: Condition = None,
    nfe: Annotated[
        str,
        typer.Option(help="Network evaluations, comma-separated, a plan for each; 4-20 is one plan for all of them."),
    ] = "4,5,6,8,10",
    starts: Annotated[
        int | None,
        typer.Option(
            min=3, max=10**6, help="Starts of the fit; by default 200, more where the data have few dimensions."
        ),
    ] = None,
    budget: Annotated[
        int | None, typer.Option(help="Evaluations of one start that each fit may take; by default 5,000 a start.")
    ] = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for the plans, as JSON.")] = Path("plans"),
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Fit a solver to the model for each number of evaluations; Ctrl-C keeps the best so far."""
    numbers = _range(nfe) or options.whole_numbers("nfe", nfe, "4,5,6")
    subject = options.subject_of(target, model, device, data=data, shape=shape)
    import sdekit as sk
    from sdekit.tuning.fit import starts_for

    starts = starts_for(math.prod(subject.event)) if starts is None else starts
    told = options.conditions_of(condition or [], starts, subject, sk.tune)
    with options.progress() as progress:
        settings = {"starts": starts, "budget": budget, "seed": seed, "progress": progress, **told}
        made = list[str]()
        echo = made.append if as_json else typer.echo
        whole = tune_to_files(subject.model, (starts, *subject.event), numbers, out, echo, **settings)
    if as_json:
        files = [Path(told.splitlines()[-1]) for told in made]
        plans = [{"file": file, **json.loads(file.read_text(encoding="utf-8"))["record"]} for file in files]
        options.tell(True, "", plans)
    if not whole:
        raise typer.Exit(INTERRUPTED)


def tune_to_files(
    model: Any, shape: Sequence[int], nfe: Sequence[int], out: Path, echo: Echo, progress: Any = None, **settings: Any
) -> bool:
    """Tune for each of ``nfe``, one family for a range, write ``out/tuned-N.json`` and say what came out; False where
    Ctrl-C stopped it.

    >>> import tempfile, torch, sdekit as sk
    >>> model = sk.targets.Gaussian(torch.zeros(2), torch.eye(2)).model(sk.VP())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tune_to_files(model, (1, 2), [2], Path(folder), lambda line: None, starts=60, budget=2_000)
    ...     [path.name for path in Path(folder).iterdir()]
    True
    ['tuned-2.json']
    """
    from sdekit.tuning import Interrupted, tune, tune_family

    family: list[tuple[Any, ...]] = [(tune_family, nfe, _lines)]
    for fit, count, told in family if isinstance(nfe, range) else [(tune, count, _line) for count in nfe]:
        try:
            plan, whole = fit(model, shape, count, progress=progress, **settings), True
        except Interrupted as stop:
            plan, whole = stop.plan, False
        if plan is not None:
            path = out / f"{plan.name}.json"
            plan.save(path)
            echo(f"{told(plan)}\n{path}")
        if not whole:
            return False
    return True


def _range(text: str) -> range | None:
    """
    >>> _range("4-20"), _range("4,5")
    (range(4, 21), None)
    """
    found = re.fullmatch(r"(\d{1,4})-(\d{1,4})", text.strip())
    return range(int(found[1]), int(found[2]) + 1) if found else None


def _lines(family: Family) -> str:
    record = family.record
    parts = [
        f"NFE {nfe}: median error {now['median']:.3g} against {before['median']:.3g}, RMSE {now['rmse']:.3g} against"
        f" {before['rmse']:.3g} of {family.curve.solver} on {family.curve.grid}"
        for nfe, now in record["validation"].items()
        for before in [record["start"][nfe]]
    ]
    end = "no fit was better on unseen starts; " * (record["stage"] == "search")
    return "\n".join([*parts, f"{end}{record['evaluations']} evaluations, {record['seconds']:.0f} s"])


def _line(plan: Tuned) -> str:
    record = plan.record
    start, now = record["start"], record["validation"]
    before = start["validation"]
    origin = f"{start['solver']} on {start['grid']}"
    if record["stage"] == "search":
        return f"NFE {plan.nfe}: {origin}, median error {before['median']:.3g}; no fit was better on unseen starts"
    return (
        f"NFE {plan.nfe}: median error {now['median']:.3g} against {before['median']:.3g} of {origin}, RMSE"
        f" {now['rmse']:.3g} against {before['rmse']:.3g}, on {record['starts']['validation']} unseen starts;"
        f" {record['evaluations']} evaluations, {record['seconds']:.0f} s"
    )
