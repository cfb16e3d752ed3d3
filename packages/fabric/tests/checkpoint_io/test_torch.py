"""One checkpoint, one file."""

from __future__ import annotations

import multiprocessing
import resource
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO
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


@pytest.mark.parametrize("part", [0.0, 0.3, 0.999])
def test_a_truncated_file_is_named_with_its_size(io: TorchCheckpointIO, tmp_path: Path, part: float) -> None:
    path = tmp_path / "a.ckpt"
    io.save_checkpoint(STATE, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(CheckpointDamagedError, match=rf"a\.ckpt' \({path.stat().st_size} bytes\)"):
        io.load_checkpoint(path)


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


def test_what_cannot_be_saved_is_answered_and_leaves_nothing(io: TorchCheckpointIO, tmp_path: Path) -> None:
    for thing in (lambda: None, threading.Lock()):
        with pytest.raises(CheckpointError, match=r"a\.ckpt.*\['thing'\]"):
            io.save_checkpoint({"thing": thing}, tmp_path / "a.ckpt")
    with pytest.raises(ArgumentTypeError, match="storage_options=1"):
        io.save_checkpoint({}, tmp_path / "a.ckpt", storage_options=1)
    with pytest.raises(CheckpointError, match="folder of this name"):
        io.save_checkpoint({}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def measure(path: Path, peaks: Any) -> None:
    torch.set_num_threads(1)  # a forked process has none of the parent's threads
    weights = {str(number): torch.ones(4_000_000) for number in range(4)}
    TorchCheckpointIO().save_checkpoint({"small": torch.ones(3)}, path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    TorchCheckpointIO().save_checkpoint(weights, path)
    peaks.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def test_saving_takes_no_second_copy_of_the_tensors(tmp_path: Path) -> None:
    """64 MB in four tensors, in 8 MB."""
    context = multiprocessing.get_context("fork")
    peaks, peaks_there = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(tmp_path / "a.ckpt", peaks_there), daemon=True)
    process.start()
    assert peaks.recv() < 8_000
    process.join()
