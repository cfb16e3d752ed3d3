"""Log learning rates."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.optim import Optimizer

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.rank_zero import rank_zero_warn
from fulmen.trainer._typing import Trainer
from fulmen.trainer.core.callback import Callback


@dataclass(frozen=True, slots=True)
class NamedGroup:
    """One parameter group, and the name under which it is logged.

    Attributes:
        name: Of its learning rate.
        optimizer: Whose group it is.
        index: Which of its groups.
        interval: When its scheduler steps, "step" or "epoch"; None if it has no scheduler.
    """

    name: str
    optimizer: Optimizer
    index: int
    interval: str | None

    @property
    def values(self) -> dict[str, Any]:
        """What the optimizer keeps of the group now; read anew each time, since loading a state replaces it."""
        group: dict[str, Any] = self.optimizer.param_groups[self.index]
        return group


class LearningRateMonitor(Callback):
    """Log the learning rate of every optimizer and parameter group: `lr-Adam`, `lr-Adam/pg1`, `lr-Adam-1`, ...

    A group with the key "name" is logged under that, and a scheduler with a name gives it to its optimizer.

    Args:
        logging_interval: "step" (where the Trainer logs steps), "epoch", or None: as often as the schedulers step.
        log_momentum: Also log momentum (or the first of the betas), as `lr-SGD-momentum`.
        log_weight_decay: Also log weight decay, as `lr-SGD-weight_decay`.

    Raises:
        ConfigurationError: For another interval; when training starts without a logger, or with two groups of one name.
    """

    def __init__(
        self,
        logging_interval: Literal["step", "epoch"] | None = None,
        log_momentum: bool = False,
        log_weight_decay: bool = False,
    ) -> None:
        if logging_interval not in (None, "step", "epoch"):
            raise ConfigurationError(
                f"LearningRateMonitor(logging_interval={logging_interval!r}) is unknown."
                " Rates are logged by step, by epoch, or as the schedulers step. Pass 'step', 'epoch' or None."
            )
        self.logging_interval = logging_interval
        self.log_momentum = log_momentum
        self.log_weight_decay = log_weight_decay
        self.lrs: dict[str, list[float]] = {}
        self.last_momentum_values: dict[str, float | None] = {}
        self.last_weight_decay_values: dict[str, float | None] = {}
        self._groups: list[NamedGroup] = []
        self._settled: tuple[list[Any], list[int]] = [], []  # schedulers and numbers of groups, when names were

    def on_train_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Settle the names."""
        if not trainer.loggers:
            raise ConfigurationError(
                "LearningRateMonitor has nowhere to log to. The Trainer has no logger."
                " Remove the callback, or pass Trainer(logger=True)."
            )
        self._settle(trainer)
        names = [group.name for group in self._groups]
        self.lrs = {name: [] for name in names}
        self.last_momentum_values = {f"{name}-momentum": None for name in names}
        self.last_weight_decay_values = {f"{name}-weight_decay": None for name in names}
        if self.log_momentum and not all(_has_momentum(group) for group in self._groups):
            without = sorted({type(group.optimizer).__name__ for group in self._groups if not _has_momentum(group)})
            rank_zero_warn(
                f"LearningRateMonitor(log_momentum=True) finds no momentum in {', '.join(without)}."
                " Its parameter groups have neither 'momentum' nor 'betas', so 0 is logged."
                " Leave the argument out, or choose an optimizer with momentum.",
                category=RuntimeWarning,
            )

    def on_train_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Log what changes by step."""
        if self.logging_interval != "epoch" and trainer.logs_this_step:
            self._log(trainer, "step")

    def on_train_epoch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Log what changes by epoch."""
        if self.logging_interval != "step":
            self._log(trainer, "epoch")

    def _settle(self, trainer: Trainer) -> None:
        self._settled = _named_by(trainer)
        self._groups = list(_named_groups(trainer))

    def _log(self, trainer: Trainer, interval: str) -> None:
        if _named_by(trainer) != self._settled:
            # A callback has put other schedulers in their place, as SWA does, or added a group, as finetuning does.
            self._settle(trainer)
        row: dict[str, float] = {}
        for group in self._groups:
            # What has no scheduler may be changed by the user at any time.
            if self.logging_interval is None and group.interval not in (interval, None):
                continue
            values = group.values
            row[group.name] = rate = float(values["lr"])
            self.lrs.setdefault(group.name, []).append(rate)
            if self.log_momentum:
                name = f"{group.name}-momentum"
                row[name] = self.last_momentum_values[name] = _momentum(values)
            if self.log_weight_decay:
                name = f"{group.name}-weight_decay"
                row[name] = self.last_weight_decay_values[name] = float(values.get("weight_decay", 0))
        trainer.context.metrics.log_to_loggers(row, trainer.fit_loop.counts.stepped_batches)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in row.items()})


def _named_by(trainer: Trainer) -> tuple[list[Any], list[int]]:
    """What the names of groups follow from."""
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    return schedulers, [len(optimizer.param_groups) for optimizer in trainer.optimizers]


def _named_groups(trainer: Trainer) -> Iterator[NamedGroup]:
    """Every parameter group: first those whose optimizers have schedulers, in the schedulers' order.

    Raises:
        ConfigurationError: If two groups of one optimizer have the same name.
    """
    owners: list[tuple[Optimizer, str | None, str | None]] = [
        (config.scheduler.optimizer, config.name, config.interval)
        for config in trainer.lr_scheduler_configs
        if hasattr(config.scheduler, "optimizer")  # schedulers of the user's own may keep it elsewhere
    ]
    scheduled = [optimizer for optimizer, _, _ in owners]
    owners += [
        (optimizer, None, None)
        for optimizer in trainer.optimizers
        if not any(optimizer is other for other in scheduled)
    ]
    seen: Counter[str] = Counter()
    for optimizer, given, interval in owners:
        base = given or f"lr-{type(optimizer).__name__}"
        number = seen[base]
        seen[base] += 1
        name = f"{base}-{number}" if number else base
        groups = optimizer.param_groups
        if len(groups) == 1:
            yield NamedGroup(name, optimizer, 0, interval)
            continue
        parts = [str(group.get("name", f"pg{index}")) for index, group in enumerate(groups, 1)]
        _check_distinct(parts, optimizer)
        for index, part in enumerate(parts):
            yield NamedGroup(f"{name}/{part}", optimizer, index, interval)


def _check_distinct(names: list[str], optimizer: Optimizer) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ConfigurationError(
            f"LearningRateMonitor finds parameter groups of {type(optimizer).__name__} with equal names: {twice}."
            " Their learning rates would overwrite each other. Give every group a 'name' of its own."
        )


def _has_momentum(group: NamedGroup) -> bool:
    return "momentum" in group.values or "betas" in group.values


def _momentum(values: dict[str, Any]) -> float:
    return float(values["betas"][0] if "betas" in values else values.get("momentum", 0))
