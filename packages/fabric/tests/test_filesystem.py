from __future__ import annotations

import os
import signal
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.filesystem import (
    atomic_open,
    check_writable,
    exists,
    get_filesystem,
    is_dir,
    is_local,
    join,
    list_dir,
    make_dirs,
    remove,
    sanitize_name,
    saying_where,
)


def write(path: str | Path, data: bytes) -> None:
    with atomic_open(path) as file:
        file.write(data)


@pytest.fixture(params=["local", "file", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    return f"file://{tmp_path}" if request.param == "file" else str(tmp_path)


def test_what_is_written_is_there_and_can_be_removed(folder: str) -> None:
    path = join(folder, "runs", "1", "weights.bin")
    assert not exists(path)
    write(path, b"1234")
    write(path, b"56")
    assert exists(path)
    assert get_filesystem(path).cat_file(path) == b"56"
    assert is_dir(join(folder, "runs"))
    assert list_dir(join(folder, "runs")) == ["1"]
    assert list_dir(join(folder, "runs", "1")) == ["weights.bin"]

    remove(path)
    assert not exists(path)
    remove(path)
    make_dirs(join(folder, "runs", "2", "deep"))
    make_dirs(join(folder, "runs", "2", "deep"))
    remove(join(folder, "runs"))
    assert list_dir(join(folder, "runs")) == []


def test_text_is_utf8(folder: str) -> None:
    path = join(folder, "notes.txt")
    with atomic_open(path, "w") as file:
        file.write("größer\n")
    assert get_filesystem(path).cat_file(path) == "größer\n".encode()


def test_an_error_inside_changes_nothing(folder: str) -> None:
    path = join(folder, "weights.bin")
    write(path, b"old")
    with pytest.raises(KeyboardInterrupt), atomic_open(path) as file:  # noqa: PT012  # what raises is the block
        file.write(b"half of the n")
        raise KeyboardInterrupt
    assert get_filesystem(path).cat_file(path) == b"old"
    assert list_dir(folder) == ["weights.bin"]


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_disk_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "weights.bin", b"new")
    assert os.listdir(tmp_path) == []


def test_a_disk_that_runs_full_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "weights.bin"
    write(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(path, b"n" * 1_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["weights.bin"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    write(path, b"old")
    writer = os.fork()
    if writer == 0:
        with atomic_open(path) as file:
            file.write(b"n" * 1_000_000)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(writer, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    # What it left behind is hidden and says whose it was.
    (left,) = set(os.listdir(tmp_path)) - {"weights.bin"}
    assert left.startswith(".weights.bin.")
    assert left.endswith(".tmp")


def test_a_long_name_still_fits(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 127)
    write(path, b"1")
    assert path.read_bytes() == b"1"


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"target")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write(tmp_path / "link", b"new")
    assert (tmp_path / "target").read_bytes() == b"target"
    assert (tmp_path / "link").read_bytes() == b"new"


def test_removing_a_link_to_a_folder_keeps_the_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    remove(tmp_path / "link")
    assert os.listdir(tmp_path) == ["real"]


@pytest.mark.parametrize(
    ("path", "local"),
    [
        ("runs/1", True),
        (Path("/tmp/x"), True),
        ("file:///tmp/x", True),
        ("C:\\runs", True),
        ("s3://bucket/x", False),
        ("memory://x", False),
    ],
)
def test_is_local(path: str | Path, local: bool) -> None:
    assert is_local(path) is local


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    assert list_dir(tmp_path / "a") == list_dir(tmp_path / "missing") == []


@given(st.text(max_size=40))
def test_a_sanitized_name_names_one_file_and_stays(name: str) -> None:
    safe = sanitize_name(name)
    assert safe
    assert safe not in (".", "..")
    assert not set(safe) & set('/\\:*?"<>|\0\n')
    assert sanitize_name(safe) == safe


def test_where_a_growing_upload_can_be_seen_it_gets_its_name_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    from fulmen.fabric import filesystem

    uploaded = []
    put_file = MemoryFileSystem.put_file

    def put(self: MemoryFileSystem, local: str, remote: str, **kwargs: object) -> None:
        uploaded.append(remote)
        put_file(self, local, remote, **kwargs)

    monkeypatch.setattr(filesystem, "_RENAMING_PROTOCOLS", ("memory://",))
    monkeypatch.setattr(MemoryFileSystem, "put_file", put)
    for content in (b"first", b"second"):
        with filesystem.atomic_open("memory://renamed/a", "wb") as file:
            file.write(content)
        assert MemoryFileSystem().cat_file("memory://renamed/a") == content
    assert len(uploaded) == 2
    assert all(path.startswith("memory://renamed/.a.") for path in uploaded)
    assert filesystem.list_dir("memory://renamed") == ["a"]


def test_what_a_client_raises_of_its_own_family_is_an_error_of_the_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    from fulmen.fabric import filesystem

    class ClientError(Exception):
        """As those of object stores."""

    def put(self: MemoryFileSystem, local: str, remote: str, **kwargs: object) -> None:
        raise ClientError("quota exceeded")

    monkeypatch.setattr(MemoryFileSystem, "put_file", put)
    with pytest.raises(OSError, match=r"ClientError: quota exceeded"), filesystem.atomic_open("memory://a/b", "wb"):
        pass


def test_a_folder_that_can_be_written_is_made_and_left_empty(tmp_path):
    check_writable(tmp_path / "a" / "b", "X(dirpath='a/b')")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    check_writable("memory://never_looked_at", "X(dirpath=...)")
    assert not exists("memory://never_looked_at")


def test_a_place_that_cannot_be_written_is_said_with_its_argument(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"^X\(dirpath='p'\) names a place .* Not a directory in .*file"):
        check_writable(tmp_path / "file" / "b", "X(dirpath='p')")
    with pytest.raises(ConfigurationError, match="says: no idea"), saying_where("X(p='p')"):
        raise OSError("no idea")
