"""What every file and folder of the repository keeps to."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGES = REPOSITORY / "packages"
LIBRARIES = ("fabric", "trainer", "tuner", "cli")
SOURCES = sorted(path for library in LIBRARIES for path in (PACKAGES / library / "src").rglob("*.py"))
MAX_LINES = 450
# The faces of whole packages hold one short method per promise.
MAX_LINES_OF = {"fabric/fabric.py": 650, "core/module.py": 650, "trainer/trainer.py": 650}
EMPTY_WORDS = {"utils", "util", "helpers", "helper", "misc", "common", "manager"}
WRITTEN_BY_HAND = ("*.py", "*.md", "*.toml", "*.yaml", "*.txt", "run")


def written_files() -> list[Path]:
    tops = ["packages", "tests", "docs", "tools", "examples", "benchmarks", ".ci"]
    found = [path for top in tops for pattern in WRITTEN_BY_HAND for path in (REPOSITORY / top).rglob(pattern)]
    found += [path for pattern in WRITTEN_BY_HAND for path in REPOSITORY.glob(pattern)]
    return sorted(path for path in found if path.is_file() and ".hypothesis" not in path.parts)


def test_there_are_sources():
    assert len(SOURCES) > 100


def test_no_file_has_two_ideas():
    lengths = {path.relative_to(PACKAGES).as_posix(): len(path.read_text().splitlines()) for path in SOURCES}
    limits = {name: next((n for end, n in MAX_LINES_OF.items() if name.endswith(end)), MAX_LINES) for name in lengths}
    assert {name: length for name, length in lengths.items() if length > limits[name]} == {}


def test_names_say_what_is_in_a_file():
    assert [path for path in SOURCES if EMPTY_WORDS & {path.stem, *path.parent.parts}] == []


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_namespace_belongs_to_nobody_and_every_folder_below_it_is_a_package(library):
    namespace = PACKAGES / library / "src" / "fulmen"
    assert [path.name for path in namespace.iterdir() if path.name != "__pycache__"] == [library]
    folders = {path.parent for path in namespace.rglob("*.py")}
    assert sorted(folder for folder in folders if not (folder / "__init__.py").is_file()) == []
    assert (namespace / library / "py.typed").is_file()


def test_every_distribution_carries_the_licence():
    licence = (REPOSITORY / "LICENSE").read_text()
    assert "Apache License" in licence
    for name in (*LIBRARIES, "fulmen"):
        assert (PACKAGES / name / "LICENSE").read_text() == licence, name


def test_nothing_names_a_machine():
    # A path or a host that exists on one machine only. `/tmp` stands in documents as an example of a path.
    forbidden = re.compile(r"(?<![\w.])/(root|home|work|Users)/\w|https?://[\w.-]*(pypi|artifactory|mirror)[\w.-]*/")
    found = {
        path.relative_to(REPOSITORY).as_posix(): match[0]
        for path in written_files()
        if path != Path(__file__) and (match := forbidden.search(path.read_text()))
    }
    assert found == {}


def test_every_tool_is_short_and_explains_itself():
    for tool in (REPOSITORY / "tools").glob("*.py"):
        text = tool.read_text()
        assert len(text.splitlines()) <= 150, tool.name
        assert "ArgumentParser(description=__doc__" in text, tool.name


def test_every_example_is_run_by_a_test():
    files = (path for pattern in ("tests", "packages/*/tests") for path in REPOSITORY.glob(f"{pattern}/**/test_*.py"))
    texts = [path.read_text() for path in files if path != Path(__file__)]
    examples = sorted((REPOSITORY / "examples").rglob("*.py"))
    assert examples
    for example in examples:
        # The file itself is named, or a configuration that builds what is in it; the name of its folder is no run.
        configs = [path for path in example.parent.glob("*.yaml") if f"class_path: {example.stem}." in path.read_text()]
        running = [text for text in texts if any(is_named(path, text) for path in (example, *configs))]
        assert running, f"no test names {example}"
        assert any(re.search(r"run_path\(|subprocess\.|main\(", text) for text in running), f"no test runs {example}"


def is_named(path, text):
    """Does a test name this file, and each folder above it?"""
    parts = path.relative_to(REPOSITORY).parts
    return all(re.search(rf"""["/]{re.escape(part)}["/]""", text) for part in parts)
