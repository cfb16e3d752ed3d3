"""Folders in the layout of DeepSpeed, made here piece by piece: whoever wrote them, the whole is the same."""

import os
import pickle
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.fabric.checkpoint_io.consolidate import consolidate
from fulmen.fabric.checkpoint_io.deepspeed_files import Opaque, read_file, write_file
from fulmen.fabric.checkpoint_io.deepspeed_folder import (
    RENAMED,
    DeepSpeedFolder,
    convert_zero_checkpoint_to_fp32_state_dict,
    ds_checkpoint_dir,
)
from fulmen.fabric.checkpoint_io.sharded_names import is_deepspeed
from fulmen.fabric.checkpoint_io.verify import checkpoint_damage, newest_checkpoint
from fulmen.fabric.errors import CheckpointDamagedError, CheckpointError, CheckpointNotFoundError

SHAPES = st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=4)


def cut(flat, world_size):
    """Equal parts; the last ones are filled with what nobody asked for."""
    size = -(-flat.numel() // world_size)
    padded = torch.cat([flat, torch.full((size * world_size - flat.numel(),), -1.0)])
    return list(padded.split(size)) if size else [padded] * world_size


def write(folder, weights, groups, *, stage, world_size, client=None, tag="checkpoint", buffers=None):
    """What engines in `world_size` processes write; `groups` are lists of names."""
    inner = folder / tag
    inner.mkdir(parents=True)
    (folder / "latest").write_text(tag)
    buffers = buffers or {}
    held = {name: torch.empty(0) if stage == 3 else value.half() for name, value in weights.items()}
    model = {
        "module": {**held, **buffers},
        "buffer_names": list(buffers),
        "param_shapes": [{name: weights[name].shape for name in group} for group in groups],
        "shared_params": {},
        "frozen_param_shapes": {},
        "frozen_param_fragments": {},
        "dp_world_size": world_size,
        "global_steps": 3,
        "ds_version": "0.19.8",
        **(client or {}),
    }
    flats = {key: [[] for _ in range(world_size)] for key in ("master", "exp_avg")}
    for group in groups:
        for key, factor in (("master", 1.0), ("exp_avg", 2.0)):
            if stage == 3:
                parts = [
                    [cut(factor * weights[name].reshape(-1), world_size)[rank] for name in group]
                    for rank in range(world_size)
                ]
                for rank, of_rank in enumerate(parts):
                    flats[key][rank].append(torch.cat(of_rank))
            else:
                together = torch.cat([factor * weights[name].reshape(-1) for name in group])
                for rank, part in enumerate(cut(together, world_size)):
                    flats[key][rank].append(part)
    for rank in range(world_size):
        state = {
            "state": {i: {"step": torch.tensor(3.0), "exp_avg": flat} for i, flat in enumerate(flats["exp_avg"][rank])},
            "param_groups": [{"lr": 0.1, "params": list(range(len(groups)))}],
        }
        optimizer = (
            {"zero_stage": 3, "fp32_flat_groups": flats["master"][rank], "optimizer_state_dict": state}
            if stage == 3
            else {
                "zero_stage": stage,
                "single_partition_of_fp32_groups": flats["master"][rank],
                "base_optimizer_state": state,
            }
        )
        write_file(inner / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt", {"optimizer_state_dict": optimizer})
        if stage == 3:
            write_file(inner / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt", model)
    if stage != 3:
        write_file(inner / "mp_rank_00_model_states.pt", model)
    return folder


def make_weights(shapes):
    return {f"layer.{index}": torch.randn(shape) for index, shape in enumerate(shapes)}


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.integers(1, 4), st.sampled_from([1, 2, 3]), st.integers(1, 2), st.data())
def test_the_whole_is_what_was_cut(tmp_path_factory, shapes, world_size, stage, num_groups, data):
    weights = make_weights(shapes)
    names = data.draw(st.permutations(list(weights)))
    groups = [group for group in (names[:num_groups], names[num_groups:]) if group]
    folder = tmp_path_factory.mktemp("folder")
    write(folder, weights, groups, stage=stage, world_size=world_size)
    found = DeepSpeedFolder(folder)
    assert (found.stage, found.world_size) == (stage, world_size)
    assert set(found.trained()) == set(weights)
    read = found.weights()
    assert list(read) == list(weights), "in the order of the module"
    for name, value in weights.items():
        assert torch.equal(read[name], value)
        state = found.optimizer_state(name)
        assert torch.equal(state["exp_avg"], 2 * value)
        assert state["step"] == 3
    shutil.rmtree(folder)


@pytest.fixture
def folder(tmp_path):
    weights = make_weights([(3, 2), (4,)])
    client = {"epoch": 1, "optimizer_states": [{}], RENAMED: {"lr_scheduler": 5}}
    buffers = {"running": torch.ones(2, dtype=torch.float16)}
    return write(tmp_path / "run", weights, [list(weights)], stage=3, world_size=2, client=client, buffers=buffers)


def test_one_file_of_it_needs_no_package_and_no_classes(folder, tmp_path):
    before = DeepSpeedFolder(folder).weights()
    consolidate(folder, tmp_path / "one.pt")
    converted = convert_zero_checkpoint_to_fp32_state_dict(folder, tmp_path / "two.pt")
    for path in (tmp_path / "one.pt", tmp_path / "two.pt"):
        loaded = torch.load(path, weights_only=True)
        assert {key: value for key, value in loaded.items() if key != "state_dict"} == {"epoch": 1, "lr_scheduler": 5}
        assert loaded["state_dict"].keys() == converted["state_dict"].keys() == before.keys()
        assert all(torch.equal(loaded["state_dict"][name], value) for name, value in before.items())
        assert loaded["state_dict"]["running"].dtype is torch.float32


def test_the_inner_folder_is_found(folder, tmp_path):
    assert ds_checkpoint_dir(folder) == ds_checkpoint_dir(folder, "checkpoint") == str(folder / "checkpoint")
    assert DeepSpeedFolder(folder / "checkpoint").stage == 3
    (folder / "latest").unlink()
    assert is_deepspeed(folder)
    assert ds_checkpoint_dir(folder) == str(folder / "checkpoint")
    for wrong in (tmp_path / "nowhere", folder / "checkpoint" / "x"):
        with pytest.raises(CheckpointNotFoundError, match="no folder"):
            DeepSpeedFolder(wrong)
    with pytest.raises(CheckpointNotFoundError, match="no folder"):
        ds_checkpoint_dir(folder, "global_step7")
    (tmp_path / "empty").mkdir()
    assert not is_deepspeed(tmp_path / "empty")
    with pytest.raises(CheckpointNotFoundError, match="_model_states"):
        DeepSpeedFolder(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="not on this machine"):
        DeepSpeedFolder("memory://run")


def test_what_is_damaged_is_told(folder, tmp_path):
    assert checkpoint_damage(folder) is None
    assert newest_checkpoint([folder]).path == str(folder)
    file = next((folder / "checkpoint").glob("*rank_1*optim_states.pt"))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :])
    assert "damaged" in str(checkpoint_damage(folder))
    file.unlink()
    with pytest.raises(CheckpointDamagedError, match="the files of 1 are missing"):
        DeepSpeedFolder(folder).weights()


def test_what_is_the_same_in_all_files_is_read_in_one(folder):
    next((folder / "checkpoint").glob("*rank_1*optim_states.pt")).write_bytes(b"nothing")
    found = DeepSpeedFolder(folder)
    assert (found.stage, found.world_size, found.scaler()) == (3, 2, {})
    with pytest.raises(CheckpointDamagedError):
        found.weights()


class Runs:
    def __reduce__(self):
        return print, ("it ran",)


def test_nothing_in_it_is_run(folder, capsys):
    file = folder / "checkpoint" / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    with open(file, "wb") as opened:
        torch.save({"module": {}, "wrong": Runs()}, opened)
    with pytest.raises(CheckpointError, match="more than tensors and plain data"):
        DeepSpeedFolder(folder).weights()
    assert DeepSpeedFolder(folder, trusted=True).model_states["wrong"] is None
    assert capsys.readouterr().out == "it ran\n"
    with pytest.raises(CheckpointError, match=r"would run code"):
        write_file(folder / "new.pt", {"wrong": Runs()})


class _Scaler:
    __module__ = "deepspeed.runtime.fp16.loss_scaler"
    __qualname__ = "DynamicLossScaler"

    def __init__(self):
        self.cur_scale = 8.0


def test_objects_of_the_package_become_opaque(tmp_path, monkeypatch):
    import sys
    from types import ModuleType

    module = ModuleType(_Scaler.__module__)
    module.DynamicLossScaler = _Scaler
    for name in ("deepspeed", "deepspeed.runtime", "deepspeed.runtime.fp16"):
        monkeypatch.setitem(sys.modules, name, sys.modules.get(name) or ModuleType(name))
    monkeypatch.setitem(sys.modules, _Scaler.__module__, module)
    write_file(tmp_path / "one.pt", {"loss_scaler": _Scaler()})
    found = read_file(tmp_path / "one.pt")["loss_scaler"]
    assert type(found) is Opaque
    assert found.cur_scale == 8.0
    assert type(read_file(tmp_path / "one.pt", let_in=[_Scaler])["loss_scaler"]) is _Scaler
    assert pickle.dumps(Opaque(1))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_pipes_in_the_place_of_files_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "mp_rank_00_model_states.pt")
    os.mkfifo(tmp_path / "latest")
    assert is_deepspeed(tmp_path)
    assert "it is a pipe or a device, and no file" in checkpoint_damage(tmp_path)
    with pytest.raises(CheckpointError, match="a pipe or a device"):
        consolidate(tmp_path, tmp_path / "whole.ckpt")
