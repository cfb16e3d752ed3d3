from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fulmen.fabric
from fulmen.fabric.lazy_face import import_behind


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package with a lazy face: `tool` and `Renamed` live in `inner`, `part` is a submodule."""
    folder = tmp_path / "face_under_test"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from fulmen.fabric.lazy_face import lazy_face\n"
        "__getattr__, __dir__ = lazy_face(__name__, {'tool': 'face_under_test.inner',"
        " 'Renamed': 'face_under_test.inner:original'})\n"
    )
    (folder / "inner.py").write_text("def tool(): return 'tool'\ndef original(): return 'original'\n")
    (folder / "part.py").write_text("value = 7\n")
    (folder / "broken.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "face_under_test"
    for name in [name for name in sys.modules if name.startswith("face_under_test")]:
        del sys.modules[name]


def test_a_name_is_loaded_when_first_asked_for_and_kept(package: str) -> None:
    face = importlib.import_module(package)
    assert f"{package}.inner" not in sys.modules

    assert face.tool() == "tool"
    assert face.Renamed() == "original"
    assert vars(face)["tool"] is face.tool


def test_submodules_are_attributes(package: str) -> None:
    assert importlib.import_module(package).part.value == 7


def test_dir_lists_what_is_not_loaded_yet(package: str) -> None:
    assert {"tool", "Renamed", "__name__"} <= set(dir(importlib.import_module(package)))


def test_an_unknown_name_is_an_attribute_error(package: str) -> None:
    face = importlib.import_module(package)
    assert not hasattr(face, "__wrapped__")
    with pytest.raises(AttributeError, match="module 'face_under_test' has no attribute 'nonsense'"):
        _ = face.nonsense
    with pytest.raises(ImportError, match="nonsense"):
        exec(f"from {package} import nonsense")


def test_an_import_that_fails_inside_is_not_hidden(package: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        _ = importlib.import_module(package).broken


def test_the_modules_behind_a_face_are_imported_and_no_name_is_made(package: str) -> None:
    import_behind(package)
    assert f"{package}.inner" in sys.modules
    assert f"{package}.part" not in sys.modules
    assert "tool" not in vars(sys.modules[package])


def test_importing_fabric_loads_next_to_nothing() -> None:
    program = (
        "import sys, torch; before = set(sys.modules)\n"
        "import fulmen.fabric, fulmen.fabric.accelerators\n"
        "new = sorted(set(sys.modules) - before)\n"
        "assert new == ['fulmen', 'fulmen.fabric', 'fulmen.fabric.accelerators', 'fulmen.fabric.lazy_face'], new\n"
        "fulmen.fabric.seed_everything(1, verbose=False)\n"
        "import fulmen.fabric.accelerators.catalog, fulmen.fabric.trees, fulmen.fabric.filesystem\n"
        "assert 'fsspec' not in sys.modules and not torch.cuda.is_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_fabric_says_its_version() -> None:
    assert fulmen.fabric.__version__.count(".") == 2
