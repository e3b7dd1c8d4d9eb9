"""Every Python snippet of the README and the documentation runs, and prints what its page shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
MUST_HAVE_SNIPPETS = {"README.md", "docs/how-it-works.md", "docs/extending.md"}
# pages about packages are tested where those are installed; sbi imports tensorboard without saying so
NEEDS = {"docs/diffusers.md": ["diffusers"], "docs/azula-sbi.md": ["azula", "sbi", "tensorboard"]}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    return [code for name, code in FENCE.findall(page) if name == language]


def script(page: str) -> str:
    """The page's Python with all else blank, so that a traceback's line numbers are the page's."""
    lines = [""] * (page.count("\n") + 1)
    for found in FENCE.finditer(page):
        if found[1] == "python":
            first = page.count("\n", 0, found.start(2))
            code = found[2].splitlines()
            lines[first : first + len(code)] = code
    return "\n".join(lines)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


SNIPPETS = [page for page in PAGES if blocks(page.read_text(encoding="utf-8"), "python")]


def test_the_pages_that_teach_have_snippets() -> None:
    assert {name(page) for page in SNIPPETS} >= MUST_HAVE_SNIPPETS


@pytest.mark.parametrize("page", SNIPPETS, ids=name)
def test_snippets_run_and_print_what_the_page_shows(page: Path, tmp_path: Path) -> None:
    for needed in NEEDS.get(name(page), []):
        if find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    # a process of its own: snippets register solvers and grids, which other tests must not see
    text = page.read_text(encoding="utf-8")
    file = tmp_path / f"page-{page.stem}.py"  # a bare name would hide a package of that name
    file.write_text(script(text), encoding="utf-8")
    command = [sys.executable, "-X", "utf8", "-W", "error", file.name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # the workers use the other cores
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", timeout=300, check=False
    )
    assert run.returncode == 0, f"{name(page)}: {run.stderr}"
    shown = "".join(blocks(text, "text"))
    assert run.stdout.split() == shown.split(), f"{name(page)} prints:\n{run.stdout}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            assert (page.parent / link).exists(), f"{name(page)} links to {link}"
