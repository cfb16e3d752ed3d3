"""All or nothing: with real files, a full disk and kill -9."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import time
from itertools import count
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from fulmen.fabric.checkpoint_io.commit import commit, leftovers, remove_leftovers
from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO
from fulmen.fabric.errors import CheckpointError


def save_for_ever(path: Path, reports: Any) -> None:
    torch.set_num_threads(1)  # a forked process has none of the parent's threads
    for number in count(1):
        weight = torch.full((1_000_000,), float(number))
        TorchCheckpointIO().save_checkpoint({"number": number, "weight": weight}, path)
        reports.send(number)


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


def test_a_killed_save_leaves_the_last_reported_checkpoint_whole(tmp_path: Path) -> None:
    target = tmp_path / "last.ckpt"
    context = multiprocessing.get_context("fork")
    reports, reports_there = context.Pipe(duplex=False)
    saver = context.Process(target=save_for_ever, args=(target, reports_there), daemon=True)
    saver.start()
    assert saver.pid is not None
    reported = 0
    is_caught = False
    try:
        for attempt in range(100):
            reported = reports.recv()
            # Stopped in the middle of a save, the files are as kill -9 would leave them there.
            time.sleep(0.0005 * (attempt % 20))
            os.kill(saver.pid, signal.SIGSTOP)
            loaded = TorchCheckpointIO().load_checkpoint(target)
            assert loaded["number"] >= reported
            assert bool((loaded["weight"] == loaded["number"]).all())
            is_caught = len(os.listdir(tmp_path)) > 1
            if is_caught and attempt > 5:
                break
            os.kill(saver.pid, signal.SIGCONT)
    finally:
        os.kill(saver.pid, signal.SIGKILL)
        saver.join()
    loaded = TorchCheckpointIO().load_checkpoint(target)
    assert loaded["number"] >= reported
    assert is_caught, "no save was caught in the middle"
    (left,) = leftovers(tmp_path)
    assert left.name.startswith(f".last.ckpt.{saver.pid}-")
    assert left.name.endswith(".tmp")
    assert remove_leftovers(tmp_path, older_than_s=3600) == []
    assert remove_leftovers(tmp_path) == [left]
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_only_what_a_dead_writer_left_is_a_leftover(tmp_path: Path) -> None:
    names = ["last.ckpt", ".hidden.tmp", f".last.ckpt.{os.getpid()}-01234567.tmp", ".last.ckpt.1-x.tmp"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert leftovers(tmp_path) == []
    assert leftovers(tmp_path / "missing") == []
    assert leftovers("memory://somewhere") == []


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
