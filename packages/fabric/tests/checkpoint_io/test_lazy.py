"""Tensors that stay in the file."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen.fabric.checkpoint_io.lazy import lazy_load
from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO
from fulmen.fabric.errors import CheckpointDamagedError, CheckpointError, CheckpointNotFoundError, ConfigurationError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.ckpt"
    TorchCheckpointIO().save_checkpoint({"w": torch.arange(1_000_000.0), "step": 3}, path)
    return path


@pytest.mark.parametrize("verify", [True, False])
def test_the_tensors_are_those_of_the_file_and_writing_to_them_does_not_change_it(path: Path, verify: bool) -> None:
    before = path.read_bytes()
    loaded = lazy_load(path, verify=verify)
    assert loaded["step"] == 3
    assert torch.equal(loaded["w"], torch.arange(1_000_000.0))
    loaded["w"].zero_()
    assert path.read_bytes() == before
    # The next save brings a new file: the tensors are of the old one.
    again = lazy_load(path, verify=verify)
    TorchCheckpointIO().save_checkpoint({"w": torch.zeros(1_000_000)}, path)
    assert torch.equal(again["w"], torch.arange(1_000_000.0))


def measure(path: Path, peaks: Any) -> None:
    torch.set_num_threads(1)
    TorchCheckpointIO().save_checkpoint({str(n): torch.ones(4_000_000) for n in range(8)}, path)
    lazy_load(path)
    before = anonymous_mb()
    loaded = lazy_load(path)
    peaks.send((float(loaded["3"].sum()), anonymous_mb() - before))


def anonymous_mb() -> float:
    """What this process holds in memory that is in no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024 / 1e6


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the size of a process is read from /proc")
def test_a_file_of_128_mb_takes_next_to_no_memory(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    peaks, peaks_there = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(tmp_path / "a.ckpt", peaks_there), daemon=True)
    process.start()
    peaks_there.close()
    total, taken_mb = peaks.recv()
    process.join()
    assert total == 4_000_000
    assert taken_mb < 5


def test_damage_is_noticed_before_anything_is_handed_out(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[2_000_000] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointDamagedError, match=r"a\.ckpt.*bytes 1048576 to"):
        lazy_load(path)
    assert lazy_load(path, verify=False)["step"] == 3
    path.write_bytes(content[:-1])
    with pytest.raises(CheckpointDamagedError, match=r"a\.ckpt"):
        lazy_load(path, verify=False)


def test_what_cannot_be_mapped_is_answered(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"s3://a/b\.ckpt.*remote"):
        lazy_load("s3://a/b.ckpt")
    with pytest.raises(CheckpointNotFoundError, match=r"none\.ckpt"):
        lazy_load(tmp_path / "none.ckpt")
    torch.save({"step": 3}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"old\.ckpt.*before torch 1\.6"):
        lazy_load(tmp_path / "old.ckpt")


class Planted:
    def __reduce__(self) -> Any:
        return print, ("planted code was run",)


def test_planted_code_is_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": Planted()}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt.*print"):
        lazy_load(tmp_path / "a.ckpt")
    assert capsys.readouterr().out == ""
