"""What dead writers left is cleared away, and nothing else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest

from fulmen.fabric.checkpoint_io.commit import FolderAside, commit
from fulmen.fabric.checkpoint_io.leftovers import clean_leftovers, leftovers
from fulmen.fabric.filesystem import THIS_HOST, UPLOAD_NAME, temporary_beside


def hang_while_writing(folder: Path, ready: Any) -> None:
    aside = FolderAside.begin(folder / "b.ckpt")
    aside.write("part", lambda file: file.writelines([b"x"]))

    def write(file: Any) -> None:
        file.write(b"half")
        file.flush()
        ready.send(True)
        signal.pause()

    commit(folder / "a.ckpt", write)


def test_what_is_being_written_is_left_alone_until_its_writer_is_dead(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, ready_there = context.Pipe(duplex=False)
    writer = context.Process(target=hang_while_writing, args=(tmp_path, ready_there), daemon=True)
    writer.start()
    assert ready.recv()
    assert len(os.listdir(tmp_path)) == 2
    assert clean_leftovers(tmp_path) == []
    assert len(os.listdir(tmp_path)) == 2
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    found = leftovers(tmp_path)
    assert [path.name.split(".")[1] for path in found] == ["a", "b"]
    assert clean_leftovers(tmp_path, older_than_s=3600) == []
    assert clean_leftovers(tmp_path) == found
    assert os.listdir(tmp_path) == []


def test_other_files_are_never_touched(tmp_path: Path) -> None:
    for name in ("last.ckpt", ".hidden.tmp", ".last.ckpt.1-x.tmp", f".last.ckpt.{os.getpid()}-01234567.tmp"):
        (tmp_path / name).write_bytes(b"")
    assert leftovers(tmp_path) == clean_leftovers(tmp_path) == []
    assert leftovers(tmp_path / "missing") == []
    assert len(os.listdir(tmp_path)) == 4


def dead_pid() -> int:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def test_a_folder_between_two_names_gets_its_own_again(tmp_path: Path) -> None:
    pid = dead_pid()
    old = tmp_path / f".a.ckpt.{pid}-{THIS_HOST}01234567.tmp.old"
    old.mkdir()
    (old / "part").write_bytes(b"old")
    new = tmp_path / f".a.ckpt.{pid}-{THIS_HOST}01234567.tmp"
    new.mkdir()
    assert clean_leftovers(tmp_path) == [new]
    assert os.listdir(tmp_path) == ["a.ckpt"]
    assert (tmp_path / "a.ckpt" / "part").read_bytes() == b"old"
    # When the new one was in its place already, the old one is what is left.
    (tmp_path / "a.ckpt").rename(old)
    (tmp_path / "a.ckpt").mkdir()
    assert clean_leftovers(tmp_path) == [old]


def test_of_a_remote_folder_the_unfinished_uploads_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = temporary_beside(tmp_path / UPLOAD_NAME)
    dead = tmp_path / f".{UPLOAD_NAME}.{dead_pid()}-{THIS_HOST}01234567.tmp"
    other = tmp_path / f".a.ckpt.{dead_pid()}-{THIS_HOST}01234567.tmp"
    for path in (mine, dead, other):
        path.touch()
    assert clean_leftovers("memory://somewhere") == [dead]
    assert sorted(tmp_path.iterdir()) == sorted([mine, other])
