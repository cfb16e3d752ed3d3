"""A sharded folder becomes one file."""

from __future__ import annotations

import multiprocessing
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from fulmen.fabric.checkpoint_io.consolidate import consolidate
from fulmen.fabric.checkpoint_io.sharded import save_sharded
from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO
from fulmen.fabric.errors import CheckpointDamagedError, CheckpointError, CheckpointNotFoundError

STATE: dict[str, Any] = {
    "model": {"a.b": torch.arange(6.0).view(2, 3).T, "half": torch.ones(3).bfloat16(), "none": torch.zeros(0, 4)},
    "optimizer": {
        "state": {0: {"step": torch.tensor(2.0), "w": torch.ones(2)}, 1: {"step": torch.tensor(2.0)}},
        "param_groups": [{"lr": 0.1, "params": [0, 1]}],
        "empty": {},
    },
    "list": [torch.ones(1), {"x": None}],
    "epoch": 3,
    "names": ("a", None),
}


def assert_same(found: Any, wanted: Any) -> None:
    assert type(found) is type(wanted)
    if isinstance(wanted, torch.Tensor):
        assert torch.equal(found, wanted)
        assert found.dtype == wanted.dtype
    elif isinstance(wanted, dict):
        assert set(found) == set(wanted)
        for key in wanted:
            assert_same(found[key], wanted[key])
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other)
    else:
        assert found == wanted


@pytest.mark.parametrize("remote", [False, True])
def test_the_file_holds_what_was_saved_nested_as_it_was(tmp_path: Path, remote: bool) -> None:
    base = "memory://test_consolidate" if remote else str(tmp_path)
    save_sharded(f"{base}/folder", STATE)
    consolidate(f"{base}/folder", f"{base}/deep/whole.ckpt")
    assert_same(TorchCheckpointIO().load_checkpoint(f"{base}/deep/whole.ckpt"), STATE)
    if not remote:
        loaded = torch.load(f"{base}/deep/whole.ckpt", weights_only=True)
        assert_same(loaded, STATE)
        # Each tensor has memory of its own.
        assert loaded["model"]["half"].untyped_storage().nbytes() == 6
        assert os.listdir(tmp_path / "deep") == ["whole.ckpt"]


def test_a_folder_of_torch_and_lightning_too(tmp_path: Path) -> None:
    dcp.save({"model": {"w": torch.ones(2)}, "n": 5}, checkpoint_id=tmp_path / "a", no_dist=True)
    torch.save({"epoch": 4}, tmp_path / "a" / "meta.pt")
    consolidate(tmp_path / "a", tmp_path / "a.ckpt")
    assert_same(
        TorchCheckpointIO().load_checkpoint(tmp_path / "a.ckpt"), {"model": {"w": torch.ones(2)}, "n": 5, "epoch": 4}
    )


def private_num_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    return int(line.split()[1]) * 1024


def consolidate_in_little_memory(folder: Path, done: Any) -> None:
    torch.set_num_threads(1)
    state = {str(number): torch.full((5_000_000,), float(number)) for number in range(8)}
    save_sharded(folder / "a", state)
    del state
    resource.setrlimit(resource.RLIMIT_DATA, (private_num_bytes() + 2**26, resource.RLIM_INFINITY))
    consolidate(folder / "a", folder / "a.ckpt")
    done.send(True)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the size of a process is read from /proc")
def test_it_is_never_all_in_memory(tmp_path: Path) -> None:
    """160 MB, by a process that may take 64 MB more."""
    context = multiprocessing.get_context("fork")
    done, done_there = context.Pipe(duplex=False)
    process = context.Process(target=consolidate_in_little_memory, args=(tmp_path, done_there), daemon=True)
    process.start()
    done_there.close()
    assert done.recv()
    process.join()
    loaded = TorchCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")
    assert all(bool((tensor == int(name)).all()) for name, tensor in loaded.items())


def test_what_is_wrong_is_answered_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="missing"):
        consolidate(tmp_path / "missing", tmp_path / "a.ckpt")
    save_sharded(tmp_path / "a", STATE)
    with pytest.raises(CheckpointError, match="folder of this name"):
        consolidate(tmp_path / "a", tmp_path / "a")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file/b\.ckpt"):
        consolidate(tmp_path / "a", tmp_path / "file" / "b.ckpt")
    part = tmp_path / "a" / "__0_0.distcp"
    content = bytearray(part.read_bytes())
    content[1000] ^= 1
    part.write_bytes(content)
    with pytest.raises(CheckpointDamagedError, match="__0_0"):
        consolidate(tmp_path / "a", tmp_path / "a.ckpt")
    assert sorted(os.listdir(tmp_path)) == ["a", "file"]
