"""When does each LR scheduler step?"""

import warnings
from typing import Any

from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.core.needs import LRSchedulerConfig
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.hooks.dispatch import HookFunction, Hooks
from fulmen.trainer.metrics.board import MetricsBoard
from fulmen.trainer.progress.counts import FitCounts


class Schedulers:
    """Steps the schedulers of automatic optimization, at the moments that their configs name.

    Args:
        configs: Every scheduler with its moment.
        module: Its `lr_scheduler_step` makes the step.
    """

    def __init__(
        self,
        configs: list[LRSchedulerConfig],
        module: LightningModule,
        hooks: Hooks,
        metrics: MetricsBoard,
        counts: FitCounts,
    ) -> None:
        configs = configs if module.automatic_optimization else []
        self._by_step = [config for config in configs if config.interval == "step"]
        self._by_epoch = [config for config in configs if config.interval == "epoch"]
        self._step: HookFunction = hooks.module_method("lr_scheduler_step")
        self._metrics = metrics
        self._counts = counts
        self.step_by_step = bool(self._by_step)

    def after_step(self, *, plateau: bool) -> None:
        """An optimizer step was made; plateau schedulers wait for the validation that may follow it."""
        steps = self._counts.stepped_batches + (not plateau)  # the count moves between the two calls
        for config in self._by_step:
            if config.reduce_on_plateau == plateau and steps % config.frequency == 0:
                self._advance(config)

    def after_epoch(self, epoch: int, *, plateau: bool) -> None:
        """The last batch of `epoch` (0-based) is done; plateau schedulers wait for validation and its end."""
        for config in self._by_epoch:
            if config.reduce_on_plateau == plateau and (epoch + 1) % config.frequency == 0:
                self._advance(config)

    def _advance(self, config: LRSchedulerConfig) -> None:
        value: Any = None
        if config.reduce_on_plateau:
            monitored = self._metrics.callback_metrics
            value = monitored.get(config.monitor or "")
            if value is None:
                message = (
                    f"The scheduler {type(config.scheduler).__name__} watches {config.monitor!r}, which was not logged."
                    f" Logged were {sorted(monitored) or 'no metrics'}."
                    " Log it with self.log before the scheduler steps, name another monitor, or set strict=False."
                )
                if config.strict:
                    raise ConfigurationError(message)
                warnings.warn(message, RuntimeWarning, stacklevel=2)
                return
        self._step(config.scheduler, value)
        self._counts.scheduler_steps.add()
