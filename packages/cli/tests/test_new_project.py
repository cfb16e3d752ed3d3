"""The project that `init` writes trains, and passes its own test."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

QUICK = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--curves=false"]


def test_it_trains_and_passes_its_test(command: Callable[..., Any], folder: Path, monkeypatch: Any) -> None:
    ended = command("init", "moons")
    assert ended.code == 0, ended.err
    assert sorted(str(path.relative_to(folder / "moons")) for path in (folder / "moons").rglob("*.*")) == [
        "README.md",
        "config.yaml",
        "moons/__init__.py",
        "moons/data.py",
        "moons/model.py",
        "test_moons.py",
    ]
    assert "lightning-cli fit --config config.yaml" in ended.out
    project = folder / "moons"
    assert not any("$" in path.read_text() for path in project.rglob("*.*"))
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "path", [str(project), *sys.path])
    ended = command("fit", "--config", "config.yaml", *QUICK)
    assert ended.code == 0, ended.err
    assert "best score" in ended.out
    ended = command("test", "--config", "config.yaml", "--ckpt_path", "best", "--trainer.enable_progress_bar=false")
    assert ended.code == 0, ended.err
    assert "test_acc" in ended.out
    spec = importlib.util.spec_from_file_location("test_moons", project / "test_moons.py")
    assert spec is not None
    assert spec.loader is not None
    test = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(test)
    test.test_it_learns(monkeypatch)
    for name in ("moons", "moons.model", "moons.data"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("3d", "letters, digits and `_`"),
        ("my-net", "'my_net'"),
        ("class", "'my_project'"),
        ("torch", "a package 'torch' already"),
        ("json", "a package 'json' already"),
        ("taken", "is there already"),
    ],
)
def test_a_name_that_will_not_do(command: Callable[..., Any], folder: Path, name: str, words: str) -> None:
    (folder / "taken").mkdir()
    ended = command("init", name)
    assert ended.code == 2
    assert words in ended.err
    assert ended.err.count(". ") >= 2
    assert sorted(path.name for path in folder.iterdir()) == ["cliapp.py", "taken"]


def test_a_name_is_needed(command: Callable[..., Any]) -> None:
    assert command("init").code == 2


def test_it_starts_without_torch() -> None:
    program = "import sys; from fulmen.cli.command import main; main(['examples']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60)
