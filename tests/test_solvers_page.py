"""docs/solvers.md says what the registry says."""

import importlib.util
from pathlib import Path

from sdekit.solvers import names

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("orders", ROOT / "benchmarks" / "orders.py")
orders = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(orders)

PAGE = (ROOT / "docs" / "solvers.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in PAGE.splitlines() if line.startswith("| `")]
REMAKE = "python benchmarks/orders.py > docs/solvers.md"


def test_every_solver_has_its_row():
    assert {row[0].strip("`") for row in ROWS} == {*names(), *orders.VARIANTS}, REMAKE


def test_rows_agree_with_the_registry():
    for name, stated, _, _, _, *rest in ROWS:
        assert [name, stated, *rest] == orders.declared(name.strip("`")), REMAKE


def test_measured_is_stated():
    for name, stated, equal, uneven, *_ in ROWS:
        assert abs(min(float(equal), float(uneven)) - int(stated)) < 0.3, name


def test_the_text_is_the_scripts():
    assert PAGE.startswith(orders.INTRODUCTION + orders.HEADER), REMAKE
