"""Stop now? Validate now? Log now? Step now? Pure: decided from numbers, done elsewhere."""

from collections.abc import Sequence
from enum import StrEnum

from fulmen.trainer.errors import ConfigurationError


class StopReason(StrEnum):
    """Why a fit ends; the value is the sentence for people."""

    MAX_EPOCHS = "`max_epochs` was reached"
    MAX_STEPS = "`max_steps` was reached"
    REQUESTED = "a callback, a hook or a signal asked for it"
    NO_BATCHES = "there are no training batches"


def may_stop_early(*, epochs: int, steps: int, min_epochs: int | None, min_steps: int | None) -> bool:
    """Has enough been trained for a request to stop to be followed?"""
    return epochs >= (min_epochs or 0) and steps >= (min_steps or 0)


def fit_is_done(
    *,
    epochs: int,
    steps: int,
    num_batches: int | float,
    max_epochs: int,
    max_steps: int,
    min_epochs: int | None,
    min_steps: int | None,
    stop_requested: bool,
) -> StopReason | None:
    """Why no further epoch begins, or None if one does.

    Args:
        epochs, steps: Epochs and optimizer steps done.
        num_batches: Batches of an epoch.
        max_epochs, max_steps: Bounds; -1 is none.
        min_epochs, min_steps: What must be done before a request to stop is followed.
        stop_requested: Was `should_stop` set?
    """
    if num_batches == 0:
        return StopReason.NO_BATCHES
    if max_steps != -1 and steps >= max_steps:
        return StopReason.MAX_STEPS
    if max_epochs != -1 and epochs >= max_epochs:
        return StopReason.MAX_EPOCHS
    if stop_requested and may_stop_early(epochs=epochs, steps=steps, min_epochs=min_epochs, min_steps=min_steps):
        return StopReason.REQUESTED
    return None


def validation_interval(
    interval: int | float, num_batches: int | float, *, across_epochs: bool, source: str = "the training data"
) -> int | float:
    """After how many batches validation runs; infinity means at the end of each epoch.

    Args:
        interval: `val_check_interval` as int (batches) or float (part of an epoch).
        num_batches: Batches of an epoch, infinity if unknown.
        across_epochs: Are batches counted on from epoch to epoch (`check_val_every_n_epoch=None`)?
        source: Names the data in messages.

    Raises:
        ConfigurationError: If the interval does not fit the epoch.
    """
    if isinstance(interval, int):
        if interval > num_batches and not across_epochs:
            raise ConfigurationError(
                f"Trainer(val_check_interval={interval}) is more than an epoch has batches ({num_batches})."
                " Batches are counted anew in each epoch, so validation would never run."
                f" Pass {num_batches} or less, or check_val_every_n_epoch=None to count across epochs."
            )
        return interval
    if num_batches == float("inf"):
        if interval == 1.0:
            return num_batches
        raise ConfigurationError(
            f"Trainer(val_check_interval={interval}) is a part of an epoch, and the length of {source} is not known."
            " A part of an unknown length is unknown. Pass an int: validation runs after so many batches."
        )
    return max(1, int(num_batches * interval))


def validates_after(
    *, batch: int, batches_in_all: int, every: int | float, across_epochs: bool, is_last: bool, stopping: bool
) -> bool:
    """Is `batch` followed by validation?

    Args:
        batch: 0-based, in this epoch.
        batches_in_all: 0-based, since the run began.
        every: From `validation_interval`.
        across_epochs: Does `every` count on from epoch to epoch?
        is_last: Is it the last batch of the epoch?
        stopping: Does the run end after this batch by request?
    """
    if stopping:
        return True
    if every == float("inf"):
        return is_last
    return ((batches_in_all if across_epochs else batch) + 1) % int(every) == 0


def validates_in_epoch(epoch: int, every_n_epochs: int | None) -> bool:
    """Is there validation in `epoch` (0-based)? None counts batches only."""
    return every_n_epochs is None or (epoch + 1) % every_n_epochs == 0


def logs_after(step: int, every: int, *, stopping: bool = False) -> bool:
    """Do metrics of `step` (0-based) go to the loggers? `every=0`: never; else also when a stop was asked for."""
    return every > 0 and (stopping or (step + 1) % every == 0)


def num_sanity_batches(asked: int, lengths: Sequence[int | float]) -> list[int | float]:
    """Batches of the sanity check for each loader; -1 asks for all."""
    return [length if asked == -1 else min(asked, length) for length in lengths]
