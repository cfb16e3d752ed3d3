"""When ModelCheckpoint saves and how many it keeps: the arguments checked, and when validation comes between."""

from datetime import timedelta

from fulmen.fabric.errors import ConfigurationError
from fulmen.trainer._typing import Trainer


def validates(trainer: Trainer) -> bool:
    """Does this run validate at all?"""
    return bool(trainer.enable_validation) and sum(trainer.num_val_batches) > 0


def validation_follows(trainer: Trainer, batch_idx: int) -> bool:
    """Does validation run right after this training batch?"""
    every_n_epochs = trainer.check_val_every_n_epoch
    if every_n_epochs is not None and (trainer.current_epoch + 1) % every_n_epochs != 0:
        return False
    every_n_batches = trainer.val_check_batch
    if every_n_batches == float("inf"):
        return bool(trainer.is_last_batch)
    # Without epochs to count, batches are counted over the whole run; the one at hand is not counted yet.
    batch = batch_idx if every_n_epochs is not None else trainer.fit_loop.counts.batch.total
    return (batch + 1) % int(every_n_batches) == 0


def check_intervals(steps: int | None, interval: timedelta | None, epochs: int | None) -> None:
    """Refuse intervals that are none, or that exclude each other.

    Raises:
        ConfigurationError: Naming them.
    """
    for name, number in (("every_n_train_steps", steps), ("every_n_epochs", epochs)):
        if number is not None and number < 0:
            raise ConfigurationError(
                f"ModelCheckpoint({name}={number}) is no interval. It must not be negative."
                " Pass a positive number, or 0 for never."
            )
    given = {
        "every_n_train_steps": bool(steps),
        "every_n_epochs": bool(epochs),
        "train_time_interval": interval is not None,
    }
    if sum(given.values()) > 1:
        names = " and ".join(name for name, is_given in given.items() if is_given)
        raise ConfigurationError(
            f"ModelCheckpoint got several intervals: {names}. They exclude each other."
            " Pass one of them, or one ModelCheckpoint for each."
        )


def check_top_k(save_top_k: int, monitor: str | None) -> None:
    """Refuse a number that is none, or that cannot be ranked for.

    Raises:
        ConfigurationError: Naming it.
    """
    if save_top_k < -1:
        raise ConfigurationError(
            f"ModelCheckpoint(save_top_k={save_top_k}) is no number of checkpoints to keep."
            " It counts from 0, and -1 stands for all. Pass -1 or more."
        )
    if monitor is None and save_top_k not in (-1, 0, 1):
        raise ConfigurationError(
            f"ModelCheckpoint(save_top_k={save_top_k}) does not say what to rank checkpoints by."
            " Without a monitored metric only the youngest (1), all (-1) or none (0) can be kept."
            " Pass the name of a logged metric, as in ModelCheckpoint(monitor='val_loss')."
        )
