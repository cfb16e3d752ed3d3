from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fulmen.fabric.errors import MissingPackageError
from fulmen.fabric.optional_packages import is_installed, require


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", ["json", "json.decoder", "torch", "fulmen.fabric"])
def test_what_is_there_is_found(name: str) -> None:
    assert is_installed(name)
    assert require(name, purpose="The test") is sys.modules[name]


@pytest.mark.parametrize("name", ["no_such_package_here", "no_such_package_here.part", "json.no_such_part"])
def test_what_is_not_there_is_not_found(name: str) -> None:
    assert not is_installed(name)
    with pytest.raises(MissingPackageError, match=rf"Widget\(kind='x'\) needs .* The module '{name}' is not installed"):
        require(name, purpose="Widget(kind='x')")


def test_looking_does_not_import(shelf: Path) -> None:
    (shelf / "explodes_on_import.py").write_text("raise SystemExit('imported')")
    assert is_installed("explodes_on_import")


def test_the_advice_names_the_distribution() -> None:
    with pytest.raises(MissingPackageError, match=r"`python -m pip install its-other-name`"):
        require("no_such_package_here", purpose="The test", pip="its-other-name")


@pytest.mark.parametrize("line", ["import a_dependency_that_is_missing", "raise ImportError('libfoo.so is missing')"])
def test_a_broken_package_is_told_from_a_missing_one(shelf: Path, line: str) -> None:
    (shelf / f"broken_{len(line)}.py").write_text(line)
    with pytest.raises(MissingPackageError, match="installed but cannot be imported"):
        require(f"broken_{len(line)}", purpose="The test")
