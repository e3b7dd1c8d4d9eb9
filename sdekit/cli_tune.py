"""``sdekit tune``: fit solvers to a target's model, one JSON file for each number of evaluations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sdekit.tuning import Interrupted, Tuned, tune

Echo = Callable[[str], object]


def tune_to_files(
    model: Any, shape: Sequence[int], nfe: Sequence[int], out: Path, echo: Echo, progress: Any = None, **options: Any
) -> bool:
    """Tune for each of ``nfe``, write ``out/tuned-N.json`` and say what came out; False where Ctrl-C stopped it.

    >>> import tempfile, torch, sdekit as sk
    >>> model = sk.targets.Gaussian(torch.zeros(2), torch.eye(2)).model(sk.VP())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tune_to_files(model, (1, 2), [2], Path(folder), lambda line: None, starts=60, budget=2_000)
    ...     [path.name for path in Path(folder).iterdir()]
    True
    ['tuned-2.json']
    """
    for count in nfe:
        try:
            plan, whole = tune(model, shape, count, progress=progress, **options), True
        except Interrupted as stop:
            plan, whole = stop.plan, False
        if plan is not None:
            path = out / f"{plan.name}.json"
            plan.save(path)
            echo(f"{_line(plan)}\n{path}")
        if not whole:
            return False
    return True


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
