"""One checkpoint, one file."""

from __future__ import annotations

import io as bytes_io
import multiprocessing
import os
import pickle
import resource
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO
from fulmen.fabric.checkpoint_io.verify import raise_if_damaged
from fulmen.fabric.errors import ArgumentTypeError, CheckpointDamagedError, CheckpointError, CheckpointNotFoundError

STATE = {"weight": torch.arange(5000.0), "step": 7, "names": ["a", ("b", None)]}


class Code:
    """Something that is no plain data."""


@pytest.fixture
def io() -> TorchCheckpointIO:
    return TorchCheckpointIO()


@pytest.mark.parametrize("remote", [False, True])
def test_what_is_saved_is_loaded(io: TorchCheckpointIO, tmp_path: Path, remote: bool) -> None:
    path = "memory://test_torch/sub/a.ckpt" if remote else tmp_path / "sub" / "a.ckpt"
    io.save_checkpoint(STATE, path)
    loaded = io.load_checkpoint(path)
    assert torch.equal(loaded.pop("weight"), STATE["weight"])  # type: ignore[arg-type]
    assert loaded == {"step": 7, "names": ["a", ("b", None)]}
    io.remove_checkpoint(path)
    io.remove_checkpoint(path)
    with pytest.raises(CheckpointNotFoundError, match=r"a\.ckpt"):
        io.load_checkpoint(path)


def test_the_file_is_one_of_torch_and_files_of_torch_are_read(io: TorchCheckpointIO, tmp_path: Path) -> None:
    io.save_checkpoint(STATE, tmp_path / "ours.ckpt")
    torch.save(STATE, tmp_path / "theirs.ckpt")
    for loaded in (
        torch.load(tmp_path / "ours.ckpt", weights_only=True),
        torch.load(tmp_path / "ours.ckpt", weights_only=True, mmap=True),
        io.load_checkpoint(tmp_path / "theirs.ckpt"),
    ):
        assert torch.equal(loaded["weight"], STATE["weight"])


@pytest.mark.parametrize("part", [0.0, 0.3, 0.999])
def test_a_truncated_file_is_named_with_its_size(io: TorchCheckpointIO, tmp_path: Path, part: float) -> None:
    path = tmp_path / "a.ckpt"
    io.save_checkpoint(STATE, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(CheckpointDamagedError, match=rf"a\.ckpt' \({path.stat().st_size} bytes\)"):
        io.load_checkpoint(path)


@pytest.mark.parametrize("path", ["memory://test_torch_flips/a.ckpt", None])
def test_every_single_changed_byte_is_noticed(io: TorchCheckpointIO, tmp_path: Path, path: str | None) -> None:
    """Data, pickle, padding, directory, the end of the archive and the digests themselves."""
    io.save_checkpoint({"weight": torch.arange(20.0), "step": 3}, tmp_path / "whole.ckpt")
    content = (tmp_path / "whole.ckpt").read_bytes()
    assert len(content) < 3000
    # A remote file is read in another way; every byte of the local one, every seventh of the other.
    for place in range(0, len(content), 1 if path is None else 7):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        if path is None:
            (tmp_path / "a.ckpt").write_bytes(changed)
        else:
            from fsspec.implementations.memory import MemoryFileSystem

            MemoryFileSystem().pipe_file(path, bytes(changed))
        with pytest.raises(CheckpointDamagedError, match=r"a\.ckpt"):
            io.load_checkpoint(path or tmp_path / "a.ckpt")


LARGE = {"first": torch.arange(3_000_000), "second": torch.ones(1_500_000), "step": 3}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "a.ckpt"
    TorchCheckpointIO().save_checkpoint(LARGE, path)
    return path


@settings(max_examples=25)
@given(st.data())
def test_a_changed_bit_of_a_large_file_is_noticed_and_its_block_is_named(large: Path, data: st.DataObject) -> None:
    num_bytes = large.stat().st_size
    bit = data.draw(st.integers(0, 8 * num_bytes - 1))
    with large.open("r+b") as file:
        file.seek(bit // 8)
        (old,) = file.read(1)
        try:
            file.seek(bit // 8)
            file.write(bytes([old ^ 1 << bit % 8]))
            file.flush()
            with pytest.raises(CheckpointDamagedError) as caught:
                TorchCheckpointIO().load_checkpoint(large)
        finally:
            file.seek(bit // 8)
            file.write(bytes([old]))
    if 100_000 < bit // 8 < num_bytes - 100_000:
        assert f"bytes {bit // 8 // 2**20 * 2**20} to" in str(caught.value)


def test_after_all_that_the_large_file_is_whole(large: Path) -> None:
    loaded = TorchCheckpointIO().load_checkpoint(large)
    assert torch.equal(loaded["first"], LARGE["first"])  # type: ignore[arg-type]
    assert torch.equal(loaded["second"], LARGE["second"])  # type: ignore[arg-type]


@given(st.data())
def test_a_changed_directory_of_a_file_of_torch_is_loaded_or_refused(foreign_file: Path, data: st.DataObject) -> None:
    # It has no SHA-256, and what zipfile makes of it may be anything.
    content = bytearray(foreign_file.read_bytes())
    places = [at for at in range(len(content)) if content[at : at + 4] in (b"PK\x01\x02", b"PK\x03\x04")]
    at = data.draw(st.sampled_from(places)) + data.draw(st.integers(4, 60))
    content[at] = data.draw(st.integers(0, 255))
    path = foreign_file.with_name("changed.ckpt")
    path.write_bytes(content)
    with suppress(CheckpointError):
        TorchCheckpointIO().load_checkpoint(path)
    with suppress(CheckpointError):
        raise_if_damaged(path)


@pytest.fixture(scope="module")
def foreign_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As torch alone writes it."""
    path = tmp_path_factory.mktemp("foreign") / "a.ckpt"
    torch.save({"weights": torch.arange(4.0), "step": 3, "naïve": 1}, path)
    return path


def test_a_file_of_another_kind_is_refused(io: TorchCheckpointIO, tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_text("trainer:\n  max_epochs: 3\n")
    with pytest.raises(CheckpointDamagedError, match="no checkpoint"):
        io.load_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="is a folder"):
        io.load_checkpoint(tmp_path)


def test_a_checkpoint_from_before_torch_1_6_is_read(io: TorchCheckpointIO, tmp_path: Path) -> None:
    torch.save({"step": 3}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert io.load_checkpoint(tmp_path / "old.ckpt") == {"step": 3}


def test_loading_runs_no_code_unless_told_to(io: TorchCheckpointIO, tmp_path: Path) -> None:
    torch.save({"object": Code()}, tmp_path / "a.ckpt")
    for weights_only in (None, True):
        with pytest.raises(CheckpointError, match=r"Code.*weights_only=False"):
            io.load_checkpoint(tmp_path / "a.ckpt", weights_only=weights_only)
    assert isinstance(io.load_checkpoint(tmp_path / "a.ckpt", weights_only=False)["object"], Code)


class Planted:
    """Unpickled as what a stranger would want to be run."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.proof),)


def plant_archive(path: Path, planted: Any) -> None:
    torch.save({"weight": planted}, path)


def plant_legacy(path: Path, planted: Any) -> None:
    torch.save({"weight": planted}, path, _use_new_zipfile_serialization=False)


def plant_pickle(path: Path, planted: Any) -> None:
    path.write_bytes(pickle.dumps(planted))


def plant_tar(path: Path, planted: Any) -> None:
    """The first format of all: a tar file of pickles."""
    content = pickle.dumps(planted)
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, bytes_io.BytesIO(content))


@pytest.mark.parametrize("plant", [plant_archive, plant_legacy, plant_pickle, plant_tar])
def test_planted_code_is_never_run(io: TorchCheckpointIO, tmp_path: Path, plant: Any) -> None:
    proof = tmp_path / "proof"
    plant(tmp_path / "a.ckpt", Planted(proof))
    with pytest.raises(CheckpointError, match=r"a\.ckpt"):
        io.load_checkpoint(tmp_path / "a.ckpt")
    assert not proof.exists()


def test_what_cannot_be_saved_is_answered_and_leaves_nothing(io: TorchCheckpointIO, tmp_path: Path) -> None:
    for thing in (lambda: None, threading.Lock()):
        with pytest.raises(CheckpointError, match=r"a\.ckpt.*\['here'\]\['thing'\]"):
            io.save_checkpoint({"step": 1, "here": {"thing": thing}}, tmp_path / "a.ckpt")
    with pytest.raises(ArgumentTypeError, match="storage_options=1"):
        io.save_checkpoint({}, tmp_path / "a.ckpt", storage_options=1)
    with pytest.raises(CheckpointError, match="folder of this name"):
        io.save_checkpoint({}, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["memory://test_torch_unsafe/a.ckpt", None])
def test_what_could_not_be_loaded_safely_is_not_saved(io: TorchCheckpointIO, tmp_path: Path, path: str | None) -> None:
    where = path or tmp_path / "a.ckpt"
    io.save_checkpoint(STATE, where)
    state = {"model": {"w": torch.ones(3)}, "callbacks": {"mine": [1, Code()]}}
    with pytest.raises(
        CheckpointError, match=r"a\.ckpt.*\['callbacks'\]\['mine'\]\[1\] holds .*Code.*add_safe_globals"
    ):
        io.save_checkpoint(state, where)
    assert io.load_checkpoint(where)["step"] == 7
    with torch.serialization.safe_globals([Code]):
        io.save_checkpoint(state, where)
        assert isinstance(io.load_checkpoint(where)["callbacks"]["mine"][1], Code)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_folder_for_temporary_files_is_named(
    io: TorchCheckpointIO, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tiny_disk))
    path = "memory://test_torch_full/a.ckpt"
    io.save_checkpoint({"step": 1}, path)
    with pytest.raises(CheckpointError, match=rf"a\.ckpt.*No space left.*after \d+ bytes.*{tiny_disk.name}.*TMPDIR"):
        io.save_checkpoint({"step": 2, "weight": torch.zeros(1_000_000)}, path)
    assert io.load_checkpoint(path) == {"step": 1}
    assert list(tiny_disk.iterdir()) == []


def test_a_local_save_needs_no_room_in_the_folder_for_temporary_files(
    io: TorchCheckpointIO, tmp_path: Path, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tiny_disk))
    io.save_checkpoint({"weight": torch.zeros(1_000_000)}, tmp_path / "a.ckpt")
    assert len(io.load_checkpoint(tmp_path / "a.ckpt")["weight"]) == 1_000_000


def test_a_folder_that_cannot_be_written_to_is_answered(io: TorchCheckpointIO, tiny_disk: Path) -> None:
    io.save_checkpoint({"step": 1}, tiny_disk / "a.ckpt")
    subprocess.run(["mount", "-o", "remount,ro", tiny_disk], check=True)
    with pytest.raises(CheckpointError, match=r"a\.ckpt.*Read-only file system, after 0 bytes"):
        io.save_checkpoint({"step": 2}, tiny_disk / "a.ckpt")
    assert io.load_checkpoint(tiny_disk / "a.ckpt") == {"step": 1}


class Failing:
    """A file on a disk that answers with EIO from some place on."""

    def __init__(self, file: Any, good_num_bytes: int) -> None:
        self._file, self._left = file, good_num_bytes

    def write(self, data: Any) -> int:
        self._left -= len(memoryview(data).cast("B"))
        if self._left < 0:
            raise OSError(5, "Input/output error")
        return int(self._file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_an_error_of_the_disk_is_told_with_path_and_bytes(
    io: TorchCheckpointIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fulmen.fabric.checkpoint_io.commit as module

    io.save_checkpoint({"step": 1}, tmp_path / "a.ckpt")
    opened = module.atomic_open

    from contextlib import contextmanager

    @contextmanager
    def failing(path: Any) -> Iterator[Any]:
        with opened(path) as file:
            yield Failing(file, 1_000_000)

    monkeypatch.setattr(module, "atomic_open", failing)
    with pytest.raises(CheckpointError, match=r"a\.ckpt.*Input/output error, after \d+ bytes"):
        io.save_checkpoint({"weight": torch.zeros(1_000_000)}, tmp_path / "a.ckpt")
    assert io.load_checkpoint(tmp_path / "a.ckpt") == {"step": 1}
    assert os.listdir(tmp_path) == ["a.ckpt"]


def test_what_a_failing_disk_does_not_give_back_is_no_save(
    io: TorchCheckpointIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    io.save_checkpoint({"step": 1}, tmp_path / "a.ckpt")
    opened = zipfile.ZipFile

    def cut(path: str) -> zipfile.ZipFile:
        os.truncate(path, 100)
        return opened(path)

    with monkeypatch.context() as patch:
        patch.setattr(zipfile, "ZipFile", cut)
        with pytest.raises(CheckpointError, match=r"a\.ckpt.*what was written cannot be read back"):
            io.save_checkpoint({"step": 2}, tmp_path / "a.ckpt")
    assert io.load_checkpoint(tmp_path / "a.ckpt") == {"step": 1}
    assert os.listdir(tmp_path) == ["a.ckpt"]


def test_an_error_of_the_disk_while_reading_is_told_too(
    io: TorchCheckpointIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    io.save_checkpoint({"weight": torch.zeros(1_000_000)}, tmp_path / "a.ckpt")
    preadv = os.preadv

    def failing(descriptor: int, buffers: Any, offset: int) -> int:
        if offset > 1_000_000:
            raise OSError(5, "Input/output error")
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(CheckpointError, match=r"a\.ckpt.*could not be read: Input/output error"):
        io.load_checkpoint(tmp_path / "a.ckpt")


def measure(path: Path, peaks: Any) -> None:
    torch.set_num_threads(1)  # a forked process has none of the parent's threads
    weights = {str(number): torch.ones(4_000_000) for number in range(4)}
    TorchCheckpointIO().save_checkpoint({"small": torch.ones(3)}, path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    TorchCheckpointIO().save_checkpoint(weights, path)
    peaks.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    weights = TorchCheckpointIO().load_checkpoint(path)
    peaks.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def test_saving_and_loading_take_no_second_copy_of_the_tensors(tmp_path: Path) -> None:
    """64 MB in four tensors: saved in 8 MB more, loaded in 8 MB more than the tensors themselves."""
    context = multiprocessing.get_context("fork")
    peaks, peaks_there = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(tmp_path / "a.ckpt", peaks_there), daemon=True)
    process.start()
    assert peaks.recv() < 8_000
    assert peaks.recv() < 64_000_000 / 1024 + 8_000
    process.join()


# ---- S3, from a server of this process


def test_s3_a_checkpoint_is_saved_verified_and_removed(io: TorchCheckpointIO, bucket: str) -> None:
    from fulmen.fabric.filesystem import get_filesystem

    path = f"{bucket}/run/a.ckpt"
    io.save_checkpoint({"step": 1, "weight": torch.arange(3_000_000)}, path)
    io.save_checkpoint({"step": 2, "weight": torch.arange(2_000_000)}, path)
    assert torch.equal(io.load_checkpoint(path)["weight"], torch.arange(2_000_000))
    filesystem = get_filesystem(path)
    content = bytearray(filesystem.cat_file(path))
    content[9_000_000] ^= 1
    filesystem.pipe_file(path, bytes(content))
    with pytest.raises(CheckpointDamagedError, match=r"s3://.*bytes 8388608 to"):
        io.load_checkpoint(path)
    io.remove_checkpoint(path)
    with pytest.raises(CheckpointNotFoundError, match="s3://"):
        io.load_checkpoint(path)


def test_s3_a_bucket_that_cannot_be_is_answered(io: TorchCheckpointIO, bucket: str) -> None:
    with pytest.raises(CheckpointError, match=r"s3://no bucket!/a\.ckpt.* could not be written"):
        io.save_checkpoint({"step": 1}, "s3://no bucket!/a.ckpt")


def test_s3_a_sharded_folder_is_saved_over_another_and_loaded(bucket: str) -> None:
    from fulmen.fabric.checkpoint_io.sharded import load_sharded, save_sharded
    from fulmen.fabric.checkpoint_io.sharded_names import is_sharded
    from fulmen.fabric.filesystem import list_dir

    path = f"{bucket}/run/folder"
    for number in (1.0, 2.0):
        save_sharded(path, {"model": {"w": torch.full((400_000,), number)}, "step": number})
        state = {"model": {"w": torch.zeros(400_000)}, "step": 0.0}
        load_sharded(path, state)
        assert state["step"] == number
        assert bool((state["model"]["w"] == number).all())  # type: ignore[index]
        assert is_sharded(path)
        assert len(list_dir(path)) == 3
