"""What the distribution promises: names, versions, files, and the commands that its documents give."""

from __future__ import annotations

import ast
import importlib.metadata as metadata
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import sti_hf

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "sti_hf").rglob("*.py"))
DOCUMENTS = ("README.md", "CONTRIBUTING.md")


def requirements(extra: str = "") -> dict[str, Requirement]:
    """What `pip install sti-hf`, or `sti-hf[extra]`, asks for, by name."""
    found = (Requirement(line) for line in metadata.requires("sti-hf") or [])
    asked = (one for one in found if one.marker is None or one.marker.evaluate({"extra": extra}))
    return {canonicalize_name(one.name): one for one in asked}


def optional_requirements() -> dict[str, Requirement]:
    """What the extras for users ask for, by name."""
    return requirements("eval") | requirements("report")


def constraints() -> dict[str, Requirement]:
    """Lines of constraints.txt, by name."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in pins}


def test_version_is_the_distributions() -> None:
    assert sti_hf.__version__ == metadata.version("sti-hf")


def test_sti_command_resolves() -> None:
    (command,) = metadata.entry_points(group="console_scripts", name="sti")
    assert callable(command.load())


def test_optimum_cli_finds_the_command() -> None:
    from optimum.commands.optimum_cli import load_optimum_namespace_cli_commands

    names = [command.COMMAND.name for command, _ in load_optimum_namespace_cli_commands()]
    assert names.count("sti") == 1


def test_types_are_shipped() -> None:
    assert files("sti_hf").joinpath("py.typed").is_file()


def test_licence_is_shipped() -> None:
    assert metadata.metadata("sti-hf")["License-Expression"] == "Apache-2.0"
    (licence,) = (file for file in metadata.files("sti-hf") or [] if file.match("*.dist-info/licenses/LICENSE"))
    assert licence.read_text() == (ROOT / "LICENSE").read_text()


def test_constraints_pin_every_requirement_within_its_range() -> None:
    pins = constraints()
    for pin in pins.values():
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), f"{pin} is not a pinned version"
        assert pin.url is None
    for name, requirement in requirements("dev").items() | optional_requirements().items():
        if name == "sti-hf":
            continue
        (pin,) = pins[name].specifier
        assert requirement.specifier.contains(pin.version), f"constraints.txt has {pins[name]}, not {requirement}"


def imports(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """Top-level names of the modules that are imported, and whether importing the file imports them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        else:
            continue
        for name in names:
            yield name.partition(".")[0], node in tree.body


@cache
def distributions() -> dict[str, set[str]]:
    """Names of the distributions that hold a top-level module."""
    return {
        module: {canonicalize_name(name) for name in names}
        for module, names in metadata.packages_distributions().items()
    }


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_are_declared(source: Path) -> None:
    core = requirements().keys() | {"sti-hf"}
    optional = core | optional_requirements().keys()
    for module, at_import in imports(ast.parse(source.read_text())):
        if module in sys.stdlib_module_names or module == "sti_hf":
            continue
        declared = core if at_import else optional
        assert distributions().get(module, set()) & declared, f"{module} is not among the dependencies"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_documents_exist(document: str) -> None:
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", (ROOT / document).read_text(), flags=re.DOTALL))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", code))
    scripts = set(re.findall(r"\bpython ([\w/]+\.py)", code))
    assert {"demo", "test"} <= named <= targets
    assert not [script for script in scripts if not (ROOT / script).is_file()]
