"""The base of all callbacks that save checkpoints."""

import os
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fulmen.trainer._typing import Trainer
from fulmen.trainer.checkpoint.dump import FULMEN_KEY
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.module import LightningModule


class Checkpoint(Callback):
    """A callback that saves checkpoints. The trainer keeps all of them behind the other callbacks."""

    monitors_metrics = True
    _awaited: tuple[str, ...] = ()  # saved in the background, and not on the disk yet
    _last_global_step_saved, _last_checkpoint_saved = 0, ""  # before the first step: nothing to save
    _restored_step = 0  # the step of the last save, as the checkpoint has it that the run goes on from
    _restored_from: str | None = None  # the folder of that checkpoint

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Whoever goes on from it does not save this step a second time, if it was saved."""
        own = checkpoint.get(FULMEN_KEY)
        if own is not None and self._last_global_step_saved:
            own.setdefault("saved_at", {})[self.state_key] = self._last_global_step_saved

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Files of the run that wrote the checkpoint are looked for beside it."""
        self._restored_step = checkpoint.get(FULMEN_KEY, {}).get("saved_at", {}).get(self.state_key, 0)
        self._restored_from = os.path.dirname(os.fspath(trainer.ckpt_path)) if trainer.ckpt_path else None

    @contextmanager
    def _saving(self, trainer: Trainer, path: str) -> Iterator[None]:
        """Inside, the step is saved to `path`; if that fails, it was not."""
        before, self._last_global_step_saved = self._last_global_step_saved, trainer.global_step
        try:
            yield
        except BaseException:
            self._last_global_step_saved = before
            raise
        self._last_checkpoint_saved = path

    def tell_loggers(self, trainer: Trainer, path: str) -> None:
        """Let the loggers hear of what was just saved to `path`, once it is on the disk."""
        if not trainer.is_global_zero:
            return
        if trainer.strategy.checkpoint_io.saves_in_background:
            self._awaited = (*self._awaited, path)
        else:
            self._tell_all(trainer)

    def fails_alone(self, trainer: Trainer) -> bool:
        """Has the run failed in this process, and not in the others? A checkpoint needs all: it would wait for ever."""
        if trainer.world_size == 1 or trainer.context.signals.end_together():
            return False
        rank, is_cut = f"rank {trainer.global_rank} of {trainer.world_size}", trainer.context.signals.is_cut_short
        what = f"Ctrl-C ended {rank} in the middle of its work" if is_cut else f"the run failed in {rank} alone"
        warnings.warn(  # in this process, whichever it is: the others are in work
            f"{type(self).__name__} saves nothing: {what}."
            " A checkpoint is written by all of them, and the others wait elsewhere for this one."
            " Go on from the last checkpoint that was saved before.",
            stacklevel=2,
        )
        return True

    def on_checkpoint_saved(self, trainer: Trainer, pl_module: LightningModule, path: str) -> None:
        """The loggers may read it now."""
        if path in self._awaited:
            self._awaited = tuple(awaited for awaited in self._awaited if awaited != path)
            self._tell_all(trainer)

    def _tell_all(self, trainer: Trainer) -> None:
        trainer.context.metrics.outlets.tell(trainer.loggers, "after_save_checkpoint", weakref.proxy(self))
