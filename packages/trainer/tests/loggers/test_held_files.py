"""Second names for files that others may remove."""

import errno
import os
from pathlib import Path

from fulmen.trainer.loggers.held_files import hold, let_go


def test_what_is_held_outlives_its_first_name(tmp_path):
    path, folder = tmp_path / "a.ckpt", tmp_path / "run"
    path.write_text("first")
    first = hold(str(path), folder)
    path.unlink()
    path.write_text("second")  # another file of the same name
    second = hold(str(path), folder)
    path.unlink()
    assert os.path.basename(first) == os.path.basename(second) == "a.ckpt"
    assert [Path(held).read_text() for held in (first, second)] == ["first", "second"]
    let_go(first)
    assert Path(second).read_text() == "second"
    let_go(second)
    assert list(folder.iterdir()) == []


def test_a_folder_is_held_with_all_that_is_in_it(tmp_path):
    (tmp_path / "a.ckpt" / "deep").mkdir(parents=True)
    (tmp_path / "a.ckpt" / "deep" / "shard").write_text("x")
    held = hold(str(tmp_path / "a.ckpt"), tmp_path / "run")
    (tmp_path / "a.ckpt" / "deep" / "shard").unlink()
    assert Path(held, "deep", "shard").read_text() == "x"


def test_where_there_are_no_second_names_nothing_is_left(tmp_path, monkeypatch):
    def link(*_, **__):
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", link)
    (tmp_path / "a.ckpt").write_text("x")
    assert hold(str(tmp_path / "a.ckpt"), tmp_path / "run") is None
    assert hold(str(tmp_path / "missing.ckpt"), tmp_path / "run") is None
    assert list((tmp_path / "run").iterdir()) == []
