"""Accumulate by schedule."""

from typing import Any

from fulmen.fabric.class_names import class_name
from fulmen.fabric.errors import ArgumentTypeError, ConfigurationError
from fulmen.fabric.rank_zero import rank_zero_warn
from fulmen.trainer._typing import Trainer
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.signature import is_overridden


class GradientAccumulationScheduler(Callback):
    """Change in how many batches an optimizer step is made, by epoch.

    Args:
        scheduling: From which epoch on (0-based) how many batches make a step: `{0: 8, 4: 4, 8: 1}`. Before the first
            epoch named, every batch is a step.

    Raises:
        ArgumentTypeError: If it is empty or no dict.
        ConfigurationError: If an epoch or a number of batches is out of range; when training starts, if the Trainer
            accumulates by itself, or the module steps by hand.
    """

    def __init__(self, scheduling: dict[int, int]) -> None:
        super().__init__()
        if not isinstance(scheduling, dict) or not scheduling:
            raise ArgumentTypeError(
                f"GradientAccumulationScheduler(scheduling={scheduling!r}) holds no schedule."
                " It says from which epoch on how many batches make an optimizer step."
                " Pass a dict such as {0: 8, 4: 4}."
            )
        for epoch, batches in scheduling.items():
            if type(epoch) is not int or epoch < 0:
                raise ConfigurationError(
                    f"GradientAccumulationScheduler(scheduling={scheduling!r}) has the key {epoch!r}."
                    " The keys are epochs, counted from 0. Pass integers of at least 0."
                )
            if type(batches) is not int or batches < 1:
                raise ConfigurationError(
                    f"GradientAccumulationScheduler(scheduling={scheduling!r}) has the value {batches!r}."
                    " The values are batches to an optimizer step. Pass integers of at least 1."
                )
        self.scheduling = {0: 1, **scheduling}
        self.epochs = sorted(self.scheduling)
        self._decides = False  # between the begin of training and its end

    def going_to_accumulate_grad_batches(self) -> bool:
        """Is there an epoch in which a step takes more than one batch?"""
        return any(batches > 1 for batches in self.scheduling.values())

    def get_accumulate_grad_batches(self, epoch: int) -> int:
        """Batches to an optimizer step in `epoch` (0-based)."""
        return self.scheduling[max(begin for begin in self.epochs if begin <= epoch)]

    def batches_to_a_step(self, epoch: int) -> int:
        """As `get_accumulate_grad_batches`."""
        return self.get_accumulate_grad_batches(epoch)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that nobody else decides, and settle the epoch that a resume begins with."""
        name = class_name(pl_module)
        if not pl_module.automatic_optimization:
            raise ConfigurationError(
                f"GradientAccumulationScheduler cannot accumulate for {name}, which optimizes by hand."
                " There the training step itself decides when to step."
                " Remove the callback, or set automatic_optimization = True."
            )
        if trainer.accumulate_grad_batches != 1:
            raise ConfigurationError(
                f"Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches}) meets a"
                " GradientAccumulationScheduler. Both say how many batches make an optimizer step."
                " Leave the argument out, or remove the callback."
            )
        heard = [hook for hook in ("optimizer_step", "optimizer_zero_grad") if is_overridden(hook, pl_module)]
        if heard and self.going_to_accumulate_grad_batches():
            rank_zero_warn(
                f"{name} overrides {' and '.join(heard)}, and a GradientAccumulationScheduler accumulates. These hooks"
                " are called once for each optimizer step, and not for each batch. Do what each batch needs in"
                " on_train_batch_end."
            )
        self._decides = True
        trainer.accumulate_grad_batches = self.get_accumulate_grad_batches(trainer.current_epoch)

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Set what holds in this epoch."""
        trainer.accumulate_grad_batches = self.get_accumulate_grad_batches(trainer.current_epoch)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the Trainer as it was, however the run has ended."""
        if self._decides:
            self._decides = False
            trainer.accumulate_grad_batches = 1
