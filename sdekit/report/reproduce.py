"""How a comparison was made, as the page says it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from sdekit.comparison import ADAPTIVE, OWN, Cell, Comparison


def reproduce(result: Comparison, command: str, hardware: str) -> str:
    """The command, or the call, and what the records say of versions, seeds, devices and digests."""
    cells = result.cells
    facts = {
        "versions": _each(", ".join(f"{name} {version}" for name, version in cell.versions.items()) for cell in cells),
        "seeds": _each(str(cell.seed) for cell in cells),
        "device": _each(cell.device for cell in cells),
        "machine that wrote this": hardware,
        "network": _each(cell.network for cell in cells),
        "data and features": _each(cell.data for cell in cells),
    }
    listed = "".join(f"<dt>{name}</dt><dd>{escape(fact)}</dd>" for name, fact in facts.items() if fact)
    how = escape(command or call(cells))
    return f'<h3>To make it again</h3><pre class="scroll" tabindex="0"><code>{how}</code></pre><dl>{listed}</dl>'


def _each(facts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(facts))


def call(cells: Sequence[Cell]) -> str:
    """The call of ``compare`` that these cells are of; the model and the data are the caller's.

    >>> cells = [Cell("toy", "VP()", "ddim", "logsnr", n, 8, 0) for n in (5, 10)]
    >>> print(call(cells))
    sk.compare(
        model,
        reference,
        solvers=['ddim'],
        nfe=[5, 10],
        grid=['logsnr'],
        samples=8,
        seed=[0],
        target='toy',
    )
    """
    grids = list(dict.fromkeys(cell.grid for cell in cells if cell.grid not in (ADAPTIVE, OWN)))
    arguments = {
        "solvers": list(dict.fromkeys(cell.solver for cell in cells)),
        "nfe": sorted({cell.nfe for cell in cells if cell.grid != ADAPTIVE}),
        "grid": grids,
        "samples": cells[0].samples,
        "seed": list(dict.fromkeys(cell.seed for cell in cells)),
        "target": cells[0].target,
    }
    lines = [f"    {name}={value!r},\n" for name, value in arguments.items() if value != []]
    return "sk.compare(\n    model,\n    reference,\n" + "".join(lines) + ")"
