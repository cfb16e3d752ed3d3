"""The distributions: what they declare, and what is in their wheels."""

import ast
import os
import re
import tomllib
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
BELOW = {"fabric": (), "trainer": ("fabric",), "tuner": ("fabric", "trainer"), "cli": ("fabric", "trainer")}
STANDARD_LINE = re.compile(r'^__version__ = "(\d+)\.(\d+)\.(\d+)"$', re.MULTILINE)


def project(name: str) -> dict:
    return tomllib.loads((REPOSITORY / "packages" / name / "pyproject.toml").read_text())["project"]


def version(library: str) -> tuple[int, int, int]:
    face = REPOSITORY / "packages" / library / "src" / "fulmen" / library / "__init__.py"
    major, minor, patch = STANDARD_LINE.search(face.read_text()).groups()
    return int(major), int(minor), int(patch)


def ranges_of_ours(name: str) -> dict[str, str]:
    found = (re.match(r"fulmen-(\w+)(.*)", dependency) for dependency in project(name)["dependencies"])
    return {match[1]: match[2] for match in found if match}


@pytest.mark.parametrize("name", [*BELOW, "fulmen"])
def test_a_distribution_asks_for_those_below_it_in_a_range_that_holds_their_version(name):
    ranges = ranges_of_ours(name)
    assert set(ranges) == set(BELOW.get(name, BELOW))
    for lower, asked in ranges.items():
        major, minor, _ = version(lower)
        assert asked == f">={major}.{minor},<{major}.{minor + 1}"


@pytest.mark.parametrize("library", BELOW)
def test_what_a_package_imports_is_what_it_declares(library):
    """Required are the packages that are imported at the top of a module; others may be optional."""
    source = REPOSITORY / "packages" / library / "src"
    imported = set()
    for path in source.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    declared = {re.match(r"[\w-]+", dependency)[0] for dependency in project(library)["dependencies"]}
    standard = __import__("sys").stdlib_module_names
    assert {name for name in imported if name not in standard} <= declared | {"fulmen"}


def test_commands_lead_to_functions():
    for name in BELOW:
        for command, target in project(name).get("scripts", {}).items():
            module, _, function = target.partition(":")
            assert callable(getattr(__import__(module, fromlist=[function]), function)), command


def wheels() -> list[Path]:
    # Set by nox: the wheels that are installed in this very environment.
    return sorted(Path(os.environ.get("FULMEN_WHEELS", "nowhere")).glob("*.whl"))


@pytest.mark.skipif(not wheels(), reason="`nox -s repository` builds the wheels; here are none")
class TestWheels:
    def test_there_is_one_for_each(self):
        names = [wheel.name.split("-")[0] for wheel in wheels()]
        assert names == ["fulmen", "fulmen_cli", "fulmen_fabric", "fulmen_trainer", "fulmen_tuner"]

    @pytest.mark.parametrize("library", BELOW)
    def test_a_wheel_holds_its_part_of_the_namespace_and_nothing_else(self, library):
        (wheel,) = [path for path in wheels() if path.name.startswith(f"fulmen_{library}-")]
        files = zipfile.ZipFile(wheel).namelist()
        metadata = wheel.name.split("-py3")[0] + ".dist-info/"
        ours = {name for name in files if not name.startswith(metadata)}
        root = REPOSITORY / "packages" / library / "src"
        kinds = (".py", ".txt")  # code, and what `lightning-cli init` writes
        sources = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.suffix in kinds}
        assert ours == {*sources, f"fulmen/{library}/py.typed"}
        assert f"{metadata}licenses/LICENSE" in files

    def test_the_wheel_that_asks_for_all_holds_no_code(self):
        wheel = next(path for path in wheels() if path.name.startswith("fulmen-"))
        assert all(".dist-info/" in name for name in zipfile.ZipFile(wheel).namelist())
