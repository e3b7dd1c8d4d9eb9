"""The ``sdekit`` command: compare, sample, tune, likelihood, solvers, train.

torch is imported by the commands, not here. Whatever is wrong with an argument is one line on stderr and exit code 2.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sdekit.model import ScoreModel
    from sdekit.targets import Target

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class _Commands(TyperGroup):
    """Turns the errors that name an argument into one line."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, OSError) as error:
            typer.echo(f"sdekit: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("sdekit: interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=_Commands,
    help="Score-based SDE and ODE solvers for diffusion models, compared on real data.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
training = typer.Typer(cls=_Commands, help="Train a network that the package ships.", no_args_is_help=True)
app.add_typer(training, name="train")


@dataclass(frozen=True)
class Subject:
    """What a target's name stands for: a model, data to measure against, more data for the floor."""

    model: ScoreModel
    reference: Tensor
    real: Tensor
    features: Callable[[Tensor], Tensor] | None = None


def _digits(device: torch.device) -> Subject:
    """The shipped network, trained on real digits."""
    from sdekit.data import digits
    from sdekit.nn import digits_features, digits_model

    data = digits()
    return Subject(digits_model(device), data.held_out, data.train, digits_features())


def _digits_mixture(device: torch.device) -> Subject:
    """The same digits as a mixture: the exact network of the training set blurred by 0.1."""
    from sdekit.data import digits
    from sdekit.nn import digits_features
    from sdekit.targets import Empirical

    return _exact(Empirical(digits().train, 0.1), device, digits_features())


def _mixture_2d(device: torch.device) -> Subject:
    """Eight Gaussians on a circle, exact."""
    import torch

    from sdekit.targets import GaussianMixture

    angles = torch.arange(8) * (torch.pi / 4)
    return _exact(GaussianMixture(torch.stack([angles.cos(), angles.sin()], dim=1), 0.1), device)


def _gaussian(device: torch.device) -> Subject:
    """A correlated Gaussian in two dimensions, exact."""
    import torch

    from sdekit.targets import Gaussian

    return _exact(Gaussian(torch.tensor([1.0, -0.5]), torch.tensor([[1.0, 0.6], [0.6, 0.5]])), device)


def _exact(target: Target, device: torch.device, features: Any = None) -> Subject:
    from sdekit.process import VP

    data, more = target.sample(2048, seed=1), target.sample(2048, seed=2)
    return Subject(target.to(device).model(VP()), data, more, features)


TARGETS: dict[str, Callable[[torch.device], Subject]] = {
    "digits": _digits,
    "digits-mixture": _digits_mixture,
    "mixture-2d": _mixture_2d,
    "gaussian": _gaussian,
}

Target_ = Annotated[str, typer.Option("--target", help=f"What to sample: {', '.join(TARGETS)}.")]
Seed = Annotated[int, typer.Option(help="Seed of all noise; the same for every solver.")]
Device = Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, mps, …")]


@app.command()
def compare(
    target: Target_ = "digits",
    solvers: Annotated[str, typer.Option(help='Comma-separated, e.g. "heun,ddim(eta=0.5)", or "all".')] = "",
    nfe: Annotated[str, typer.Option(help="Network evaluations, comma-separated.")] = "5,10,20,50",
    grid: Annotated[str, typer.Option(help='Time grids, comma-separated, e.g. "logsnr,karras(rho=5)".')] = "auto",
    samples: Annotated[int, typer.Option(help="Samples in each cell.")] = 512,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for results; default out/compare-TARGET.")] = None,
    device: Device = "cpu",
) -> None:
    """Measure solvers at several budgets: a table, a picture, a contact sheet, and one JSON line a cell.

    A second run with the same --out computes only what is missing; Ctrl-C keeps what is finished.
    """
    numbers, grids = _whole_numbers("nfe", nfe), _names(grid)
    subject = _subject(target, device)
    from sdekit import report
    from sdekit.comparison import DEFAULT_SOLVERS, Interrupted
    from sdekit.comparison import compare as measure
    from sdekit.solvers import names

    specs = names() if solvers == "all" else _names(solvers) or DEFAULT_SOLVERS

    folder = Path("out", f"compare-{target}") if out is None else out
    code = 0
    try:
        with _progress() as progress:
            result = measure(
                subject.model, subject.reference, solvers=specs, nfe=numbers, grid=grids, samples=samples, seed=seed,
                real=subject.real, features=subject.features, target=target, out=folder, progress=progress,
            )  # fmt: skip
    except Interrupted as stop:
        result, code = stop.result, INTERRUPTED
    _print(report.show, result)
    paths = [folder / "results.jsonl", *report.write(result, folder)]
    typer.echo("\n" + "\n".join(str(path) for path in paths if path.exists()))
    if code:
        typer.echo(f"sdekit: {len(result.cells)} cells were finished; the same command goes on from there", err=True)
    raise typer.Exit(code)


@app.command()
def sample(
    target: Target_ = "digits",
    solver: Annotated[str, typer.Option(help='A solver, e.g. "heun" or "ddim(eta=0.5)".')] = "auto",
    nfe: Annotated[int, typer.Option(help="Network evaluations for each sample.")] = 20,
    grid: Annotated[str, typer.Option(help="Time grid; auto is the solver's own.")] = "auto",
    n: Annotated[int, typer.Option("--n", "-n", help="How many samples.")] = 64,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for samples.png and samples.safetensors.")] = Path("out/sample"),
    device: Device = "cpu",
) -> None:
    """Draw samples: a picture and a safetensors file."""
    subject = _subject(target, device)
    from safetensors.torch import save_file

    import sdekit as sk
    from sdekit import report

    shape = (n, *subject.reference.shape[1:])
    solution = sk.sample(
        subject.model, shape, solver=solver, nfe=nfe, grid=grid, seed=seed, progress=sys.stderr.isatty()
    )
    x = solution.x.cpu().contiguous()
    out.mkdir(parents=True, exist_ok=True)
    made = {"target": target, "solver": solver, "grid": grid, "nfe": str(solution.nfe), "seed": str(seed)}
    save_file({"x": x}, out / "samples.safetensors", metadata=made)
    report.pictures_of(x, subject.reference, out / "samples.png")
    typer.echo(f"{n} samples of {target} by {solver}, NFE {solution.nfe}, grid {grid}, seed {seed}")
    typer.echo(f"{out / 'samples.png'}\n{out / 'samples.safetensors'}")


@app.command()
def tune(
    target: Target_ = "digits",
    nfe: Annotated[str, typer.Option(help="Network evaluations, comma-separated; a plan for each.")] = "4,5,6,8,10",
    starts: Annotated[int, typer.Option(help="Starts of the fit; more where the data have few dimensions.")] = 200,
    budget: Annotated[int, typer.Option(help="Evaluations of one start that each fit may take.")] = 1_500_000,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for the plans, as JSON.")] = Path("plans"),
    device: Device = "cpu",
) -> None:
    """Fit a solver to the target's model for each number of evaluations; Ctrl-C keeps the best so far."""
    numbers = _whole_numbers("nfe", nfe)
    subject = _subject(target, device)
    from sdekit.cli_tune import tune_to_files

    with _progress() as progress:
        options = {"starts": starts, "budget": budget, "seed": seed, "progress": progress}
        whole = tune_to_files(subject.model, subject.reference.shape, numbers, out, typer.echo, **options)
    if not whole:
        raise typer.Exit(INTERRUPTED)


@app.command()
def likelihood(
    samples: Annotated[int | None, typer.Option(help="How many held-out digits; default all.")] = None,
    probes: Annotated[
        int | None, typer.Option(help="Probes of the divergence for each sample; default 4, what an error bar needs.")
    ] = None,
    draws: Annotated[int, typer.Option(help="Draws of each digit in its bins.")] = 1,
    method: Annotated[str, typer.Option(help='How the ODE is solved, e.g. "unipc-3" with --steps 40.')] = "per-sample",
    steps: Annotated[int | None, typer.Option(help="Steps of a method that takes a fixed number.")] = None,
    grid: Annotated[str, typer.Option(help="Time grid of a solver of the registry.")] = "auto",
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for the record.")] = Path("out/likelihood"),
    device: Device = "cpu",
) -> None:
    """Measure bits/dim of held-out digits under the shipped network; a run that was stopped goes on."""
    where = _device(device)
    from sdekit.data import DIGITS, digits
    from sdekit.likelihood import measure
    from sdekit.nn import digits_model
    from sdekit.solvers.registry import check_count

    held_out = digits().held_out.to(where)
    check_count("samples", len(held_out) if samples is None else samples, 1, "there is nothing to measure otherwise")
    with _progress() as progress:
        record = measure(
            digits_model(where), held_out[:samples], out, quantization=DIGITS, progress=progress,
            probes=probes, draws=draws, method=method, steps=steps, grid=grid, seed=seed,
        )  # fmt: skip
    errors = {name.removeprefix("error_"): value for name, value in record.items() if name.startswith("error_")}
    spread = _error(record["standard_error"], ".4f")
    typer.echo(
        f"{record['bits_per_dim']:.4f} ± {spread} bits/dim over {record['samples']} digits"
        f"\nof which {', '.join(f'{name} {_error(value)}' for name, value in errors.items())}"
        f"\n{out / 'likelihood.json'}"
    )


def _error(value: float | None, digits: str = ".2g") -> str:
    """
    >>> _error(0.0123), _error(None)
    ('0.012', 'unknown')
    """
    return "unknown" if value is None else f"{value:{digits}}"


@app.command()
def solvers(
    name: Annotated[str, typer.Argument(help="Show what this solver computes, and its source.")] = "",
) -> None:
    """List every solver: order, network evaluations of a step, whether it draws noise, options, source."""
    from sdekit import report
    from sdekit.solvers import get

    if not name:
        _print(report.show_solvers)
        return
    solver = get(name)
    typer.echo(f"{solver.name}: {inspect.getdoc(solver.rows)}\n\n{solver.reference}")
    for option, rule in solver.available.items():
        typer.echo(f"option {option}={rule.default!r}: {rule.rule}")


@training.command("digits")
def train_digits(
    out: Annotated[Path, typer.Option(help="Folder for the weights, their record and the checkpoint.")] = Path(
        "out/train"
    ),
) -> None:
    """Train the digits network that the package ships; a run that was stopped goes on."""
    from sdekit.nn.digits import train_digits as train

    record = train(out, progress=sys.stderr.isatty())
    for name in ("train_loss", "held_out_loss", "seconds"):
        if name in record:
            typer.echo(f"{name} {record[name]}")
    typer.echo(str(out / "digits.safetensors"))


@training.callback()
def _training() -> None:
    """Train a network that the package ships."""


def main() -> None:
    """The entry point."""
    # threads that spin while they wait made a network call four times as slow on a busy machine; read when torch loads
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()


def _names(text: str) -> list[str]:
    """Split at commas outside brackets.

    >>> _names("heun, ddim(eta=0.5)")
    ['heun', 'ddim(eta=0.5)']
    """
    return [part.strip() for part in re.split(r",(?![^(]*\))", text) if part.strip()]


def _whole_numbers(option: str, text: str) -> list[int]:
    """
    >>> _whole_numbers("nfe", "5,10")
    [5, 10]
    """
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", text):
        raise ValueError(f"--{option} {text!r}: whole numbers separated by commas are needed, such as 5,10")
    return [int(part) for part in text.split(",")]


def _subject(target: str, device: str) -> Subject:
    from sdekit.names import lookup

    return lookup("target", target, TARGETS)(_device(device))


def _device(name: str) -> torch.device:
    import torch

    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name!r} cannot be used: {reason}") from None


def _print(show: Callable[..., None], *what: object) -> None:
    from rich.console import Console

    show(*what, Console())


@contextmanager
def _progress() -> Generator[Callable[[str, int, int], None], None, None]:
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
    seen: set[str] = set()

    def tell(what: str, done: int, total: int) -> None:
        if what not in seen:
            seen.add(what)
            typer.echo(f"[{100 * done / max(total, 1):3.0f}%] {what}", err=True)

    return tell
