import os
import shutil
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.errors import CheckpointError
from fulmen.trainer.checkpoint.place import absolute, check_place, is_in_folder

PARTS = st.lists(st.sampled_from(["..", ".", "a", "b", "c.ckpt"]), max_size=6)


@given(PARTS)
def test_a_path_is_in_a_folder_if_it_is_when_written_out(parts):
    path = os.path.join("/run/checkpoints", *parts, "x.ckpt")
    plain = os.path.normpath(path)
    assert is_in_folder(path, "/run/checkpoints") == plain.startswith("/run/checkpoints/")
    assert absolute(path) == plain


def test_links_are_followed_but_for_the_last_name(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "away").mkdir()
    (tmp_path / "here" / "out").symlink_to(tmp_path / "away")
    (tmp_path / "here" / "last.ckpt").symlink_to(tmp_path / "away" / "x.ckpt")
    assert is_in_folder(tmp_path / "here" / "last.ckpt", tmp_path / "here")
    assert not is_in_folder(tmp_path / "here" / "out" / "x.ckpt", tmp_path / "here")
    assert not is_in_folder(tmp_path / "here", tmp_path / "here")
    assert not is_in_folder("x.ckpt", None)
    assert is_in_folder("s3://bucket/x.ckpt", None)


def test_a_good_place_is_left_as_it_was(tmp_path):
    check_place(tmp_path / "to" / "be" / "made", 1)
    check_place(tmp_path, 1)
    assert os.listdir(tmp_path) == []
    check_place("memory://nowhere/yet", 1)


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "c").write_text("a file")
    with pytest.raises(CheckpointError, match=rf"{tmp_path}/c/d'.*after 0 bytes.*'{tmp_path}/c'.*Nothing was trained"):
        check_place(tmp_path / "c" / "d", 1)


def test_missing_room_is_told_in_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 3, 7))
    check_place(tmp_path, 7)
    with pytest.raises(CheckpointError, match="at least 8 bytes, and 7 bytes are free"):
        check_place(tmp_path, 8)


def test_before_an_upload_it_is_the_folder_for_temporary_files_that_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(CheckpointError, match=r"memory://runs.*collected in .*gone"):
        check_place("memory://runs/c", 1)


def test_a_disk_that_takes_nothing_is_told(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        check_place(tmp_path, 1)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("folder", "name", "why"),
    [
        ("c" * 300, "", "'c+' has 300 bytes, and a name has 255 at most there"),
        ("c", "f" * 300, "'f+' has 300 bytes, and a name has 255 at most there"),
        ("c", "\u00e9" * 200, "has 400 bytes"),
        ("/".join(["c" * 200] * 25), "", "The path has 5[0-9]{3} bytes, and one has 4095 at most there"),
        ("c", "a\0b", "a null byte"),
    ],
)
def test_what_is_too_long_for_the_file_system_is_said_before_the_first_step(folder, name, why, tmp_path):
    with pytest.raises(CheckpointError, match=f"{why}.*Nothing was trained yet. Pass a shorter"):
        check_place(tmp_path / folder, 1, name)
    check_place(tmp_path / "c", 1, "f" * 255)
    assert os.listdir(tmp_path) == []
