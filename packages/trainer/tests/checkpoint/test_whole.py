"""The choice among checkpoints, one process: runs in several are in `tests/cross/test_newest_that_verifies.py`."""

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen.fabric.checkpoint_io import TorchCheckpointIO
from fulmen.trainer.checkpoint.paths import Choice
from fulmen.trainer.checkpoint.whole import clear_leftovers, load_whole
from fulmen.trainer.errors import CheckpointDamagedError, CheckpointError, CheckpointNotFoundError

FIT = {"state_dict": {}, "optimizer_states": [], "epoch": 0, "global_step": 0}


def saved(path: Path, **content: Any) -> str:
    TorchCheckpointIO().save_checkpoint({**FIT, "tensor": torch.arange(100), **content}, path)
    return str(path)


def damage(path: str) -> None:
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def load(make: Any, paths: list[str], *, asked: str = "last", fits: bool = True, may_begin: bool = False) -> Any:
    choice = Choice(paths[0], asked=asked, otherwise=tuple(paths[1:]), may_begin=may_begin)
    return load_whole(make().context, choice, fits=fits, weights_only=None, call="Trainer.fit")


def test_the_first_that_is_whole_is_taken_and_the_damaged_one_gets_another_name(quick: Any, tmp_path: Path) -> None:
    new, old = saved(tmp_path / "new.ckpt"), saved(tmp_path / "old.ckpt", epoch=7)
    damage(new)
    with pytest.warns(UserWarning, match="passed over 1 of the checkpoints.*new.ckpt.*old.ckpt is loaded"):
        path, checkpoint = load(quick, [new, old])
    assert path == old
    assert checkpoint["epoch"] == 7
    assert sorted(os.listdir(tmp_path)) == ["new.ckpt.damaged", "old.ckpt"]


def test_who_only_reads_leaves_the_damaged_one_where_it_is(quick: Any, tmp_path: Path) -> None:
    new, old = saved(tmp_path / "new.ckpt"), saved(tmp_path / "old.ckpt")
    damage(new)
    with pytest.warns(UserWarning, match="passed over"):
        assert load(quick, [new, old], fits=False)[0] == old
    assert os.path.exists(new)


def test_another_name_of_a_damaged_file_is_not_tried_again(quick: Any, tmp_path: Path) -> None:
    new, old = saved(tmp_path / "new.ckpt"), saved(tmp_path / "old.ckpt")
    os.link(new, tmp_path / "last.ckpt")
    damage(new)
    with pytest.warns(UserWarning, match="passed over 1 of"):
        assert load(quick, [str(tmp_path / "last.ckpt"), new, old])[0] == old


def test_nothing_whole_is_an_error_unless_the_run_may_begin(quick: Any, tmp_path: Path) -> None:
    only = saved(tmp_path / "only.ckpt")
    damage(only)
    with pytest.raises(CheckpointDamagedError, match="finds no checkpoint that can be loaded"):
        load(quick, [only], fits=False)
    with pytest.raises(CheckpointNotFoundError, match="finds no checkpoint"):
        load(quick, [str(tmp_path / "gone.ckpt")])
    with pytest.warns(UserWarning, match="the run starts afresh"):
        assert load(quick, [only], may_begin=True) == (None, None)


def test_a_fit_that_takes_what_there_is_passes_over_bare_weights(quick: Any, tmp_path: Path) -> None:
    bare = str(tmp_path / "weights.ckpt")
    TorchCheckpointIO().save_checkpoint({"state_dict": {}}, bare)
    whole = saved(tmp_path / "whole.ckpt")
    with pytest.warns(UserWarning, match="holds weights only"):
        assert load(quick, [bare, whole], asked="auto")[0] == whole
    assert os.path.exists(bare)


def test_what_is_whole_and_must_not_be_loaded_is_refused(quick: Any, tmp_path: Path) -> None:
    class Planted:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": Planted()}, tmp_path / "planted.ckpt")
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        load(quick, [str(tmp_path / "planted.ckpt"), saved(tmp_path / "old.ckpt")])
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_is_not_there_has_no_leftovers(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clear_leftovers([tmp_path / "none", tmp_path])
