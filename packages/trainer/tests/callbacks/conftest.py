"""A trainer reduced to what callbacks read of it, with real files, and a fit of the usual shape."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fulmen.fabric.checkpoint_io import TorchCheckpointIO
from fulmen.trainer.metrics.outlets import Outlets
from fulmen.trainer.stages import EntryPoint


class FakeStrategy:
    checkpoint_io = TorchCheckpointIO()

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        return obj

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        return decision

    def barrier(self, name: str | None = None) -> None: ...

    def remove_checkpoint(self, path: str) -> None:
        from fulmen.fabric.filesystem import remove

        remove(path)


class FakeTrainer:
    """Files are real; what is in them is the state of the callbacks."""

    def __init__(self, root: Any, **given: Any) -> None:
        self.default_root_dir = str(root)
        self.strategy = FakeStrategy()
        self.callbacks: list[Any] = []
        self.callback_metrics: dict[str, torch.Tensor] = {}
        self.progress_bar_metrics: dict[str, float] = {}
        self.current_epoch = self.global_step = self.global_rank = 0
        self.world_size = 1
        self.is_global_zero = self.enable_validation = True
        self.sanity_checking = self.should_stop = self.is_last_batch = False
        self.fast_dev_run: Any = False
        self.loggers: list[Any] = []
        self.context = SimpleNamespace(
            metrics=SimpleNamespace(outlets=Outlets(self.default_root_dir)), signals=SimpleNamespace(caught=0)
        )
        self.ckpt_path = None
        self.state = SimpleNamespace(fn=EntryPoint.FIT)
        self.max_epochs: int | None = 3
        self.num_training_batches: Any = 2
        self.num_val_batches: list[Any] = [1]
        self.num_sanity_val_batches: list[Any] = [1]
        self.num_test_batches: list[Any] = [1]
        self.num_predict_batches: list[Any] = [1]
        self.check_val_every_n_epoch: int | None = 1
        self.val_check_interval: Any = 1.0
        self.val_check_batch: Any = math.inf
        self.fit_loop = SimpleNamespace(counts=SimpleNamespace(batch=SimpleNamespace(total=0)))
        self.saved: list[str] = []
        vars(self).update(given)

    def save_checkpoint(self, path: Any, weights_only: bool = False) -> None:
        from pathlib import Path

        Path(path).parent.mkdir(parents=True, exist_ok=True)
        torch.save({callback.state_key: callback.state_dict() for callback in self.callbacks}, path)
        self.saved.append(str(path))

    def fit(self, *callbacks: Any, val_losses: tuple[float, ...] = (3.0, 1.0, 2.0), fail_at: int | None = None) -> None:
        self.callbacks = list(callbacks)
        try:
            self._fit(val_losses, fail_at)
        except RuntimeError as error:
            if "of the test" not in str(error):
                raise
            self.fire("on_exception", error)

    def fire(self, hook: str, *args: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self, None, *args)

    def _fit(self, val_losses: tuple[float, ...], fail_at: int | None) -> None:
        self.fire("setup", "fit")
        self.fire("on_train_start")
        for _ in range(self.max_epochs or 0):
            self.fire("on_train_epoch_start")
            for batch_idx in range(self.num_training_batches):
                if self.fit_loop.counts.batch.total == fail_at:
                    raise RuntimeError("of the test")
                self.is_last_batch = batch_idx == self.num_training_batches - 1
                self.global_step += 1
                self.callback_metrics["train_loss"] = torch.tensor(-float(self.global_step))
                self.fire("on_train_batch_end", None, None, batch_idx)
                self.fit_loop.counts.batch.total += 1
                if self._validates_after(batch_idx):
                    self.fire("on_validation_start")
                    loss = torch.tensor(val_losses[self.current_epoch])
                    self.callback_metrics.update({"val_loss": loss, "val/loss": loss})
                    self.fire("on_validation_end")
            self.fire("on_train_epoch_end")
            self.current_epoch += 1
            if self.should_stop:
                break
        self.fire("on_train_end")
        self.fire("teardown", "fit")

    def _validates_after(self, batch_idx: int) -> bool:
        if not self.enable_validation:
            return False
        if self.val_check_batch == math.inf:
            return self.is_last_batch and (self.current_epoch + 1) % (self.check_val_every_n_epoch or 1) == 0
        if self.check_val_every_n_epoch is None:
            return self.fit_loop.counts.batch.total % self.val_check_batch == 0
        return (batch_idx + 1) % self.val_check_batch == 0


@pytest.fixture
def make_trainer(tmp_path: Any) -> Any:
    def make(**given: Any) -> FakeTrainer:
        return FakeTrainer(tmp_path, **given)

    return make
