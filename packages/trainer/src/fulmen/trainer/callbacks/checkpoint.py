"""The base of all callbacks that save checkpoints."""

import warnings
import weakref

from fulmen.trainer._typing import Trainer
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.module import LightningModule


class Checkpoint(Callback):
    """A callback that saves checkpoints. The trainer keeps all of them behind the other callbacks."""

    monitors_metrics = True
    _awaited: tuple[str, ...] = ()  # saved in the background, and not on the disk yet

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
        warnings.warn(  # in this process, whichever it is: the others are in work
            f"{type(self).__name__} saves nothing: the run failed in rank {trainer.global_rank} of {trainer.world_size}"
            " alone. A checkpoint is written by all of them, and the others wait elsewhere for this one."
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
