"""All or nothing: with real files, a full disk and kill -9."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import stat
import subprocess
import time
from itertools import count
from pathlib import Path
from random import Random
from typing import IO, Any

import pytest
import torch

from fulmen.fabric.checkpoint_io import exchange
from fulmen.fabric.checkpoint_io.commit import FolderAside, commit, remove_saved
from fulmen.fabric.checkpoint_io.leftovers import clean_leftovers
from fulmen.fabric.checkpoint_io.sharded import load_sharded, save_sharded
from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO
from fulmen.fabric.errors import CheckpointError
from fulmen.fabric.filesystem import list_dir


def save_for_ever(path: Path, kind: str, reports: Any) -> None:
    torch.set_num_threads(1)  # a forked process has none of the parent's threads
    for number in count(1):
        state = {"number": torch.tensor(number), "weight": torch.full((1_000_000,), float(number))}
        if kind == "file":
            TorchCheckpointIO().save_checkpoint(state, path)
        else:
            save_sharded(path, state)
        reports.send(number)


def read(path: Path) -> int:
    """The number of the save, when everything in it is of that save."""
    if path.is_file():
        state = TorchCheckpointIO().load_checkpoint(path)
    else:
        state = {"number": torch.tensor(0), "weight": torch.zeros(1_000_000)}
        load_sharded(path, state)
    assert bool((state["weight"] == state["number"]).all())
    return int(state["number"])


def test_a_file_appears_whole_and_its_size_is_told(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "file.ckpt"

    def write(file: IO[bytes]) -> None:
        file.write(b"12")
        assert not target.exists()
        file.write(b"345")

    assert commit(target, write) == 5
    assert target.read_bytes() == b"12345"
    assert os.listdir(target.parent) == ["file.ckpt"]


def test_when_writing_fails_the_old_file_is_there_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file.ckpt"
    target.write_bytes(b"old")

    def write(file: IO[bytes]) -> None:
        file.write(b"half of the n")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        commit(target, write)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.ckpt"]


def test_what_cannot_be_removed_is_told_and_goes_with_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "a.ckpt"
    path.write_bytes(b"old")
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refuse)
        patched.setattr(os, "remove", refuse)
        with pytest.raises(CheckpointError, match="was left, which the next") as caught:
            commit(path, lambda file: None)
    (left,) = set(os.listdir(tmp_path)) - {"a.ckpt"}
    assert f"so only {left!r} was left" in str(caught.value)
    assert path.read_bytes() == b"old"
    commit(tmp_path / "b.ckpt", lambda file: None)
    assert sorted(os.listdir(tmp_path)) == ["a.ckpt", "b.ckpt"]


def test_a_link_is_replaced_and_what_it_points_to_is_kept(tmp_path: Path) -> None:
    (tmp_path / "best.ckpt").write_bytes(b"best")
    (tmp_path / "last.ckpt").symlink_to("best.ckpt")
    commit(tmp_path / "last.ckpt", lambda file: file.writelines([b"last"]))
    assert (tmp_path / "best.ckpt").read_bytes() == b"best"
    assert (tmp_path / "last.ckpt").read_bytes() == b"last"


def test_a_folder_that_cannot_be_made_is_a_checkpoint_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"file/x\.ckpt.* after 0 bytes"):
        commit(tmp_path / "file" / "x.ckpt", lambda file: None)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_after_kill_9_at_any_moment_the_last_reported_checkpoint_is_whole(tmp_path: Path, kind: str) -> None:
    """Twelve kills, at random moments, of savers that save over one path again and again."""
    target = tmp_path / "last.ckpt"
    context = multiprocessing.get_context("fork")
    random = Random(kind)
    num_caught = 0
    for _ in range(12):
        reports, reports_there = context.Pipe(duplex=False)
        saver = context.Process(target=save_for_ever, args=(target, kind, reports_there), daemon=True)
        saver.start()
        assert saver.pid is not None
        reported = reports.recv()
        time.sleep(random.uniform(0, 0.05))
        os.kill(saver.pid, signal.SIGKILL)
        saver.join()
        while reports.poll():
            try:
                reported = reports.recv()
            except EOFError:
                reports.close()
                break
        left = [name for name in os.listdir(tmp_path) if name != "last.ckpt"]
        assert all(name.startswith(f".last.ckpt.{saver.pid}-") and name.endswith(".tmp") for name in left)
        num_caught += len(left)
        assert read(target) >= reported
        assert sorted(path.name for path in clean_leftovers(tmp_path)) == sorted(left)
        assert os.listdir(tmp_path) == ["last.ckpt"]
    assert num_caught > 2, "hardly any save was caught in the middle"


@pytest.fixture
def full_disk(tmp_path: Path) -> Path:
    """A folder on a file system of 1 MiB; else of a process that may write no file of more than 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder


def test_a_full_disk_is_told_with_path_and_bytes_and_leaves_nothing(full_disk: Path) -> None:
    target = full_disk / "last.ckpt"
    io = TorchCheckpointIO()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", full_disk], capture_output=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if mounted.returncode != 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
        io.save_checkpoint({"number": 1}, target)
        with pytest.raises(CheckpointError) as caught:
            io.save_checkpoint({"number": 2, "weight": torch.zeros(1_000_000)}, target)
        assert os.listdir(full_disk) == ["last.ckpt"]
        assert io.load_checkpoint(target)["number"] == 1
        io.save_checkpoint({"number": 3}, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        if mounted.returncode == 0:
            subprocess.run(["umount", full_disk], check=True)
    message = str(caught.value)
    assert repr(str(target)) in message
    assert "bytes" in message
    assert "No space left" in message or "File too large" in message


def test_a_sharded_folder_on_a_full_disk_leaves_the_old_one(full_disk: Path) -> None:
    target = full_disk / "folder.ckpt"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", full_disk], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    try:
        save_sharded(target, {"weight": torch.ones(10), "number": 1})
        with pytest.raises(CheckpointError, match=r"folder\.ckpt.*No space left.*after \d+ bytes"):
            save_sharded(target, {"weight": torch.zeros(1_000_000), "number": 2})
        assert os.listdir(full_disk) == ["folder.ckpt"]
        state = {"weight": torch.zeros(10), "number": 0}
        load_sharded(target, state)
        assert state["number"] == 1
    finally:
        subprocess.run(["umount", full_disk], check=True)


@pytest.mark.parametrize("remote", [False, True])
def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path, remote: bool) -> None:
    path = "memory://test_commit/a" if remote else str(tmp_path / "deep" / "a")
    for number in range(3):
        aside = FolderAside.begin(path)
        names = {f"__{aside.prefix}{rank}" for rank in range(2)}
        for name in names:
            aside.write(name, lambda file: file.writelines([b"part"]))
        aside.write("index", lambda file, number=number: file.writelines([b"%d" % number]))  # type: ignore[misc]
        if not remote:
            assert "a" not in os.listdir(tmp_path / "deep") or len(os.listdir(path)) == 3
        aside.commit({*names, "index"})
        assert set(list_dir(path)) == {*names, "index"}
    aside = FolderAside.begin(path)
    aside.write(f"__{aside.prefix}0", lambda file: file.writelines([b"part"]))
    aside.abandon()
    assert set(list_dir(path)) == {*names, "index"}
    if not remote:
        assert os.listdir(tmp_path / "deep") == ["a"]


def test_a_folder_that_cannot_be_begun_is_answered(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"file/x\.ckpt.* after 0 bytes"):
        FolderAside.begin(tmp_path / "file" / "x.ckpt")


@pytest.mark.parametrize("leads_to_one", [False, True])
def test_a_pipe_or_device_is_not_replaced(tmp_path, leads_to_one):
    path = tmp_path / "pipe"
    os.symlink(os.devnull, path) if leads_to_one else os.mkfifo(path)
    before = os.lstat(path)
    for begin in (lambda: commit(path, lambda file: file.write(b"x")), lambda: FolderAside.begin(path)):
        with pytest.raises(
            CheckpointError, match="could not be written: it is a pipe or a device, and no file, after 0"
        ):
            begin()
    assert os.lstat(path).st_ino == before.st_ino
    assert os.listdir(tmp_path) == ["pipe"]


@pytest.fixture
def no_folder_is_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk breaks when all is written and has its name."""
    fsync = os.fsync

    def broken(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", broken)


@pytest.mark.usefixtures("no_folder_is_synced")
def test_a_rename_that_is_not_brought_to_the_disk_is_no_save(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with pytest.raises(
        CheckpointError, match=r"a\.ckpt' could not be written: Input/output error, after 3 bytes"
    ) as said:
        commit(path, lambda file: file.write(b"new") and None)
    assert "nothing was left and what was there before is unchanged" in str(said.value)
    assert os.listdir(tmp_path) == []
    path.write_bytes(b"old")
    with pytest.raises(CheckpointError, match=r"Input/output error, after 3 bytes.*either of the two may be found"):
        commit(path, lambda file: file.write(b"new") and None)
    assert (os.listdir(tmp_path), path.read_bytes()) == (["a.ckpt"], b"new")


@pytest.mark.parametrize("in_one_step", [True, False])
@pytest.mark.parametrize("is_new", [True, False])
def test_a_folder_whose_name_is_not_brought_to_the_disk_makes_room_for_the_old_one(
    in_one_step: bool, is_new: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_one_step:
        monkeypatch.setattr(exchange, "exchange_names", lambda first, second: False)
    path, state = tmp_path / "a.ckpt", {"w": torch.zeros(2)}
    if not is_new:
        save_sharded(path, {"w": torch.ones(2)})

    def broken(folder: Path) -> None:
        if Path(folder) == tmp_path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(exchange, "sync_dir", broken)
    with pytest.raises(CheckpointError, match=r"a\.ckpt' could not be written: Input/output error.*is unchanged"):
        save_sharded(path, {"w": torch.full((2,), 2.0)})
    assert os.listdir(tmp_path) == ([] if is_new else ["a.ckpt"])
    if not is_new:
        load_sharded(path, state)
        assert torch.equal(state["w"], torch.ones(2))


def test_the_old_folder_is_kept_aside_where_it_cannot_have_its_name_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, aside = tmp_path / "a.ckpt", tmp_path / "aside"
    path.mkdir()
    (path / "old").touch()
    new = FolderAside.begin(path)
    new.write("new", lambda file: None)
    done = []

    def once(first: str, second: str) -> bool:
        if not done:
            done.append(os.rename(second, aside))
            os.rename(first, second)
            os.rename(aside, first)
            return True
        return False

    def broken(folder: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(exchange, "exchange_names", once)
    monkeypatch.setattr(exchange, "sync_dir", broken)
    with pytest.raises(CheckpointError, match=r"Input/output error.*either of the two may be found"):
        new.commit({"new"})
    new.abandon()
    assert (os.listdir(path), os.listdir(new.place)) == (["new"], ["old"])


def test_what_the_storage_does_not_remove_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    (tmp_path / "a.ckpt").touch()
    monkeypatch.setattr(os, "remove", broken)
    for remove in (remove_saved, TorchCheckpointIO().remove_checkpoint):
        with pytest.raises(CheckpointError, match=r"a\.ckpt' could not be removed: Input/output error \(\d+ bytes are"):
            remove(tmp_path / "a.ckpt")
