"""What the source says of a class is what Python finds when it imports it; and nothing is imported to say it."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fulmen.cli.class_sources import classes_in, has_module, is_defined, is_subclass
from fulmen.trainer import Callback, LightningModule

NAMES = ["A", "B", "C", "D"]
IMPORTS = [
    "from fulmen.trainer import LightningModule, Callback",
    "from fulmen.trainer.core.module import LightningModule\nfrom fulmen.trainer.core.callback import Callback",
    "import fulmen.trainer.core.module as m\nimport fulmen.trainer.core.callback as c\n"
    "LightningModule, Callback = m.LightningModule, c.Callback",
    "import fulmen.trainer\nLightningModule = fulmen.trainer.LightningModule\nCallback = fulmen.trainer.Callback",
]
FORMS = [
    "class {name}({base}): pass",
    "class {name}(dict, {base}): pass",
    "class {name}: pass",
    "{name} = {base}",
    "{name} = 3",
    "def {name}() -> {base}: ...",
    "def {name}(): ...",
    "if True:\n    class {name}({base}): pass\nelse:\n    class {name}: pass",
    "try:\n    from nothere import {name}\nexcept ImportError:\n    class {name}({base}): pass",
    "class {name}: pass\nclass {name}({base}): pass",
]


@st.composite
def modules(draw: st.DrawFn) -> tuple[str, str]:
    """Two modules; the second takes names of the first."""
    known = ["LightningModule", "Callback", "object"]
    texts = []
    for index, names in enumerate((NAMES[:2], NAMES[2:])):
        lines = [draw(st.sampled_from(IMPORTS))]
        if index:
            lines.append(
                f"from .first import {', '.join(NAMES[:2])}" if draw(st.booleans()) else "from .first import *"
            )
        for name in names:
            lines.append(draw(st.sampled_from(FORMS)).format(name=name, base=draw(st.sampled_from(known))))
            known.append(name)
        texts.append("\n".join(lines))
    return texts[0], texts[1]


counter = iter(range(10**6))


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(modules())
def test_it_is_never_wrong(tmp_path: Path, texts: tuple[str, str]) -> None:
    package = f"made_{next(counter)}"
    folder = tmp_path / package
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "first.py").write_text(texts[0])
    (folder / "second.py").write_text(texts[1])
    sys.path.insert(0, str(tmp_path))
    try:
        importlib.invalidate_caches()
        paths = [f"{package}.{module}.{name}" for module in ("first", "second") for name in [*NAMES, "Nope"]]
        wanted: list[type] = [LightningModule, Callback]
        said = {(path, base): is_subclass(path, [base]) for path in paths for base in wanted}
        defined = {path: is_defined(path) for path in paths}
        assert not any(name.startswith(f"{package}.") for name in sys.modules), "it was imported"
        try:
            found = {path: _find(path) for path in paths}
        except (TypeError, ImportError):  # a class of two bases that do not go together, a base that is a function
            return
        for (path, base), answer in said.items():
            if answer is False:
                assert not _can_stand_for(found[path], base), path
            elif answer and isinstance(found[path], type):
                assert issubclass(found[path], base), path
        for path, there in defined.items():
            assert there is None or there == (found[path] is not None), path
    finally:
        sys.path.remove(str(tmp_path))


def _find(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name, None)


def _can_stand_for(value: Any, base: type) -> bool:
    if isinstance(value, type):
        return issubclass(value, base)
    returned = getattr(value, "__annotations__", {}).get("return")
    return isinstance(returned, type) and issubclass(returned, base)


CASES = [
    ("class Net(LightningModule): pass", True),
    ("class Net(m.LightningModule): pass\nimport fulmen.trainer.core.module as m", True),
    ("class Net: pass", False),
    ("class Net(dict): pass", False),
    ("Net = print", None),
    ("Net = 'text'", False),
    ("import os as Net", False),
    ("def Net(width): ...", False),
    ("def Net() -> 'LightningModule': ...", True),
    ("class Net(make()): pass", None),
    ("class Base: pass\nclass Net(Base): pass\nLightningModule.register(Net)", None),
    ("from somewhere_else import *", None),
    ("def __getattr__(name): ...", None),
    ("class Net(", None),
    ("", False),
]


@pytest.mark.parametrize(("text", "answer"), CASES)
def test_what_can_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, answer: bool | None) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "told.py").write_text(f"from fulmen.trainer import LightningModule\n{text}\nopen('ran', 'w')\n")
    monkeypatch.chdir(tmp_path)
    assert is_subclass("told.Net", [LightningModule]) is answer
    assert not (tmp_path / "ran").exists()
    assert "told" not in sys.modules


def test_a_protocol_is_asked_for_at_run_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fulmen.cli.subcommands import Subcommand

    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "plain.py").write_text("class Thing: pass\n")
    assert is_subclass("plain.Thing", [Subcommand]) is None


def test_the_classes_of_a_module_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "listed.py").write_text(
        "from fulmen.trainer import Callback\nclass A(Callback): ...\nclass B: ...\nx = 1\n"
    )
    assert classes_in("listed") == ["A", "B"]
    assert has_module("listed")
    assert not has_module("listed_not")
    assert classes_in("listed_not") == []
    importlib.import_module("listed")
    assert classes_in("listed") == ["A", "B"]
    assert is_subclass("listed.A", [Callback]) is True
    assert is_subclass("listed.B", [Callback]) is False
    assert is_defined("listed.C") is False


@pytest.mark.parametrize("is_folder", [False, True])
@pytest.mark.parametrize(
    ("path", "defined", "fits"),
    [
        ("Missing.Thing", False, False),
        ("Missing.deeper.Thing", False, False),
        ("Outer.Inner", True, True),
        ("Outer.Other", True, False),
        ("Outer.Missing", False, False),
        ("Heir.Inner", None, None),
    ],
)
def test_a_class_inside_of_a_class_is_told_without_importing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_folder: bool, path: str, defined: bool | None, fits: bool | None
) -> None:
    module = f"inside_{next(counter)}"
    file = tmp_path / (f"{module}/__init__.py" if is_folder else f"{module}.py")
    file.parent.mkdir(exist_ok=True)
    file.write_text(
        "from fulmen.trainer import Callback\nclass Outer:\n    class Inner(Callback): pass\n"
        "    class Other: pass\nclass Heir(Outer): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert is_defined(f"{module}.{path}") is defined
    assert is_subclass(f"{module}.{path}", [Callback]) is fits
    assert module not in sys.modules
