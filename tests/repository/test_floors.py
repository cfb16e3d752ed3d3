"""The contracts of `nox -s layers` speak of every file, and the rules that import-linter does not see."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
CONTRACTS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
LIBRARIES = ("fabric", "trainer", "tuner", "cli")
KNOT = "fulmen.trainer._typing -> fulmen.trainer.trainer"


def root_of(library: str) -> Path:
    return REPOSITORY / "packages" / library / "src" / "fulmen" / library


def modules_of(library: str) -> dict[str, Path]:
    """Every module by its dotted name."""
    source = root_of(library).parents[1]
    found = {}
    for path in root_of(library).rglob("*.py"):
        parts = path.relative_to(source).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path) -> Iterator[tuple[str, str | None]]:
    """(module, name) for `from module import name`, (module, None) for `import module`; anywhere in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)


@pytest.mark.parametrize("library", ["fabric", "trainer"])
def test_every_room_has_its_floor_once(library):
    (contract,) = [each for each in CONTRACTS if each.get("containers") == [f"fulmen.{library}"]]
    assert contract["exhaustive"]
    rooms = [room.strip() for floor in contract["layers"] for room in floor.split("|")]
    there = {
        path.stem for path in root_of(library).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert sorted(rooms) == sorted(there - {"__init__"})


def test_the_only_import_that_a_contract_overlooks_is_the_knot():
    assert {ignored for contract in CONTRACTS for ignored in contract.get("ignore_imports", [])} == {KNOT}


def test_the_knot_names_one_class_for_annotations_only():
    knot = root_of("trainer") / "_typing.py"
    assert len(knot.read_text().splitlines()) <= 25
    assert [name for module, name in imports_of(knot) if module.startswith("fulmen.")] == ["Trainer"]


def test_nobody_but_the_faces_and_the_knot_names_the_trainer():
    namers = {
        module
        for module, path in modules_of("trainer").items()
        if any(source == "fulmen.trainer.trainer" for source, _ in imports_of(path))
    }
    assert namers <= {"fulmen.trainer", "fulmen.trainer._typing", "fulmen.trainer.utilities"}


@pytest.mark.parametrize("library", LIBRARIES)
def test_nothing_inside_a_package_imports_a_face(library):
    modules = modules_of(library)
    faces = {name for name, path in modules.items() if is_face(path)}
    offences = [
        f"{module}: from {source} import {name}"
        for module, path in modules.items()
        if module not in faces
        for source, name in imports_of(path)
        # `from fulmen.trainer.loops import when` names a module, not what a face hands out.
        if source in faces and f"{source}.{name}" not in modules
    ]
    assert offences == []


def is_face(path: Path) -> bool:
    return path.name == "__init__.py" or any(name == "lazy_face" for _, name in imports_of(path))
