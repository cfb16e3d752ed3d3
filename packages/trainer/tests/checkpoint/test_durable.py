"""Saves in the background of a fit: the same files, told of once they are on the disk, failures at the next batch."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fulmen.fabric.checkpoint_io import AsyncCheckpointIO, TorchCheckpointIO, WrappingCheckpointIO
from fulmen.fabric.errors import CheckpointError
from fulmen.trainer import Callback, seed_everything
from fulmen.trainer.callbacks import ModelCheckpoint
from fulmen.trainer.demos import BoringModel
from fulmen.trainer.loggers import Logger


class Adam(BoringModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)["loss"]
        self.log("x", (batch_idx * 7) % 3)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Gated(TorchCheckpointIO):
    """Writes when it is let, and cannot write what has "bad" in its name."""

    def __init__(self) -> None:
        self.gate = threading.Event()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        assert self.gate.wait(60)
        if "bad" in os.path.basename(path):
            raise CheckpointError(f"{path} could not be written")
        super().save_checkpoint(checkpoint, path, storage_options)


class Hearing(Callback):
    """What is heard, in order, and was it true?"""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_checkpoint_saved(self, trainer: Any, pl_module: Any, path: str) -> None:
        assert torch.load(path, weights_only=True)["state_dict"]
        self.heard.append(os.path.basename(path))


class Told(Logger):
    """A logger that looks for the checkpoints it is told of."""

    name, version = "told", 0

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def log_metrics(self, *_: Any, **__: Any) -> None: ...

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        # With one save after each step, the one before may be gone by the time that this one is told of.
        self.told.append(checkpoint_callback.best_model_path)


def contents(folder: Path) -> dict[str, Any]:
    """What is in each checkpoint, as text, without the folder's own name; and where links point to."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[path.name] = os.readlink(path)
        elif path.is_file():
            found[path.name] = repr(torch.load(path, weights_only=True)).replace(str(folder), "")
    return found


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    every=st.integers(1, 3),
    top_k=st.sampled_from([1, -1]),
    save_last=st.sampled_from([None, True, "link"]),
    second_top_k=st.sampled_from([1, 2, -1]),
)
def test_the_files_are_those_of_saves_at_once(
    quick: Any, tmp_path_factory: Any, every: int, top_k: int, save_last: Any, second_top_k: int
) -> None:
    """Law."""
    found = []
    for io in (TorchCheckpointIO(), AsyncCheckpointIO(), WrappingCheckpointIO(AsyncCheckpointIO())):
        folder = tmp_path_factory.mktemp("run")
        seed_everything(3)
        checkpoint = ModelCheckpoint(folder, save_top_k=top_k, save_last=save_last, every_n_train_steps=every)
        second = ModelCheckpoint(
            folder, monitor="x", save_top_k=second_top_k, every_n_train_steps=every, save_weights_only=True
        )
        trainer = quick(
            enable_checkpointing=True, callbacks=[checkpoint, second], plugins=[io], max_steps=5, limit_val_batches=0
        )
        trainer.fit(Adam())
        found.append(contents(folder))
        assert os.path.exists(checkpoint.best_model_path)
    assert found[0] == found[1] == found[2]


def test_the_loop_goes_on_and_the_run_ends_only_when_the_last_one_is_there(quick: Any, tmp_path: Path) -> None:
    gated, hearing, logger = Gated(), Hearing(), Told()
    trained: list[tuple[int, list[str]]] = []

    class Opens(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trained.append((trainer.global_step, list(hearing.heard)))

        def on_train_end(self, *_: Any) -> None:
            threading.Timer(0.3, gated.gate.set).start()

    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=2, filename="{step}")
    trainer = quick(
        enable_checkpointing=True,
        callbacks=[Opens(), hearing, checkpoint],
        plugins=[AsyncCheckpointIO(gated)],
        max_steps=3,
        limit_val_batches=0,
        logger=logger,
    )
    trainer.fit(BoringModel())
    assert trained == [(1, []), (2, []), (3, [])]
    assert hearing.heard == ["step=2.ckpt"]
    assert logger.told == [str(tmp_path / "step=2.ckpt")]


def test_after_a_run_a_save_is_waited_for(quick: Any, tmp_path: Path) -> None:
    hearing = Hearing()
    trainer = quick(callbacks=[hearing], plugins=[AsyncCheckpointIO()], max_steps=1)
    trainer.fit(BoringModel())
    trainer.save_checkpoint(tmp_path / "now.ckpt")
    assert hearing.heard == ["now.ckpt"]


def test_saves_at_once_are_told_of_at_once(quick: Any, tmp_path: Path) -> None:
    hearing = Hearing()
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=1, filename="{step}")
    trainer = quick(enable_checkpointing=True, callbacks=[hearing, checkpoint], max_steps=2, limit_val_batches=0)
    trainer.fit(BoringModel())
    assert hearing.heard == ["step=1.ckpt", "step=2.ckpt"]


def test_a_failed_save_ends_the_run_at_the_next_batch_and_costs_no_older_checkpoint(quick: Any, tmp_path: Path) -> None:
    gated = Gated()
    gated.gate.set()
    ends: list[str] = []

    class Saves(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 2:
                trainer.save_checkpoint(tmp_path / "bad.ckpt")
                trainer.strategy.remove_checkpoint(tmp_path / "good.ckpt")
                # The thread fails while this batch is still in work.
                while trainer.strategy.checkpoint_io._thread is not None:
                    pass

        def on_train_start(self, trainer: Any, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / "good.ckpt")

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            ends.append(f"{type(exception).__name__} after {trainer.global_step}")
            trainer.save_checkpoint(tmp_path / "exception.ckpt")

    trainer = quick(callbacks=[Saves()], plugins=[AsyncCheckpointIO(gated)], max_steps=5, limit_val_batches=0)
    with pytest.raises(CheckpointError, match=r"bad\.ckpt could not be written"):
        trainer.fit(BoringModel())
    assert ends == ["CheckpointError after 2"]
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["exception.ckpt", "good.ckpt"]


def test_a_failed_last_save_fails_the_run(quick: Any, tmp_path: Path) -> None:
    gated = Gated()

    class Saves(Callback):
        def on_train_end(self, trainer: Any, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / "bad.ckpt")
            gated.gate.set()

    trainer = quick(callbacks=[Saves()], plugins=[AsyncCheckpointIO(gated)], max_steps=1, limit_val_batches=0)
    with pytest.raises(CheckpointError, match=r"bad\.ckpt could not be written"):
        trainer.fit(BoringModel())
    assert trainer.interrupted
