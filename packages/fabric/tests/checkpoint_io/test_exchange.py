"""A folder takes the place of another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fulmen.fabric.checkpoint_io import exchange, linux_calls
from fulmen.fabric.checkpoint_io.exchange import replace_folder, restore_replaced
from fulmen.fabric.filesystem import THIS_HOST


def folder(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content)
    return path


@pytest.fixture(params=["in one step", "in two steps"])
def however(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in two steps":
        monkeypatch.setattr(exchange, "exchange_names", lambda first, second: False)


@pytest.mark.usefixtures("however")
def test_the_new_one_is_there_and_the_old_one_is_gone(tmp_path: Path) -> None:
    target = tmp_path / "a"
    for content in ("first", "second", "third"):
        replace_folder(str(folder(tmp_path / "new", content)), str(target))
        assert (target / "file").read_text() == content
        assert os.listdir(tmp_path) == ["a"]
    # Not what a link points to, but the link.
    target.rename(tmp_path / "elsewhere")
    target.symlink_to("elsewhere")
    replace_folder(str(folder(tmp_path / "new", "fourth")), str(target))
    assert (target / "file").read_text() == "fourth"
    assert (tmp_path / "elsewhere" / "file").read_text() == "third"


def test_when_the_second_step_fails_the_old_one_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "exchange_names", lambda first, second: False)
    folder(tmp_path / "a", "old")
    with pytest.raises(FileNotFoundError):
        replace_folder(str(tmp_path / "missing"), str(tmp_path / "a"))
    assert (tmp_path / "a" / "file").read_text() == "old"


def test_after_a_crash_between_the_two_steps_the_old_one_gets_its_name_again(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    old = folder(tmp_path / f".a.{child}-{THIS_HOST}01234567.tmp.old", "old")
    assert not restore_replaced(str(tmp_path / "b"))
    assert restore_replaced(str(tmp_path / "a"))
    assert (tmp_path / "a" / "file").read_text() == "old"
    assert not restore_replaced(str(tmp_path / "a"))
    # A living writer is between the two steps: it is left alone.
    (tmp_path / "a").rename(old.with_name(f".a.{os.getpid()}-{THIS_HOST}01234567.tmp.old"))
    assert not restore_replaced(str(tmp_path / "a"))


def test_names_are_exchanged_where_the_system_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = folder(tmp_path / "first", "1"), folder(tmp_path / "second", "2")
    if linux_calls.exchange_names(str(first), str(second)):
        assert (first / "file").read_text() == "2"
        assert (second / "file").read_text() == "1"
    assert not linux_calls.exchange_names(str(first), str(tmp_path / "missing"))
    monkeypatch.setattr(linux_calls, "_call", lambda name: None)
    assert not linux_calls.exchange_names(str(first), str(second))
    linux_calls.begin_to_sync(0, 0, 1)
