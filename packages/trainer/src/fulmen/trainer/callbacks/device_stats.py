"""Log device statistics."""

from typing import Any

from fulmen.fabric.accelerators.cpu import get_cpu_stats
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.optional_packages import require
from fulmen.trainer._typing import Trainer
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.module import LightningModule


class DeviceStatsMonitor(Callback):
    """Log memory and load of the device, before and after the batches whose metrics go to the loggers.

    The names are `DeviceStatsMonitor.on_train_batch_start/...`, with what the accelerator calls each statistic.

    Args:
        cpu_stats: Log those of the machine too. None: only where the CPU is the device; False: not even there.

    Raises:
        ConfigurationError: When a run starts without a logger.
        MissingPackageError: If statistics of the CPU are wanted and psutil is not installed.
    """

    def __init__(self, cpu_stats: bool | None = None) -> None:
        super().__init__()
        self._cpu_stats = cpu_stats

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that it can be done."""
        if stage == "predict":
            return
        if not trainer.loggers:
            raise ConfigurationError(
                "DeviceStatsMonitor has nowhere to log to. The Trainer has no logger."
                " Remove the callback, or pass Trainer(logger=True)."
            )
        if self._cpu_stats or (self._cpu_stats is None and self._is_cpu(trainer)):
            require("psutil", purpose="DeviceStatsMonitor on the CPU")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Log, where steps are logged."""
        if trainer.logs_this_step:
            self._log(trainer, "on_train_batch_start")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log, where steps are logged."""
        if trainer.logs_this_step:
            self._log(trainer, "on_train_batch_end")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Log, after as many batches as in training."""
        self._log_evaluation(trainer, "start", batch_idx)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log, after as many batches as in training."""
        self._log_evaluation(trainer, "end", batch_idx)

    on_test_batch_start, on_test_batch_end = on_validation_batch_start, on_validation_batch_end

    def _log_evaluation(self, trainer: Trainer, side: str, batch_idx: int) -> None:
        every = trainer.log_every_n_steps
        if every and (batch_idx + 1) % every == 0 and not trainer.sanity_checking:
            self._log(trainer, f"on_{'test' if trainer.testing else 'validation'}_batch_{side}")

    def _log(self, trainer: Trainer, moment: str) -> None:
        if not trainer.is_global_zero:
            return
        stats: dict[str, Any] = {}
        if not self._is_cpu(trainer):
            stats = dict(trainer.accelerator.get_device_stats(trainer.strategy.root_device))
        if self._cpu_stats or (self._cpu_stats is None and not stats and self._is_cpu(trainer)):
            stats |= get_cpu_stats()
        if stats:
            row = {f"{type(self).__name__}.{moment}/{name}": value for name, value in stats.items()}
            trainer.context.metrics.log_to_loggers(row, trainer.fit_loop.counts.stepped_batches)

    @staticmethod
    def _is_cpu(trainer: Trainer) -> bool:
        return bool(trainer.strategy.root_device.type == "cpu")
