import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen.cli.newest_run import find, refuse_nothing
from fulmen.fabric.errors import MisconfigurationException
from fulmen.trainer import Trainer
from fulmen.trainer.callbacks import ModelCheckpoint
from fulmen.trainer.loggers import CSVLogger


def keep(folder: Path, name: str, best: str, *, at_s: int, callback: ModelCheckpoint | None = None) -> Path:
    """A checkpoint as a run leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    key = (callback or ModelCheckpoint(monitor="acc", mode="max")).state_key
    state = {"monitor": "acc", "best_model_path": best, "best_model_score": torch.tensor(0.5)}
    torch.save({"state_dict": {}, "epoch": 1, "global_step": 2, "callbacks": {key: state}}, path)
    os.utime(path, (at_s, at_s))
    return path


def defaults(folder: Path) -> dict[str, Any]:
    """What a program gives to its Trainer."""
    return {
        "default_root_dir": folder,
        "callbacks": [ModelCheckpoint(monitor="acc", mode="max")],
        "logger": CSVLogger(folder),
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }


def found(folder: Path, asked: str, **given: Any) -> str | None:
    return find(asked, None, {**defaults(folder), **given}, Trainer)


def test_best_is_what_the_newest_run_ranks_best(tmp_path: Path) -> None:
    for version, at_s in ((0, 100), (2, 300), (10, 200)):
        folder = tmp_path / "lightning_logs" / f"version_{version}" / "checkpoints"
        best = keep(folder, "a.ckpt", str(folder / "a.ckpt"), at_s=at_s)
        keep(folder, "b.ckpt", str(best), at_s=at_s + 1)
    (tmp_path / "lightning_logs" / "version_11").mkdir()
    before = sorted(tmp_path.rglob("*"))
    newest = tmp_path / "lightning_logs" / "version_2" / "checkpoints"
    assert found(tmp_path, "best") == str(newest / "a.ckpt")
    assert found(tmp_path, "auto") == found(tmp_path, "last") == str(newest / "b.ckpt")
    assert sorted(tmp_path.rglob("*")) == before, "looking leaves nothing behind"


def test_last_is_the_newest_of_the_last_ones_else_the_newest(tmp_path: Path) -> None:
    folder = tmp_path / "lightning_logs" / "version_0" / "checkpoints"
    keep(folder, "a.ckpt", "", at_s=10)
    newest = keep(folder, "b.ckpt", "", at_s=30)
    assert found(tmp_path, "last") == str(newest)
    last = keep(folder, "last.ckpt", "", at_s=20)
    assert found(tmp_path, "last") == str(last)
    newer = keep(folder, "last-v1.ckpt", "", at_s=25)
    assert found(tmp_path, "last") == str(newer)


def test_a_run_that_was_moved_is_still_found(tmp_path: Path) -> None:
    folder = tmp_path / "lightning_logs" / "version_0" / "checkpoints"
    path = keep(folder, "a.ckpt", "/somewhere/else/a.ckpt", at_s=10)
    assert found(tmp_path, "best") == str(path)


def test_the_folder_of_the_callback_counts(tmp_path: Path) -> None:
    callback = ModelCheckpoint(dirpath=tmp_path / "mine", monitor="acc", mode="max")
    path = keep(tmp_path / "mine", "a.ckpt", "a.ckpt", at_s=10, callback=callback)
    assert found(tmp_path, "best", callbacks=[callback]) == str(path)


def test_without_a_logger_they_lie_in_the_root(tmp_path: Path) -> None:
    path = keep(tmp_path / "checkpoints", "a.ckpt", "a.ckpt", at_s=10)
    assert found(tmp_path, "best", logger=False) == str(path)


def test_nothing_kept_is_an_error_but_for_a_fit_that_may_begin(tmp_path: Path) -> None:
    trainer = Trainer(**defaults(tmp_path))
    with pytest.raises(MisconfigurationException, match=r"finds no checkpoint.*lightning_logs"):
        refuse_nothing(trainer, "last", subcommand="test")
    refuse_nothing(trainer, "last", subcommand="fit")
    for asked in ("best", "last", "auto"):
        assert found(tmp_path, asked) is None


def test_files_without_a_ranking_do_not_say_which_is_best(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    torch.save({"state_dict": {}}, folder / "weights.ckpt")
    assert found(tmp_path, "best", logger=False) is None


def test_a_trainer_that_keeps_nothing_finds_nothing(tmp_path: Path) -> None:
    assert found(tmp_path, "best", callbacks=[], enable_checkpointing=False) is None
