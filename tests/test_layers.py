"""The package is a stack: no module needs one above it, nor by a name that is looked up when it is used."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import sdekit

ROOT = Path(sdekit.__file__).parent
PARTS = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()} - {"__init__"}


def named(tree: ast.AST) -> Iterator[str]:
    """Modules that a file imports, at its top or inside functions, or names in a call of ``import_module``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (argument.value for argument in node.args if isinstance(argument, ast.Constant))


def needs(sources: dict[Path, str]) -> dict[str, set[str]]:
    """Which parts of the package (modules and packages right below its root) each part names."""
    graph: dict[str, set[str]] = {}
    for path, source in sources.items():
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        words = [name.split(".") for name in named(ast.parse(source))]
        others = {word[1] for word in words if word[0] == "sdekit" and len(word) > 1} & PARTS
        graph.setdefault(part, set()).update(others - {part})
    return graph


def order(sources: dict[Path, str]) -> list[str]:
    return list(TopologicalSorter(needs(sources)).static_order())


def files() -> dict[Path, str]:
    # the root names everything, lazily, and nothing needs it to be imported
    return {path: path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"}


def test_no_part_needs_itself_by_way_of_others() -> None:
    assert set(order(files())) == PARTS


@pytest.mark.parametrize("line", ["import_module('sdekit.sampling')", "from sdekit import sampling"])
def test_a_circle_is_found(line: str) -> None:
    sources = files()
    sources[ROOT / "solvers" / "__init__.py"] += f"\ndef later():\n    {line}\n"
    with pytest.raises(CycleError, match=r"sampling.*solvers|solvers.*sampling"):
        order(sources)
