"""docs/solvers.md says what the registry says."""

import importlib.util
import re
from pathlib import Path

from sdekit.solvers import get, names

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


CHOOSING = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")


def test_what_a_solver_is_good_for_is_what_it_is():
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", CHOOSING, re.M | re.S))
    named = {
        title: [get(name) for name in re.findall(r"^\| `([^`]+)`", text, re.M)] for title, text in sections.items()
    }
    assert all(one.stochastic for one in named["Samples, with noise"])
    assert not any(
        one.stochastic for one in named["Few evaluations"] + named["An exact order"] + named["There and back"]
    )
    assert all(one.order >= 2 for one in named["An exact order"])
    assert all(one.evaluations == 1 for one in named["Few evaluations"])
    assert min(len(solvers) for solvers in named.values()) >= 2


def test_measured_is_stated():
    for name, stated, equal, uneven, *_ in ROWS:
        assert abs(min(float(equal), float(uneven)) - int(stated)) < 0.3, name


def test_the_text_is_the_scripts():
    assert PAGE.startswith(orders.INTRODUCTION + orders.HEADER), REMAKE
