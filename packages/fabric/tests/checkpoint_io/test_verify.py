"""Which checkpoint is the newest that is whole?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from fulmen.fabric.checkpoint_io.sharded import save_sharded
from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO
from fulmen.fabric.checkpoint_io.verify import checkpoint_damage, newest_checkpoint, set_aside
from fulmen.fabric.filesystem import exists


def flip(path: Path, place: int = -500) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def make_older(path: Path, seconds: int) -> None:
    os.utime(path, (2_000_000_000 - seconds, 2_000_000_000 - seconds))


def test_the_newest_that_verifies_is_taken_and_the_others_are_named(tmp_path: Path) -> None:
    paths = {name: tmp_path / f"{name}.ckpt" for name in ("oldest", "old", "folder", "cut", "gone", "flipped")}
    for name in ("oldest", "old", "cut", "flipped"):
        TorchCheckpointIO().save_checkpoint({"w": torch.ones(100)}, paths[name])
    save_sharded(paths["folder"], {"w": torch.ones(100)})
    flip(paths["flipped"])
    flip(paths["folder"] / "__0_0.distcp")
    paths["cut"].write_bytes(paths["cut"].read_bytes()[:100])
    for seconds, name in enumerate(["flipped", "cut", "folder/.metadata", "old", "oldest"]):
        make_older(tmp_path / f"{name}.ckpt" if "/" not in name else paths["folder"] / ".metadata", seconds)
    newest = newest_checkpoint(paths.values())
    assert newest.path == str(paths["old"])
    passed = {Path(over.path).stem: over.reason for over in newest.passed_over}
    assert list(passed) == ["flipped", "cut", "folder"]
    assert "not those that were written" in passed["flipped"]
    assert "end is missing" in passed["cut"]
    assert "__0_0.distcp" in passed["folder"]
    assert newest_checkpoint([]).path is None
    assert "There is no checkpoint" in str(checkpoint_damage(paths["gone"]))


def test_files_of_torch_alone_are_compared_with_the_sums_of_their_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"w": torch.arange(10_000.0)}, path)
    assert checkpoint_damage(path) is None
    flip(path, 20_000)
    assert "data/0" in str(checkpoint_damage(path))
    torch.save({"step": 3}, path, _use_new_zipfile_serialization=False)
    assert checkpoint_damage(path) is None
    flip(path, 0)
    path.write_bytes(b"PK\x03\x04 and nothing else")
    assert "end is missing" in str(checkpoint_damage(path))


@pytest.mark.parametrize("remote", [False, True])
def test_a_damaged_one_is_kept_under_another_name(tmp_path: Path, remote: bool) -> None:
    base = "memory://test_verify" if remote else str(tmp_path)
    for number, expected in enumerate(["a.ckpt.damaged", "a.ckpt.damaged-1"]):
        TorchCheckpointIO().save_checkpoint({"number": number}, f"{base}/a.ckpt")
        assert newest_checkpoint([f"{base}/a.ckpt", f"{base}/b.ckpt"]).path == f"{base}/a.ckpt"
        assert set_aside(f"{base}/a.ckpt") == f"{base}/{expected}"
        assert not exists(f"{base}/a.ckpt")
        assert TorchCheckpointIO().load_checkpoint(f"{base}/{expected}") == {"number": number}
    save_sharded(f"{base}/folder", {"w": torch.ones(1)})
    assert set_aside(f"{base}/folder/") == f"{base}/folder.damaged"
    assert checkpoint_damage(f"{base}/folder.damaged") is None
