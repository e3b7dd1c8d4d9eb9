"""``sdekit invert``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdekit.cli import options
from sdekit.cli.options import BatchSize, Condition, Data, Device, Json, Model, Seed, Shape, Target
from sdekit.cli.shell import app

if TYPE_CHECKING:
    from torch import Tensor

    from sdekit.inverse import Measurement, Operator
    from sdekit.subjects import Subject


@app.command()
def invert(
    target: Target = None,
    model: Model = "",
    data: Data = "",
    shape: Shape = "",
    condition: Condition = None,
    task: Annotated[str, typer.Option(help="inpaint, superres, deblur or compressed.")] = "inpaint",
    operator: Annotated[
        str, typer.Option(help="An operator of your own instead: package.module:name of a sk.inverse Operator.")
    ] = "",
    noise: Annotated[float, typer.Option(help="Standard deviation of the measurement's noise.")] = 0.1,
    method: Annotated[str, typer.Option(help='A method, e.g. "mmps" or "dps(zeta=0.5)".')] = "mmps",
    nfe: Annotated[int, typer.Option(help="Network evaluations for each sample.")] = 50,
    solver: Annotated[str | None, typer.Option(help="A solver; default the method's own.")] = None,
    grid: Annotated[str | None, typer.Option(help="Time grid; default the method's own.")] = None,
    index: Annotated[int, typer.Option(help="Which of the data is measured.")] = 0,
    n: Annotated[int, typer.Option("--n", "-n", max=10**6, help="How many samples, or particles.")] = 64,
    batch_size: BatchSize = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for the picture, the samples and the scores.")] = Path("out/invert"),
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Measure one of the data, sample what it may have been, and say how near the samples are."""
    if n < 2:
        raise ValueError(f"--n {n}: at least 2 samples are needed")
    if not 0 <= noise < float("inf"):
        raise ValueError(f"--noise {noise}: it must be at least 0 and finite")
    subject = options.subject_of(target, model, device, data=data, shape=shape)
    from safetensors.torch import save_file

    from sdekit import inverse
    from sdekit.report.inversion import inversion

    measures = _operator(operator, task, subject)
    conditions = options.conditions_of(condition or [], n, subject, inverse.sample_posterior)
    truth = _truth(subject, index, seed)
    seen = inverse.Measurement.of(truth, measures, inverse.GaussianNoise(noise), seed)
    found = inverse.sample_posterior(
        subject.model, seen, (n, *subject.event), method=method, nfe=nfe, seed=seed, solver=solver, grid=grid,
        batch_size=batch_size, **conditions,
    )  # fmt: skip
    x = found.even().cpu().contiguous()
    record: dict[str, Any] = {
        "target": subject.name, "task": operator or task, "noise": noise, "method": method, "nfe": found.nfe,
        "gradients": found.gradients, "n": n, "seed": seed, "index": index,
        **inverse.scores(x, truth, seen, law=_law(subject, seen)),
    }  # fmt: skip
    if found.ess is not None and found.log_evidence is not None:
        record |= {"least_ess": found.ess.min().item(), "log_evidence": found.log_evidence.mean().item()}
    out.mkdir(parents=True, exist_ok=True)
    (out / "scores.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    save_file({"x": x, "y": seen.y.contiguous(), "truth": truth.contiguous()}, out / "samples.safetensors")
    inversion(x, [("truth", truth), *_shown(seen)], out / "samples.png")
    files = [out / name for name in ("samples.png", "samples.safetensors", "scores.json")]
    lines = (f"{name:<20}{value:.4g}" if isinstance(value, float) else f"{name:<20}{value}"
             for name, value in record.items())  # fmt: skip
    options.tell(as_json, "\n".join([*lines, *map(str, files)]), {**record, "files": files})


def _operator(spec: str, task: str, subject: Subject) -> Operator:
    from sdekit import inverse
    from sdekit.loading import named

    if not spec:
        return inverse.operator(task, subject.event)
    found = named(spec, "operator")
    found = found() if callable(found) and not isinstance(found, inverse.Operator) else found
    if not isinstance(found, inverse.Operator):
        raise ValueError(
            f"--operator {spec!r}: a {type(found).__name__}; it must be an Operator of sk.inverse, such as"
            " sk.inverse.Linear(function, shape), or a function without arguments that gives one"
        )
    if found.event != tuple(subject.event):
        raise ValueError(f"--operator {spec!r}: it measures {list(found.event)}, samples are {list(subject.event)}")
    return found


def _truth(subject: Subject, index: int, seed: int) -> Tensor:
    """What is measured: one of the data, or of the model's own samples where there are none."""
    if subject.reference is None:
        from sdekit import sample

        return sample(subject.model, (1, *subject.event), nfe=50, seed=seed + 1).x[0].cpu()
    if not 0 <= index < len(subject.reference):
        raise ValueError(f"--index {index}: there are {len(subject.reference)} data, from 0 on")
    return subject.reference[index].float().cpu()


def _law(subject: Subject, seen: Measurement) -> Any:
    """The exact posterior, where the model is that of a known law and the noise not 0."""
    from sdekit import inverse

    prior = getattr(getattr(subject.model, "net", None), "target", None)
    return None if prior is None or seen.noise == inverse.GaussianNoise(0.0) else inverse.posterior(prior.cpu(), seen)


def _shown(seen: Measurement) -> list[tuple[str, Tensor]]:
    """The measurement as a picture: itself where it is one, what the adjoint makes of it elsewhere."""
    if seen.y.ndim == 3 and seen.y.shape[0] in (1, 3):
        return [("measurement", seen.y)]
    return [("measurement", seen.operator.adjoint(seen.y[None])[0])] if seen.operator.linear else []
