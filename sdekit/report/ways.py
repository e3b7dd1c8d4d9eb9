"""The page's pictures of how samples come about: paths, and where the law is known its density and score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from sdekit import plots
from sdekit.adaptive import named
from sdekit.comparison import OWN, Cell, Comparison
from sdekit.door import door
from sdekit.identity import uncounted
from sdekit.ranking import columned
from sdekit.report.pictures import png
from sdekit.sampling import Model, as_rows, conditions_of
from sdekit.solvers import get
from sdekit.targets import Target

_ROWS = 6  # solvers that are followed
_PATHS, _IMAGES = 10, 2


@dataclass(frozen=True)
class Drawn:
    """A picture of the page: PNG, and what is said of it."""

    title: str
    about: str
    png: bytes = field(repr=False)


@door
@dataclass(frozen=True)
class Origin:
    """What a comparison was of, as far as pictures need it.

    Attributes:
        model: whose samples they are.
        law: the data's exact law, of ``sdekit.targets``, where it is known.
        conditions: what ``compare`` was given by name.
    """

    model: Model
    law: Target | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict[str, Any])


def pictures_of_ways(result: Comparison, origin: Origin) -> list[Drawn]:
    """Paths of a few samples by the first solvers of the comparison; in one or two dimensions over the exact density,
    and in two the score, where the law is known.

    Rows that are no solver of the registry are not followed: other libraries' samplers show no states.
    """
    if not (chosen := _followed(result)):
        return []
    titles: dict[str, Callable[..., tuple[Figure, str]]] = {"From noise to samples": _paths}
    if origin.law is not None and origin.law.event.numel() <= 2:
        titles["Paths over the exact density"] = _over_density
        if origin.law.event.numel() == 2:
            titles["Score and density"] = _score
    with uncounted(origin.model):
        return [_drawn(title, draw, result, origin, *chosen) for title, draw in titles.items()]


def _drawn(title: str, draw: Callable[..., tuple[Figure, str]], *given: object) -> Drawn:
    try:
        figure, about = draw(*given)
    except ValueError as error:  # a density that no window holds, say: the rest of the page stands without
        return Drawn(title, f"Not drawn: {error}", b"")
    return Drawn(title, about, png(figure, 100))


def _followed(result: Comparison) -> tuple[int, str, list[str]] | None:
    """The middle NFE, the first grid, and the first solvers that have a cell there."""
    cells = [cell for cell in columned(result.cells) if cell.metrics and cell.grid != OWN and _known(cell)]
    if not cells:
        return None
    numbers = sorted({cell.nfe for cell in cells})
    nfe, grid = numbers[(len(numbers) - 1) // 2], cells[0].grid
    solvers = dict.fromkeys(cell.solver for cell in cells if (cell.nfe, cell.grid) == (nfe, grid))
    return (nfe, grid, list(solvers)[:_ROWS]) if solvers else None


def _known(cell: Cell) -> bool:
    """Whether its name says the whole of it: a fitted solver's, or that of given times, does not."""
    try:
        rule = None if named(cell.solver) else get(cell.solver)
    except ValueError:
        return False
    return rule is not None and " times " not in cell.grid


def _paths(result: Comparison, origin: Origin, nfe: int, grid: str, solvers: list[str]) -> tuple[Figure, str]:
    event = result.real.shape[1:]
    images = len(event) == 3 and event[0] in (1, 3)
    n, total = min(_IMAGES if images else _PATHS, result.cells[0].samples), result.cells[0].samples
    given = conditions_of(as_rows(origin.model, origin.conditions, total), total, 0, n)
    drawn = plots.trajectories(
        origin.model, (n, *event), solvers, nfe=nfe, grid=grid, seed=result.cells[0].seed, data=result.real, **given
    )
    what = "images" if images else "paths"
    return drawn, f"Step by step, {what} of the same starts by {', '.join(solvers)} at NFE {nfe}, grid {grid}."


def _over_density(_: Comparison, origin: Origin, nfe: int, grid: str, solvers: list[str]) -> tuple[Figure, str]:
    assert origin.law is not None
    drawn = plots.reverse_diffusion(
        origin.law, origin.model.process, model=origin.model, solvers=solvers[:3], nfe=nfe, grid=grid, samples=512
    )
    return drawn, f"Paths of {', '.join(solvers[:3])} at NFE {nfe} over the exact density of the data."


def _score(_: Comparison, origin: Origin, *__: object) -> tuple[Figure, str]:
    assert origin.law is not None
    drawn = plots.score_field(origin.law, origin.model.process, model=origin.model)
    about = "The model's score as arrows over the exact log-density, at three times: to where data are denser."
    return drawn, about


def packed(found: Sequence[Drawn]) -> tuple[dict[str, Tensor], list[list[str]]]:
    """As tensors and words, for a file of tensors."""
    tensors = {f"figure-{i}": torch.frombuffer(bytearray(one.png), dtype=torch.uint8) for i, one in enumerate(found)}
    return tensors, [[one.title, one.about] for one in found]


def unpacked(tensors: Mapping[str, Tensor], words: list[list[str]]) -> list[Drawn]:
    """The inverse of ``packed``."""
    return [
        Drawn(title, about, bytes(tensors[f"figure-{i}"].tolist()))
        for i, (title, about) in enumerate(words)
        if f"figure-{i}" in tensors
    ]
