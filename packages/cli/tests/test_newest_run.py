import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen.cli.newest_run import resolve
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


def trainer_in(folder: Path, **kwargs: Any) -> Trainer:
    kwargs.setdefault("callbacks", [ModelCheckpoint(monitor="acc", mode="max")])
    kwargs.setdefault("logger", CSVLogger(folder))
    return Trainer(default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False, **kwargs)


def test_best_is_what_the_newest_run_ranks_best(tmp_path: Path) -> None:
    for version, at_s in ((0, 100), (2, 300), (10, 200)):
        folder = tmp_path / "lightning_logs" / f"version_{version}" / "checkpoints"
        best = keep(folder, "a.ckpt", str(folder / "a.ckpt"), at_s=at_s)
        keep(folder, "b.ckpt", str(best), at_s=at_s + 1)
    (tmp_path / "lightning_logs" / "version_11").mkdir()
    before = sorted(tmp_path.rglob("*"))
    found = resolve(trainer_in(tmp_path), "best", subcommand="test")
    assert found == str(tmp_path / "lightning_logs" / "version_2" / "checkpoints" / "a.ckpt")
    assert sorted(tmp_path.rglob("*")) == before, "looking leaves nothing behind"


def test_last_is_the_newest_of_the_last_ones_else_the_newest(tmp_path: Path) -> None:
    folder = tmp_path / "lightning_logs" / "version_0" / "checkpoints"
    keep(folder, "a.ckpt", "", at_s=10)
    newest = keep(folder, "b.ckpt", "", at_s=30)
    trainer = trainer_in(tmp_path)
    assert resolve(trainer, "last", subcommand="fit") == str(newest)
    last = keep(folder, "last.ckpt", "", at_s=20)
    assert resolve(trainer, "last", subcommand="fit") == str(last)
    newer = keep(folder, "last-v1.ckpt", "", at_s=25)
    assert resolve(trainer, "last", subcommand="test") == str(newer)


def test_a_run_that_was_moved_is_still_found(tmp_path: Path) -> None:
    folder = tmp_path / "lightning_logs" / "version_0" / "checkpoints"
    path = keep(folder, "a.ckpt", "/somewhere/else/a.ckpt", at_s=10)
    assert resolve(trainer_in(tmp_path), "best", subcommand="test") == str(path)


def test_the_folder_of_the_callback_counts(tmp_path: Path) -> None:
    callback = ModelCheckpoint(dirpath=tmp_path / "mine", monitor="acc", mode="max")
    path = keep(tmp_path / "mine", "a.ckpt", "a.ckpt", at_s=10, callback=callback)
    assert resolve(trainer_in(tmp_path, callbacks=[callback]), "best", subcommand="test") == str(path)


def test_without_a_logger_they_lie_in_the_root(tmp_path: Path) -> None:
    path = keep(tmp_path / "checkpoints", "a.ckpt", "a.ckpt", at_s=10)
    assert resolve(trainer_in(tmp_path, logger=False), "best", subcommand="test") == str(path)


def test_nothing_kept_is_an_error_but_for_a_fit_that_may_begin(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path)
    for subcommand, asked in (("test", "best"), ("fit", "best"), ("test", "last")):
        with pytest.raises(MisconfigurationException, match="finds no checkpoint"):
            resolve(trainer, asked, subcommand=subcommand)
    assert resolve(trainer, "last", subcommand="fit") is None


def test_files_without_a_ranking_do_not_say_which_is_best(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    torch.save({"state_dict": {}}, folder / "weights.ckpt")
    with pytest.raises(MisconfigurationException, match="do not say which"):
        resolve(trainer_in(tmp_path, logger=False), "best", subcommand="test")


def test_a_trainer_that_keeps_nothing_answers_itself(tmp_path: Path) -> None:
    assert resolve(trainer_in(tmp_path, callbacks=[], enable_checkpointing=False), "best", subcommand="test") is None
