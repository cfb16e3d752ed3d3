"""Second names and removals of checkpoints: what they do to the files of a run that lives."""

import os
from pathlib import Path
from typing import Any

import pytest

from fulmen.trainer.callbacks.outdated import give_second_name, remove_outdated


def test_a_second_name_stands_for_the_file(quick: Any, tmp_path: Path) -> None:
    (tmp_path / "one.ckpt").write_text("1")
    for symbolic in (True, False):
        name = str(tmp_path / f"last-{symbolic}.ckpt")
        give_second_name(quick(), str(tmp_path / "one.ckpt"), name, symbolic=symbolic)
        assert Path(name).read_text() == "1"
        assert os.path.islink(name) is symbolic


def test_what_is_outdated_goes_but_what_the_run_was_restored_from_stays(
    quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(tmp_path / f"{number}.ckpt") for number in range(3)]
    for path in paths:
        Path(path).write_text(path)
    trainer = quick()
    monkeypatch.chdir(tmp_path)
    trainer.ckpt_path = "1.ckpt"  # under another spelling
    remove_outdated(trainer, paths, link="")
    assert os.listdir(tmp_path) == ["1.ckpt"]


def test_a_link_to_what_goes_becomes_that_file(quick: Any, tmp_path: Path) -> None:
    old, link = str(tmp_path / "old.ckpt"), str(tmp_path / "last.ckpt")
    Path(old).write_text("old")
    os.symlink("old.ckpt", link)
    remove_outdated(quick(), [old], link=link)
    assert os.listdir(tmp_path) == ["last.ckpt"]
    assert not os.path.islink(link)
    assert Path(link).read_text() == "old"
