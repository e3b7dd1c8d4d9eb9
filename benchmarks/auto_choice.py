"""How ``auto`` is chosen from measured cells, what that rule chooses without a problem, and the tables of the docs.

The rule, at each number of evaluations: of the candidates, the one with the least mean over data sets of its median
error in units of the best candidate's there (the mean of the ratios, not of their logarithms, so that one bad problem
counts), with the two neighbouring budgets at half weight. Problems of one data set (``family``) share one weight, and
are left out together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Protocol

import torch
from torch import Tensor

Choice = tuple[str, str]
AUTO = ("auto", "auto")
NEIGHBOUR = 0.5


class Measured(Protocol):
    """What is asked of a cell."""

    problem: str
    solver: str
    grid: str
    nfe: int
    errors: Sequence[float]

    @property
    def median(self) -> float: ...


Table = dict[int, dict[str, dict[Choice, float]]]
"""The median error by budget, problem and choice."""


def family(problem: str) -> str:
    """The data set of a problem.

    >>> family("digits-net-labels/vp")
    'digits'
    """
    return problem.split("/")[0].split("-")[0]


def is_flow(problem: str) -> bool:
    return problem.endswith("/flow")


def tabulate(cells: Iterable[Measured]) -> Table:
    found: Table = {}
    for cell in cells:
        found.setdefault(cell.nfe, {}).setdefault(cell.problem, {})[cell.solver, cell.grid] = cell.median
    return found


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def geometric(values: Sequence[float]) -> float:
    return math.exp(mean([math.log(value) for value in values]))


def costs(rows: Mapping[str, Mapping[Choice, float]], without: str = "", like: str = "") -> dict[Choice, float]:
    """The mean ratio of each choice over the data sets but ``without``, problems of one data set first.

    With ``like``, a problem, over those whose process is flow matching as its is, or is not as its is not.
    """
    families: dict[str, list[dict[Choice, float]]] = {}
    for name, row in rows.items():
        if family(name) != without and (not like or is_flow(like) == is_flow(name)):
            best = min(row.values())
            families.setdefault(family(name), []).append({one: error / best for one, error in row.items()})
    choices = next(iter(rows.values()))
    return {one: mean([mean([row[one] for row in part]) for part in families.values()]) for one in choices}


def choose(table: Table, nfe: int, without: str = "", like: str = "") -> Choice:
    """The rule's choice for that budget."""
    budgets = sorted(table)
    place = budgets.index(nfe)
    near = [(budgets[i], NEIGHBOUR) for i in (place - 1, place + 1) if 0 <= i < len(budgets)]
    parts = [(costs(table[n], without, like), weight) for n, weight in [(nfe, 1.0), *near]]

    def cost(one: Choice) -> float:
        known = [(part[one], weight) for part, weight in parts if one in part]
        return sum(value * weight for value, weight in known) / sum(weight for _, weight in known)

    return min(parts[0][0], key=cost)


def markdown(title: str, names: Sequence[str], columns: Sequence[int], value: Callable[[str, int], float]) -> str:
    """A table of ratios, problem by problem, and their geometric mean and largest."""
    lines = [f"| {title} | " + " | ".join(map(str, columns)) + " |", "|---" * (len(columns) + 1) + "|"]
    ratios = {name: [value(name, nfe) for nfe in columns] for name in names}
    lines += [f"| {name} | " + " | ".join(f"{ratio:.2f}" for ratio in row) + " |" for name, row in ratios.items()]
    for label, summary in (("mean", geometric), ("worst", max)):
        row = [f"**{summary([ratios[name][i] for name in names]):.2f}**" for i in range(len(columns))]
        lines.append(f"| **{label}** | " + " | ".join(row) + " |")
    return "\n".join(lines)


def portfolio(rows: Mapping[str, Mapping[Choice, float]], count: int, without: str) -> tuple[Choice, ...]:
    """The ``count`` choices whose better one is nearest to the best in the mean over problems of other data sets."""
    logs = [
        {one: math.log(error / min(row.values())) for one, error in row.items()}
        for name, row in rows.items()
        if family(name) != without
    ]
    choices = set.intersection(*(set(row) for row in logs))
    return min(combinations(sorted(choices), count), key=lambda few: sum(min(row[c] for c in few) for row in logs))


STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "median": lambda errors: errors.quantile(0.5, dim=-1),
    "90%": lambda errors: errors.quantile(0.9, dim=-1),
    "RMSE": lambda errors: errors.square().mean(-1).sqrt(),
}
DRAWS = 200  # of the bootstrap


def summary(cells: Sequence[Measured], columns: Sequence[int]) -> str:
    """``auto``'s mean ratio to the best candidate by each statistic, with bootstrap 95% intervals over starts."""
    generator = torch.Generator().manual_seed(0)
    lines = [f"| mean ratio | {' | '.join(map(str, columns))} |", "|---" * (len(columns) + 1) + "|"]
    entries: dict[str, list[str]] = {name: [] for name in STATISTICS}
    for nfe in columns:
        logs: dict[str, list[Tensor]] = {name: [] for name in STATISTICS}
        here = [cell for cell in cells if cell.nfe == nfe]
        for problem in dict.fromkeys(cell.problem for cell in here):
            rows = sorted((c for c in here if c.problem == problem), key=lambda c: (c.solver, c.grid) != AUTO)
            errors = torch.tensor([row.errors for row in rows], dtype=torch.float64)
            n = errors.shape[1]
            picks = torch.cat([torch.arange(n)[None], torch.randint(n, (DRAWS, n), generator=generator)])
            for name, statistic in STATISTICS.items():
                values = statistic(errors[:, picks])  # [candidates, 1 + draws], auto's first
                logs[name].append((values[0] / values[1:].amin(0)).log())
        for name, parts in logs.items():
            means = torch.stack(parts).mean(0).exp()
            low, high = means[1:].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
            entries[name].append(f"{means[0]:.2f} ({low:.2f}–{high:.2f})")
    return "\n".join(lines + [f"| {name} | {' | '.join(row)} |" for name, row in entries.items()])


def tables(cells: Sequence[Measured], peers: Sequence[str]) -> Iterator[str]:
    """``auto`` and the left-out choice against the best candidate, ``auto`` against the best peer, the choices."""
    every = tabulate(cells)
    fixed: Table = {
        nfe: {
            name: {one: e for one, e in row.items() if one != AUTO and one[0] not in peers}
            for name, row in rows.items()
        }
        for nfe, rows in every.items()
    }
    columns, names = sorted(every), list(next(iter(every.values())))

    def left_out(name: str, nfe: int, like: str = "") -> float:
        row = fixed[nfe][name]
        return row[choose(fixed, nfe, family(name), like)] / min(row.values())

    def best_peer(name: str, nfe: int) -> float:
        return min(error for (solver, _), error in every[nfe][name].items() if solver in peers)

    yield markdown("auto", names, columns, lambda name, nfe: every[nfe][name][AUTO] / min(fixed[nfe][name].values()))
    yield markdown("left out", names, columns, left_out)
    yield markdown("left out, by process", names, columns, lambda name, nfe: left_out(name, nfe, name))
    for count in (2, 3):
        few = {(n, data): portfolio(fixed[n], count, data) for n in columns for data in {family(x) for x in names}}
        yield markdown(
            f"better of {count}, left out", names, columns,
            lambda x, n, few=few: min(fixed[n][x][c] for c in few[n, family(x)]) / min(fixed[n][x].values()),
        )  # fmt: skip
    yield summary([cell for cell in cells if cell.solver not in peers], columns)
    if any(solver in peers for solver, _ in every[columns[0]][names[0]]):
        yield markdown("peers", names, columns, lambda name, nfe: every[nfe][name][AUTO] / best_peer(name, nfe))
    yield "\n".join(f"{nfe}: {choose(fixed, nfe)}" for nfe in columns)
