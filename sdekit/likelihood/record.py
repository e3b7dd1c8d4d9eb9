"""The likelihood of a data set, batch by batch, in a file that a run goes on from: what ``sdekit likelihood`` calls."""

from __future__ import annotations

import json
import math
import os
import secrets
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sdekit.data import Quantization
from sdekit.files import write_whole
from sdekit.identity import Behaviour, UnidentifiedError, alike, behaviour, identify
from sdekit.likelihood.density import log_prob
from sdekit.sampling import Model
from sdekit.solvers.registry import check_count


def measure(
    model: Model,
    x: Float[Tensor, "n *event"],
    out: str | os.PathLike[str],
    *,
    quantization: Quantization,
    batch_size: int = 64,
    progress: Callable[[str, int, int], None] | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Bits/dim of every sample of x, as one JSON record; written to ``out``/likelihood.json.

    Each finished batch is a line of ``out``/batches.jsonl. A run that was stopped goes on after the last whole line;
    its result is the same, since a sample's random numbers depend on its place in x alone.

    Args:
        arguments: those of ``log_prob``, as JSON values.

    Raises ValueError where ``out`` holds batches of another model, other data or other arguments. A model that holds
    what cannot be read, such as a generator or a lock (``identity``), is warned of: its run cannot be gone on from.

    >>> import tempfile
    >>> from sdekit import VP, targets
    >>> q = Quantization(bins=8, scale=0.25)
    >>> target = targets.Gaussian(torch.zeros(2), torch.eye(2))
    >>> x = q.values(torch.tensor([[3, 4], [5, 2], [4, 4]]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     record = measure(target.model(VP()), x, folder, quantization=q, batch_size=2)
    >>> record["samples"], 1 < record["bits_per_dim"] < 4
    (3, True)
    """
    check_count("batch_size", batch_size, 1, "it is how many samples are solved at once")
    folder = Path(out)
    about = {"samples": len(x), "batch_size": batch_size, "quantization": vars(quantization).copy(), **arguments}
    about |= {"model": _identity(model, out), "data": identify(x)}
    lines = _finished(folder, about, behaviour(model, x.shape[1:]))
    with (folder / "batches.jsonl").open("a") as file:
        for first in range(len(lines) * batch_size, len(x), batch_size):
            found = log_prob(model, x[first : first + batch_size], quantization=quantization, first=first, **arguments)
            unit, errors = x[0].numel() * math.log(2), found.stderr
            parts = {**errors.parts, "probes": errors.estimates.plain, "dequantisation": errors.draws.plain}
            line = {
                "bits_per_dim": found.bits_per_dim.tolist(),
                **{name: _numbers(part / unit) for name, part in parts.items()},
                "nfe": found.nfe.tolist(),
            }
            lines.append(line)
            file.write(json.dumps(line) + "\n")
            file.flush()
            if progress is not None:
                progress("log density", min(first + batch_size, len(x)), len(x))
    record = {**about, **_summary(lines)}
    (folder / "likelihood.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def _numbers(values: Tensor) -> list[float | None]:
    """JSON has no NaN: null stands for an error that is not known."""
    return [None if math.isnan(value) else value for value in values.tolist()]


def _identity(model: Model, out: str | os.PathLike[str]) -> str:
    """The model's digest; where it has none, one that no other run has."""
    try:
        return identify(model)
    except UnidentifiedError as error:
        warnings.warn(f"model: {error}: a stopped run in out={os.fspath(out)!r} cannot be gone on from", stacklevel=3)
        return f"unidentified-{secrets.token_hex(8)}"


def _finished(folder: Path, about: dict[str, Any], found: Behaviour) -> list[dict[str, Any]]:
    """The batches of an earlier run; the file's first line says of what run. A line cut short by a kill is dropped."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "batches.jsonl"
    texts = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole: list[dict[str, Any]] = [json.loads(text) for text in texts if text.endswith("\n")]
    if whole:
        _check_same(folder, whole[0], about, found)
    kept = whole or [{**about, "behaviour": found}]
    write_whole(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
    return kept[1:]


def _check_same(folder: Path, stored: dict[str, Any], about: dict[str, Any], found: Behaviour) -> None:
    asked = json.loads(json.dumps(about))
    others = {name for name in stored.keys() | asked.keys() if stored.get(name) != asked.get(name)} - {"behaviour"}
    if not alike(tuple(stored.get("behaviour", ())), found):
        others.add("model")
    if others:
        named = [{"model": "another model", "data": "other data"}[name] for name in ("model", "data") if name in others]
        if others - {"model", "data"}:
            shown = {name: value for name, value in stored.items() if name not in ("model", "data", "behaviour")}
            named.append(f"other arguments: {shown}")
        raise ValueError(f"out={str(folder)!r} holds a run with {' and '.join(named)}; choose another folder")


def _summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard errors, as ``LogLikelihood.summary`` has them."""
    whole = {
        name: torch.tensor([math.nan if v is None else v for line in lines for v in line[name]], dtype=torch.float64)
        for name in lines[0]
    }
    bits, n = whole["bits_per_dim"], len(whole["bits_per_dim"])
    random = {f"error_{name}": whole[name].square().mean().sqrt().item() / math.sqrt(n)
              for name in ("probes", "dequantisation")}  # fmt: skip
    return {
        "bits_per_dim": bits.mean().item(),
        "standard_error": bits.std().item() / math.sqrt(n) if n > 1 else None,
        **{name: None if math.isnan(value) else value for name, value in random.items()},
        **{f"error_{name}": _numbers(whole[name].mean()[None])[0] for name in ("solver", "prior")},
        "nfe": whole["nfe"].mean().item(),
    }
