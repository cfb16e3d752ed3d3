"""Stop after a duration."""

import re
import time
from datetime import timedelta
from enum import StrEnum
from typing import Any

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.rank_zero import rank_zero_info
from fulmen.trainer._typing import Trainer
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.run.agreed_clock import AgreedClock
from fulmen.trainer.stages import Stage


class Interval(StrEnum):
    """When a Timer looks at the clock."""

    step = "step"
    epoch = "epoch"


class Timer(Callback):
    """Measure how long each stage runs, and stop training after a duration. The time of earlier runs counts.

    Args:
        duration: "DD:HH:MM:SS", a `timedelta`, the keyword arguments of one, or None to measure only.
        interval: Stop between steps or between epochs.
        verbose: Log when the time is up.

    Raises:
        ConfigurationError: For another duration or interval.
    """

    def __init__(
        self,
        duration: str | timedelta | dict[str, int] | None = None,
        interval: str = Interval.step,
        verbose: bool = True,
    ) -> None:
        super().__init__()
        if interval not in list(Interval):
            raise ConfigurationError(
                f"Timer(interval={str(interval)!r}) is unknown. A timer looks at the clock after steps or after epochs."
                " Pass interval='step' or interval='epoch'."
            )
        length = as_timedelta(duration)
        self._duration_s = length.total_seconds() if length is not None else None
        self._interval = Interval(interval)
        self._verbose = verbose
        self._start_s: dict[Stage, float] = {}
        self._end_s: dict[Stage, float] = {}
        self._offset_s = 0.0
        self._agreement = AgreedClock()

    def start_time(self, stage: str = Stage.TRAIN) -> float | None:
        """When the stage began, in seconds of a monotonic clock."""
        return self._start_s.get(Stage(stage))

    def end_time(self, stage: str = Stage.TRAIN) -> float | None:
        """When the stage ended, in seconds of a monotonic clock."""
        return self._end_s.get(Stage(stage))

    def time_elapsed(self, stage: str = Stage.TRAIN) -> float:
        """How long the stage has run, in seconds; for training, with the time of the runs it goes on from."""
        start, end = self.start_time(stage), self.end_time(stage)
        offset = self._offset_s if Stage(stage) == Stage.TRAIN else 0
        if start is None:
            return offset
        return (time.monotonic() if end is None else end) - start + offset

    def time_remaining(self, stage: str = Stage.TRAIN) -> float | None:
        """How many seconds of the duration are left; None without duration."""
        return None if self._duration_s is None else self._duration_s - self.time_elapsed(stage)

    def on_fit_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Do not begin when the time was up before."""
        self._agreement = AgreedClock()
        if self._duration_s is not None:
            self._stop_when_over(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The clock of training starts."""
        self._begin(Stage.TRAIN)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The clock of training stops."""
        self._end_s[Stage.TRAIN] = time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The clock of validation starts."""
        self._begin(Stage.VALIDATE)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The clock of validation stops."""
        self._end_s[Stage.VALIDATE] = time.monotonic()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The clock of testing starts."""
        self._begin(Stage.TEST)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The clock of testing stops."""
        self._end_s[Stage.TEST] = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Look at the clock, if it is to be looked at after steps."""
        if self._duration_s is not None and self._interval is Interval.step:
            self._stop_when_over(trainer)

    def on_train_epoch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Look at the clock, if it is to be looked at after epochs."""
        if self._duration_s is not None and self._interval is Interval.epoch:
            self._stop_when_over(trainer)

    def state_dict(self) -> dict[str, Any]:
        """How long each stage has run."""
        return {"time_elapsed": {str(stage): self.time_elapsed(stage) for stage in Stage}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting from there."""
        self._offset_s = state_dict.get("time_elapsed", {}).get(str(Stage.TRAIN), 0)

    def _begin(self, stage: Stage) -> None:
        self._start_s[stage] = time.monotonic()
        self._end_s.pop(stage, None)

    def _stop_when_over(self, trainer: Trainer) -> None:
        remaining = self.time_remaining()
        assert remaining is not None
        if self._agreement.is_over(remaining, trainer.strategy, trainer.world_size):
            if self._verbose and not trainer.should_stop:
                rank_zero_info(f"Time is up: trained for {timedelta(seconds=int(self.time_elapsed()))}. Stopping.")
            trainer.should_stop = True


def as_timedelta(duration: str | timedelta | dict[str, int] | None) -> timedelta | None:
    """A duration in any of the forms that users may write.

    Raises:
        ConfigurationError: For another form.

    >>> as_timedelta("00:12:00:30")
    datetime.timedelta(seconds=43230)
    """
    if duration is None or isinstance(duration, timedelta):
        return duration
    if isinstance(duration, str):
        match = re.fullmatch(r"\s*(\d+):(\d\d):(\d\d):(\d\d)\s*", duration)
        if match:
            days, hours, minutes, seconds = map(int, match.groups())
            return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    elif isinstance(duration, dict):
        try:
            return timedelta(**duration)
        except TypeError:
            pass  # answered below
    raise ConfigurationError(
        f"Timer(duration={duration!r}) is no duration. Days, hours, minutes and seconds are expected."
        " Pass text such as '00:12:00:00' (DD:HH:MM:SS), a datetime.timedelta, or a dict such as {'hours': 12}."
    )
