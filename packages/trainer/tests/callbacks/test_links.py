import errno
import os
import shutil

import pytest

from fulmen.fabric.errors import CheckpointError
from fulmen.trainer.callbacks import links
from fulmen.trainer.callbacks.links import keep_for_link, link_or_copy


def test_a_link_is_relative_and_replaces_what_was_there(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    link = tmp_path / "last"
    link.write_text("old")
    for name in "ab":
        link_or_copy(str(tmp_path / name), str(link))
        assert os.readlink(link) == name
        assert link.read_text() == name
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "last"]


def test_a_folder_is_replaced_too(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "last").mkdir()
    link_or_copy(str(tmp_path / "a"), str(tmp_path / "last"))
    assert os.readlink(tmp_path / "last") == "a"


def refuse(*_, **__):
    raise OSError


@pytest.mark.parametrize("symbolic", [True, False])
def test_where_there_are_no_links_it_is_a_copy(symbolic, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "symlink", refuse)
    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "part").write_text("b")
    link_or_copy(str(tmp_path / "a"), str(tmp_path / "last"), symbolic=symbolic)
    assert (tmp_path / "last").read_text() == "a"
    assert not os.path.islink(tmp_path / "last")
    link_or_copy(str(tmp_path / "b"), str(tmp_path / "last"), symbolic=symbolic)
    assert (tmp_path / "last" / "part").read_text() == "b"
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "last"]


@pytest.mark.parametrize("without", ["symlink", "link"])
def test_one_kind_stands_in_for_the_other(without, tmp_path, monkeypatch):
    monkeypatch.setattr(os, without, refuse)
    (tmp_path / "a").write_text("a")
    link_or_copy(str(tmp_path / "a"), str(tmp_path / "last"), symbolic=without == "symlink")
    assert os.path.samefile(tmp_path / "a", tmp_path / "last")
    assert os.path.islink(tmp_path / "last") == (without == "link")


def test_a_hard_link_leads_somewhere_whatever_becomes_of_the_other_name(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "part").write_text("b")
    last = tmp_path / "last"
    for _ in range(2):  # again: it has this name already
        link_or_copy(str(tmp_path / "a"), str(last), symbolic=False)
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "last"]
    assert os.path.samefile(tmp_path / "a", last)
    os.remove(tmp_path / "a")
    assert last.read_text() == "a"
    link_or_copy(str(tmp_path / "b"), str(last), symbolic=False)
    assert os.path.samefile(tmp_path / "b" / "part", last / "part")
    shutil.rmtree(tmp_path / "b")
    assert (last / "part").read_text() == "b"
    (tmp_path / "a").write_text("new")
    link_or_copy(str(tmp_path / "a"), str(last), symbolic=False)
    assert last.read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["a", "last"]


@pytest.mark.parametrize("is_folder", [True, False])
def test_what_a_symbolic_link_leads_to_takes_its_place_rather_than_go(is_folder, tmp_path):
    for name in "ab":
        path = tmp_path / name
        if is_folder:
            path.mkdir()
            path = path / "part"
        path.write_text(name)
    last = str(tmp_path / "last")
    link_or_copy(str(tmp_path / "a"), last)
    keep_for_link(str(tmp_path / "b"), last)
    assert os.readlink(last) == "a"
    keep_for_link(str(tmp_path / "a"), last)
    assert sorted(os.listdir(tmp_path)) == ["b", "last"]
    assert not os.path.islink(last)
    assert (tmp_path / "last" / "part" if is_folder else tmp_path / "last").read_text() == "a"


@pytest.mark.parametrize("give", [link_or_copy, keep_for_link])
def test_a_disk_that_fails_is_told_with_the_path(give, tmp_path, monkeypatch):
    (tmp_path / "a.ckpt").write_text("a")
    (tmp_path / "last.ckpt").symlink_to("a.ckpt")

    def broken(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(CheckpointError, match=r"last\.ckpt' could not be written: Read-only file system"):
        give(str(tmp_path / "a.ckpt"), str(tmp_path / "last.ckpt"))
    assert sorted(os.listdir(tmp_path)) == ["a.ckpt", "last.ckpt"]
    assert (tmp_path / "last.ckpt").read_text() == "a"


@pytest.mark.parametrize("give", [link_or_copy, keep_for_link])
def test_a_name_that_is_not_brought_to_the_disk_is_told_as_such(give, tmp_path, monkeypatch):
    (tmp_path / "a.ckpt").write_text("a")
    (tmp_path / "last.ckpt").symlink_to("a.ckpt")

    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(links, "sync_dir", broken)
    with pytest.raises(CheckpointError, match=r"last\.ckpt' could not be written: Input/output error.*either of the"):
        give(str(tmp_path / "a.ckpt"), str(tmp_path / "last.ckpt"))
    assert (tmp_path / "last.ckpt").read_text() == "a"
