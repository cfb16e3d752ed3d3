"""A folder that is read: every byte is checked, and other layouts are known."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from fulmen.fabric.checkpoint_io.sharded import load_sharded, save_sharded
from fulmen.fabric.checkpoint_io.sharded_folder import ShardedFolder
from fulmen.fabric.checkpoint_io.verify import checkpoint_damage
from fulmen.fabric.errors import CheckpointDamagedError, CheckpointError

STATE = {"model": {"w": torch.arange(6.0).view(2, 3)}, "epoch": 3, "n": {"value": 5, "t": torch.ones(1)}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "a.ckpt"
    save_sharded(path, STATE)
    return path


def test_every_single_changed_byte_of_every_part_is_noticed(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    shutil.copytree(saved, path)
    ShardedFolder(path).verify()
    for name in (".metadata", "meta.pt", "__0_0.distcp"):
        content = (path / name).read_bytes()
        for place in range(0, len(content), 17):
            changed = bytearray(content)
            changed[place] ^= 1 << place % 8
            (path / name).write_bytes(changed)
            with pytest.raises(CheckpointDamagedError, match=rf"a\.ckpt.* in its part '{name}'"):
                ShardedFolder(path).verify()
        for other in (content[:-1], content + b"x", b""):
            (path / name).write_bytes(other)
            with pytest.raises(CheckpointDamagedError, match=rf"'{name}'"):
                ShardedFolder(path).verify()
        (path / name).write_bytes(content)
    (path / "__0_0.distcp").unlink()
    with pytest.raises(CheckpointDamagedError, match=r"'__0_0\.distcp': it is missing"):
        load_sharded(path, {"model": {"w": torch.zeros(2, 3)}})


def test_what_is_not_asked_for_is_not_read(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    shutil.copytree(saved, path)
    (path / "__0_0.distcp").unlink()
    state = {"epoch": 0}
    load_sharded(path, state)
    assert state == {"epoch": 3}


def test_a_folder_of_lightning_is_read(tmp_path: Path) -> None:
    """Tensors by torch.distributed.checkpoint, everything else in `meta.pt`, tensors there too."""
    path = tmp_path / "a.ckpt"
    dcp.save({"model": {"w": torch.ones(2)}, "optimizer_0": {"lr": 0.5}}, checkpoint_id=path, no_dist=True)
    torch.save({"epoch": 4, "callbacks": {"mean": torch.ones(3)}}, path / "meta.pt")
    state = {"model": {"w": torch.zeros(2)}, "optimizer_0": {"lr": 0}, "epoch": 0, "callbacks": None}
    load_sharded(path, state)
    assert state["epoch"] == 4
    assert state["optimizer_0"] == {"lr": 0.5}
    assert torch.equal(state["model"]["w"], torch.ones(2))  # type: ignore[index]
    assert torch.equal(state["callbacks"]["mean"], torch.ones(3))  # type: ignore[index]


def test_what_was_one_value_in_older_folders_is_put_in_its_place(tmp_path: Path) -> None:
    """Before torch 2.4, dictionaries without a tensor were one entry."""
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

    groups = [{"lr": 0.5, "params": [0, 1]}]
    flat = {"optimizer.param_groups": groups, "optimizer.state.w": torch.ones(2)}
    dcp.save(flat, checkpoint_id=tmp_path / "a", no_dist=True, planner=DefaultSavePlanner(flatten_state_dict=False))
    state = {"optimizer": {"param_groups": [{"lr": 0.0, "params": []}], "state": {"w": torch.zeros(2)}}}
    load_sharded(tmp_path / "a", state)
    assert state["optimizer"]["param_groups"] == groups
    assert torch.equal(state["optimizer"]["state"]["w"], torch.ones(2))  # type: ignore[call-overload]


def test_a_part_that_has_no_digest_is_no_part(saved: Path, tmp_path: Path) -> None:
    from fulmen.fabric.checkpoint_io.manifest import Manifest, read_sealed_metadata, seal_metadata

    path = tmp_path / "a.ckpt"
    shutil.copytree(saved, path)
    pickled, manifest = read_sealed_metadata((path / ".metadata").read_bytes())
    assert manifest is not None
    parts = {name: part for name, part in manifest.parts.items() if name == "meta.pt"}
    (path / ".metadata").write_bytes(seal_metadata(pickled, Manifest(parts)))
    with pytest.raises(CheckpointDamagedError, match="no digests of __0_0"):
        load_sharded(path, {"model": {"w": torch.zeros(2, 3)}})


def test_a_storage_that_fails_is_no_damage(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fulmen.fabric.checkpoint_io import blocks

    def failing(file: object, target: memoryview) -> int:
        raise OSError(5, "Input/output error")

    folder = ShardedFolder(saved)
    monkeypatch.setattr(blocks, "read_whole", failing)
    with pytest.raises(CheckpointError, match=r"could not be read: Input/output error, in its part") as caught:
        folder.load({"model": {"w": torch.zeros(2, 3)}})
    assert not isinstance(caught.value, CheckpointDamagedError)


@pytest.mark.parametrize("name", [".metadata", "meta.pt", "__0_0.distcp"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.timeout(60)  # whoever opens a pipe waits for its other end
def test_what_is_no_file_is_refused_with_the_name_of_the_part(
    name: str, kind: str, saved: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.ckpt"
    shutil.copytree(saved, path)
    (path / name).unlink()
    if kind == "folder":
        (path / name).mkdir()
    elif kind == "device":
        (path / name).symlink_to(os.devnull)
    else:
        os.mkfifo(path / name)
    said = "Is a directory" if kind == "folder" else "it is a pipe or a device, and no file"
    for read in (lambda: load_sharded(path, {"model": {"w": torch.zeros(2, 3)}}), lambda: ShardedFolder(path).verify()):
        with pytest.raises(CheckpointError, match=rf"a\.ckpt' could not be read: {said}, in its part '{name}'"):
            read()
    assert said in (checkpoint_damage(path) or "")


def test_the_names_come_in_the_order_of_the_state(saved: Path) -> None:
    assert ShardedFolder(saved).names() == ["model.w", "n.value", "n.t"]
