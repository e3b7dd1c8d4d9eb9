"""Print docs/solvers.md: every solver with its order, stated and measured.

    python benchmarks/orders.py > docs/solvers.md

Takes a few minutes on one core. Figures are of the process and the steps that ``sdekit.testing.laws`` states.
"""

from __future__ import annotations

from itertools import takewhile

import sdekit as sk
from sdekit.solvers import Solver, get, names
from sdekit.testing import laws

LATE = sk.VP(t_min=0.02, t_max=0.6)
VARIANTS = (
    "unipc-1(variant='bh1')", "unipc-2(variant='bh1')", "unipc-3(variant='bh1')", "unipc-4(variant='bh1')",
    "unipc-3(start='single-step')", "unipc-4(start='single-step')", "dpmpp-3m-corrected(start='single-step')",
    "deis-3(start='single-step')", "deis-4(start='single-step')", "lms(order=3)", "lms(start='single-step')",
    "deis-rho-rk(order=2)", "deis-rho-rk(order=4)", "adams-eps(order=4)", "adams-eps(order=5)",
    "adams-eps(order=3, start='lower-order')", "adams-x0(order=4)", "adams-x0(order=5)",
    "adams-x0(order=3, start='lower-order')", "sa-solver(predictor=2, corrector=1, slope='published')",
)  # fmt: skip

INTRODUCTION = """# Solvers

Every registered solver, made by `python benchmarks/orders.py > docs/solvers.md`. The test suite measures each order
again and fails where it differs from the stated one by 0.3 or more.

**Stated** is the solver's `.order`: the global order that it has on every grid, so the least one measured. **Equal
steps** and **uneven steps** are the slope of the error when the number of steps doubles. Equal steps are uniform in λ
(`grid="logsnr"`); uneven ones repeat a random pattern, in which neighbours differ up to 2.5 times however many steps
there are, on a random smooth map. A deterministic solver's error is its largest distance to the exact flow map of a
three-mode mixture in one dimension, in float64, at 128 and 256 steps (uneven: 192 and 384). A stochastic solver's order
is the weak one: its error is the largest one of mean and standard deviation on two kinds of Gaussian data, exact
numbers, at 256 and 512 steps. Order 0 says that the error does not vanish with the step (consistency sampling on a
denoiser). VP from t = 1 to t = 0.02.

**From t = 0.6** is the slope on equal steps for runs that start there. At t = 1 a prediction hardly changes with t, so
a multistep method may start with an Euler step and not be seen to; at t = 0.6 it is seen, and caps the order: an Euler
step's error is O(h²), one step of UniPC-1 has O(h³). `start='single-step'` makes the first steps with a single-step
method instead. A slope well off a whole number there is the change from one regime to the other.

Some solvers have another order than their name or their paper says; each one's docstring says why. `dpmpp-3m` and
`dpm-solver-3m` as released weigh the second difference by half. `ipndm`, `ipndm-2`, `ipndm-3`, `ipndm-4` and `pndm`
have the coefficients of equal steps in σ/α: they are of order 1 where neighbouring steps differ, and of order 2 on
smooth grids, where neighbours become equal as steps are added; most named grids are smooth. `unipc-p` is of order p + 1
with its corrector, where its start lets it. A high order is no promise for 5 or 10 evaluations: there `sdekit compare`
measures.
[DPM-Solver-v3](dpm-solver-v3.md) is missing here: it is fitted to a model first. What other libraries run by default is
on the page on [them](libraries.md).

**At few evaluations** `python benchmarks/garbage.py` compares every deterministic solver that uses earlier
predictions, and variants, with DDIM on the same grid: 13 grids, 4 to 20 evaluations, 64 starts of the digits mixture
and of eight modes on a circle, by the root mean square error at t_min. These have cells above twice DDIM's (how many of
221 on the circle and of 221 on the digits, and the largest ratio); all others have none:

- `pndm`: 196 and 134, up to 66,000 times. Three Runge–Kutta steps in t take its first 12 evaluations; it is no solver
  for fewer than 20.
- `adams-eps`: 15 and 13, up to 49 times, at 4 evaluations on every grid, and once each at 5 and 6;
  `adams-x0`: 3 and 0, up to 2.8 times, at 5 and 6. Their single-step start takes 4 of the evaluations.
- `start='single-step'` of others: `deis-4` 94 and 41, `lms` 91 and 41, up to 78 times; `unipc-4` 54 and 6, `unipc-3` 38
  and 6, up to 4.1 times; `deis-3` 14 and 13, up to 49 times, at 4 and 5; `dpmpp-3m-corrected` 3 and 0, up to 2.8 times.
  `adams-eps(order=4)` 102 and 41, up to 78 times; `adams-x0(order=4)` 74 and 6, up to 4.1 times.
- `sa-solver(tau=0, predictor=2, corrector=1, slope='published')`: 3 and 0, up to 2.1 times. `ipndm-4`: 1 and 0, 2.3
  times, at 5 on `karras`.

**Evaluations** are those of each step: those of the first steps, where they differ, come first.

"""

HEADER = """| solver | stated | equal steps | uneven steps | from t = 0.6 | evaluations | source |
|---|---|---|---|---|---|---|"""


def evaluations(rule: Solver) -> str:
    """Evaluations a step, after those of a start that differs.

    >>> evaluations(get("pndm")), evaluations(get("heun"))
    ('4, 4, 4, then 1', '2')
    """
    split = [*rule.split(60)]
    usual = rule.evaluations
    start = [] if split[0] == usual else [*takewhile(lambda count: count != usual, split)]
    return ", ".join(map(str, start)) + f", then {usual}" * bool(start) or str(usual)


def declared(spec: str) -> list[str]:
    """A row's cells that need no measurement: name, order, evaluations, source."""
    rule = get(spec)
    return [f"`{spec}`", str(rule.order), evaluations(rule), rule.reference]


def row(spec: str) -> str:
    """One line of the table."""
    name, stated, cost, source = declared(spec)
    slopes = (laws.order_of(spec), laws.order_of(spec, spacing="uneven"), laws.order_of(spec, LATE))
    measured = [f"{order:.2f}" for order in slopes]
    return "| " + " | ".join([name, stated, *measured, cost, source]) + " |"


if __name__ == "__main__":
    print(INTRODUCTION + HEADER)
    for spec in sorted([*names(), *VARIANTS]):
        print(row(spec), flush=True)
