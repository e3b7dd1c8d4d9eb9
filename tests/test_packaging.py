"""What a user installs: the wheel's contents, the pins, and the commands that the README shows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = [Requirement(line) for line in PROJECT["dependencies"]]
TEST = [Requirement(line) for line in PROJECT["optional-dependencies"]["test"]]


def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def applies(requirement: Requirement, extras: frozenset[str], python: str | None = None) -> bool:
    environment = {} if python is None else {"python_version": python, "python_full_version": f"{python}.0"}
    marker = requirement.marker
    return marker is None or any(marker.evaluate({**environment, "extra": extra}) for extra in extras | {""})


def closure(requirements: list[Requirement]) -> Iterator[str]:
    """Names of the installed distributions that the requirements lead to, directly or not."""
    waiting = [(requirement, frozenset[str]()) for requirement in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement, owner_extras = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if not applies(requirement, owner_extras) or (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            found = distribution(name)
        except PackageNotFoundError:  # the test run does not need each of them
            continue
        yield name
        waiting += [(Requirement(line), extras) for line in found.requires or []]


def of_cuda(name: str) -> bool:
    return name.startswith(("nvidia-", "cuda-")) or name == "triton"  # torch's builds pin these themselves


def test_every_direct_and_transitive_dependency_is_pinned() -> None:
    pinned = {canonicalize_name(pin.name) for pin in pins()}
    needed = {name for name in closure(CORE + TEST) if not of_cuda(name)}
    here = {canonicalize_name(requirement.name) for requirement in CORE if applies(requirement, frozenset())}
    assert needed > here  # the walk got somewhere
    assert needed <= pinned, f"constraints.txt lacks {sorted(needed - pinned)}"


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_each_python_gets_one_version_of_each_and_it_satisfies_pyproject(python: str) -> None:
    chosen: dict[str, str] = {}
    for pin in pins():
        (version,) = pin.specifier
        assert version.operator == "==", f"{pin} is not a pin"
        if applies(pin, frozenset(), python):
            name = canonicalize_name(pin.name)
            assert name not in chosen, f"two pins of {name} apply on Python {python}"
            chosen[name] = version.version
    for requirement in CORE + TEST:
        if applies(requirement, frozenset(), python):
            assert requirement.specifier.contains(chosen[canonicalize_name(requirement.name)]), requirement


def test_torch_is_pinned_to_the_tested_build() -> None:
    assert [str(pin.specifier) for pin in pins() if pin.name == "torch"] == ["==2.13.0"]


def test_core_dependencies_cover_what_the_package_imports() -> None:
    modules = {"scikit-learn": "sklearn", "pillow": "PIL"}
    declared = {modules.get(requirement.name, requirement.name) for requirement in CORE}
    imported: set[str] = set()
    doors = ROOT / "sdekit" / "interop"  # to libraries that only some users have, each imported by its first use
    for file in (one for one in (ROOT / "sdekit").rglob("*.py") if doors not in one.parents):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    optional = {"ot", "pandas"}  # of the extra "transport", and of who asks for a frame: imported by their first use
    foreign = imported - set(sys.stdlib_module_names) - {"sdekit"} - optional
    assert "torch" in foreign
    assert foreign <= declared, f"pyproject.toml lacks {sorted(foreign - declared)}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    # the build backend itself, so that nothing is downloaded
    out = tmp_path_factory.mktemp("wheel")
    build = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(out)], cwd=ROOT, check=True, capture_output=True)
    (file,) = out.glob("*.whl")
    return ZipFile(file)


def test_the_wheel_holds_the_package_its_types_and_its_weights_and_nothing_else(wheel: ZipFile) -> None:
    names = set(wheel.namelist())
    version = PROJECT["version"]
    kinds = {".py", ".safetensors", ".json"}
    files = [file for file in (ROOT / "sdekit").rglob("*") if file.suffix in kinds or file.name == "py.typed"]
    files += (ROOT / "sdekit" / "report" / "static").iterdir()  # what a report's page holds, with its licences
    expected = {file.relative_to(ROOT).as_posix() for file in files}
    assert "sdekit/py.typed" in names
    assert {name for name in names if not name.startswith(f"sdekit-{version}.dist-info/")} == expected


def test_the_wheel_says_what_it_is(wheel: ZipFile) -> None:
    info = f"sdekit-{PROJECT['version']}.dist-info"
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "\nRequires-Python: >=3.10\n" in metadata
    assert "\nLicense-Expression: MIT\n" in metadata
    assert "sdekit = sdekit.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert "The sdekit authors" in wheel.read(f"{info}/licenses/LICENSE").decode()


def test_the_readme_has_exactly_the_two_commands() -> None:
    lines = re.findall(r"^pip install .*$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert lines == [
        "pip install -c constraints.txt -e . && sdekit compare",
        "pip install -c constraints.txt -e '.[test]' && pytest",
    ]
