"""Stop when a metric stops improving."""

import math
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, ClassVar

import torch
from torch import Tensor

from fulmen.fabric.arguments import check_number, check_text
from fulmen.fabric.rank_zero import rank_prefixed_message, rank_zero_info, rank_zero_warn
from fulmen.trainer._typing import Trainer
from fulmen.trainer.callbacks.monitored import MetricNotLoggedError, check_mode, not_logged, validated_once_per_epoch
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.stages import EntryPoint


class EarlyStoppingReason(Enum):
    """Why a run was stopped."""

    NOT_STOPPED = 0
    STOPPING_THRESHOLD = 1
    DIVERGENCE_THRESHOLD = 2
    PATIENCE_EXHAUSTED = 3
    NON_FINITE_METRIC = 4


class EarlyStopping(Callback):
    """Stop training when a metric has not improved for a while.

    Args:
        monitor: Name of the logged metric to watch.
        min_delta: By how much a value must be better than the best one to count as an improvement. Kept with the sign
            that fits `mode`.
        patience: How many checks without improvement are borne; with the next one the run stops.
        verbose: Log each improvement, and why the run stops.
        mode: "min" if a small value is good, "max" if a large one is.
        strict: Is a metric that is not there an error?
        check_finite: Stop when the value is NaN or infinite.
        stopping_threshold: Stop as soon as the value is better than this.
        divergence_threshold: Stop as soon as the value is worse than this.
        check_on_train_epoch_end: Check at the end of training epochs rather than after validation. By default it
            follows when validation runs.
        log_rank_zero_only: Log from rank zero only.

    Raises:
        ArgumentTypeError: For a name that is no text, or a limit that is no number.
        ConfigurationError: For an unknown `mode`.
        MetricNotLoggedError: While training, if `strict` and the metric was not logged.
    """

    monitors_metrics = True
    mode_dict: ClassVar[dict[str, Callable[..., Tensor]]] = {"min": torch.lt, "max": torch.gt}
    order_dict: ClassVar[dict[str, str]] = {"min": "<", "max": ">"}

    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int = 3,
        verbose: bool = False,
        mode: str = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
    ) -> None:
        super().__init__()
        self.mode = check_mode(mode, "EarlyStopping")
        check_text(self, "monitor", monitor, "It is the name of one logged metric.", may_be_none=False)
        for name, number in (
            ("patience", patience),
            ("min_delta", min_delta),
            ("stopping_threshold", stopping_threshold),
            ("divergence_threshold", divergence_threshold),
        ):
            if number is not None:
                meaning = "It is compared with checks." if name == "patience" else "It is compared with the metric."
                check_number(self, name, number, meaning)
        self.monitor = monitor
        self.min_delta = min_delta if mode == "max" else -min_delta
        self.patience = patience
        self.verbose = verbose
        self.strict = strict
        self.check_finite = check_finite
        self.stopping_threshold = stopping_threshold
        self.divergence_threshold = divergence_threshold
        self.log_rank_zero_only = log_rank_zero_only
        self.wait_count = 0
        self.stopped_epoch = 0
        self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        self.stopping_reason_message: str | None = None
        self.best_score = torch.tensor(math.inf if mode == "min" else -math.inf)
        self._check_on_train_epoch_end = check_on_train_epoch_end

    @property
    def state_key(self) -> str:
        """Two of these are told apart by what they watch, and which way."""
        return self.generate_state_key(monitor=self.monitor, mode=self.mode)

    @property
    def monitor_op(self) -> Callable[..., Tensor]:
        """Compares a value to another one: is it better?"""
        return self.mode_dict[self.mode]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Settle when to check, if the user did not say."""
        if self._check_on_train_epoch_end is None:
            # With one validation per epoch both come once per epoch; at its end, all of the epoch is logged.
            self._check_on_train_epoch_end = validated_once_per_epoch(trainer)

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on waiting where a run was interrupted."""
        return {
            "wait_count": self.wait_count,
            "stopped_epoch": self.stopped_epoch,
            "best_score": self.best_score,
            "patience": self.patience,
            "stopping_reason": self.stopping_reason.value,
            "stopping_reason_message": self.stopping_reason_message,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on waiting where a run was interrupted."""
        self.wait_count = state_dict["wait_count"]
        self.patience = state_dict["patience"]
        self.stopped_epoch = state_dict.get("stopped_epoch", 0)
        self.best_score = torch.as_tensor(state_dict.get("best_score", self.best_score))
        self.stopping_reason = EarlyStoppingReason(state_dict.get("stopping_reason", 0))
        self.stopping_reason_message = state_dict.get("stopping_reason_message")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check here, or after validation."""
        if self._check_on_train_epoch_end and not self._is_idle(trainer):
            self._check(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check here, or at the end of the epoch."""
        if not self._check_on_train_epoch_end and not self._is_idle(trainer):
            self._check(trainer)

    def _is_idle(self, trainer: Trainer) -> bool:
        return trainer.state.fn != EntryPoint.FIT or trainer.sanity_checking or bool(trainer.fast_dev_run)

    def _check(self, trainer: Trainer) -> None:
        current = self._watched(trainer.callback_metrics)
        if current is None:
            return
        reason, message = self._judge(current)
        would_stop = reason is not EarlyStoppingReason.NOT_STOPPED
        # All processes stop if one of them would: no rank may be left alone in a collective.
        if trainer.strategy.reduce_boolean_decision(would_stop, all=False):
            trainer.should_stop = True
            self.stopped_epoch = trainer.current_epoch
        if would_stop:
            self.stopping_reason, self.stopping_reason_message = reason, message
        if message and self.verbose:
            self._log_info(trainer, message)

    def _watched(self, metrics: Mapping[str, Tensor]) -> Tensor | None:
        value = metrics.get(self.monitor)
        if value is not None:
            return torch.as_tensor(value).squeeze()
        message = not_logged(self.monitor, metrics, "EarlyStopping")
        if self.strict:
            raise MetricNotLoggedError(message)
        if self.verbose:
            rank_zero_warn(message, category=RuntimeWarning)
        return None

    def _judge(self, value: Tensor) -> tuple[EarlyStoppingReason, str | None]:
        """Count the value, and say whether to stop."""
        current = float(value)
        name, sign = f"{self.monitor} = {current:.3f}", self.order_dict[self.mode]
        if self.check_finite and not math.isfinite(current):
            text = f"Stopping: {self.monitor} = {current} is not finite. The best was {float(self.best_score):.3f}."
            return EarlyStoppingReason.NON_FINITE_METRIC, text
        if self.stopping_threshold is not None and self._better(current, self.stopping_threshold):
            text = f"Stopping: the threshold is reached, {name} {sign} {self.stopping_threshold}."
            return EarlyStoppingReason.STOPPING_THRESHOLD, text
        if self.divergence_threshold is not None and self._better(self.divergence_threshold, current):
            text = f"Stopping: {name} has become worse than the divergence threshold {self.divergence_threshold}."
            return EarlyStoppingReason.DIVERGENCE_THRESHOLD, text
        best = float(self.best_score)
        if self._better(current - self.min_delta, best):
            gain = f"by {abs(best - current):.3f}, " if math.isfinite(best) else ""
            self.best_score, self.wait_count = value.detach().cpu().clone(), 0
            return EarlyStoppingReason.NOT_STOPPED, f"{self.monitor} improved {gain}to {current:.3f}."
        self.wait_count += 1
        if self.wait_count < self.patience:
            return EarlyStoppingReason.NOT_STOPPED, None
        return EarlyStoppingReason.PATIENCE_EXHAUSTED, (
            f"Stopping: {self.monitor} did not improve in the last {self.wait_count} checks. The best was {best:.3f}."
        )

    def _better(self, value: float, than: float) -> bool:
        return value < than if self.mode == "min" else value > than

    def _log_info(self, trainer: Trainer, message: str) -> None:
        if trainer.world_size <= 1 or self.log_rank_zero_only:
            rank_zero_info(message)
        else:
            # Each process may have seen another value.
            print(rank_prefixed_message(message, trainer.global_rank))
