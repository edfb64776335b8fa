"""The house is as CONTRIBUTING.md says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sti_hf"
LONGEST_FILE, LONGEST_CLASS, LONGEST_SESSION = 300, 150, 120

FILES = sorted(path for folder in ("sti_hf", "tests", "eval", "examples") for path in (ROOT / folder).rglob("*.py"))
NATIVE = sorted(path for ending in ("*.cpp", "*.h") for path in (PACKAGE / "native").rglob(ending))
MODULES = sorted(PACKAGE.rglob("*.py"))


def floors() -> list[str]:
    """The folders and files of the table in CONTRIBUTING.md, from the top down."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| `sti_hf/([\w/.]+)`((?:, `[\w/.]+`)*) \|", text, re.MULTILINE)
    return [name.rstrip("/").removesuffix(".py") for name, _ in rows]


def floor_of(name: str) -> str:
    """The floor that a module is on, such as "planning" for "planning.cost"."""
    return name.split(".")[0]


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Lines and names of the modules of the package that a file imports, wherever in the file; but for typing."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for guard in ast.walk(tree)
        if isinstance(guard, ast.If) and ast.unparse(guard.test) == "TYPE_CHECKING"
        for node in ast.walk(guard)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sti_hf":
            names = [node.module] if node.module != "sti_hf" else [f"sti_hf.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("sti_hf.")]
        else:
            continue
        yield from ((node.lineno, name.removeprefix("sti_hf.")) for name in names)


def test_the_table_names_every_folder_and_file() -> None:
    found = {
        path.stem if path.is_file() else path.name
        for path in PACKAGE.iterdir()
        if (path.is_dir() and any(path.glob("*.py"))) or (path.suffix == ".py" and path.stem != "__init__")
    }
    assert set(floors()) == found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_folder_imports_only_from_those_above_it(path: Path) -> None:
    place = path.relative_to(PACKAGE)
    if place.name == "__init__.py" and len(place.parts) == 1:
        return  # the package itself gives names of all floors
    order = floors()
    own = floor_of(place.with_suffix("").parts[0])
    below = [
        f"line {line} imports sti_hf.{name}"
        for line, name in imports_of(path)
        if floor_of(name) != own and order.index(floor_of(name)) > order.index(own)
    ]
    assert not below


@pytest.mark.parametrize("path", [*FILES, *NATIVE], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_classes_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST_FILE
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                longest = LONGEST_SESSION if node.name == "STISession" else LONGEST_CLASS
                assert (node.end_lineno or 0) - node.lineno < longest, node.name


def test_planning_needs_numpy_alone() -> None:
    import subprocess
    import sys

    code = (
        "import sys, types; package = types.ModuleType('sti_hf'); package.__path__ = [sys.argv[1]]; "
        "sys.modules['sti_hf'] = package; import sti_hf.planning; "
        "assert not {'torch', 'transformers', 'accelerate'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(PACKAGE)], check=True, cwd=ROOT)


LOCKED_IN_A_FORKED_CHILD = re.compile(
    r"from functools import .*cached_property|@functools\.cached_property|^\w+ = .*\.R?Lock\(", re.M
)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_locks_of_a_process_are_those_that_forked_children_find_free(path: Path) -> None:
    assert not LOCKED_IN_A_FORKED_CHILD.search(path.read_text())
