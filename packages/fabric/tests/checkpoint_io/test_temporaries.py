"""Whose is a temporary file, and does its writer still live?"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from fulmen.fabric.checkpoint_io.temporaries import Temporary
from fulmen.fabric.filesystem import THIS_HOST, temporary_beside


def dead_pid() -> int:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def temporary(path: Path) -> Temporary:
    path.touch()
    found = Temporary.parse(path)
    assert found is not None
    return found


def test_the_name_tells_what_it_is(tmp_path: Path) -> None:
    found = temporary(temporary_beside(tmp_path / "a.b.ckpt"))
    assert (found.target, found.pid, found.is_of_this_host, found.is_replaced) == ("a.b.ckpt", os.getpid(), True, False)
    assert not found.is_abandoned()
    assert 0 <= found.idle_s() < 60
    old = Temporary.parse(tmp_path / f".a.ckpt.12-{THIS_HOST}01234567.tmp.old")
    assert old is not None
    assert old.is_replaced


@pytest.mark.parametrize(
    "name", ["a.ckpt", ".a.tmp", ".a.ckpt.12-xyz.tmp", ".a.ckpt.12-0123456.tmp", "a.12-01234567.tmp"]
)
def test_other_names_are_not_ours(tmp_path: Path, name: str) -> None:
    assert Temporary.parse(tmp_path / name) is None


def test_what_a_dead_process_wrote_is_abandoned(tmp_path: Path) -> None:
    assert temporary(tmp_path / f".a.{dead_pid()}-{THIS_HOST}01234567.tmp").is_abandoned()
    assert temporary(tmp_path / f".a.{dead_pid()}-01234567.tmp").is_abandoned()  # as versions before wrote them


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="when a process started is not known here")
def test_what_was_written_before_the_process_of_that_number_started_is_abandoned(tmp_path: Path) -> None:
    """In a container the program has the same number after every start."""
    mine = temporary(tmp_path / f".a.{os.getpid()}-{THIS_HOST}01234567.tmp")
    assert not mine.is_abandoned()
    os.utime(mine.path, (1_000_000_000, 1_000_000_000))
    assert mine.is_abandoned()


def test_of_another_machine_only_what_rests_for_an_hour_is_abandoned(tmp_path: Path) -> None:
    path = tmp_path / f".a.{dead_pid()}-{'0' * 6 if THIS_HOST != '0' * 6 else '1' * 6}01234567.tmp"
    path.mkdir()
    (path / "part").touch()
    found = Temporary.parse(path)
    assert found is not None
    hour_ago = time.time() - 3601
    os.utime(path, (hour_ago, hour_ago))
    assert not found.is_abandoned()  # what is in it was just written
    os.utime(path / "part", (hour_ago, hour_ago))
    assert found.is_abandoned()
