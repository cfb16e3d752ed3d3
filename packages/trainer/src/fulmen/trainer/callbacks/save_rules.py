"""When ModelCheckpoint saves and what: the arguments checked, and what the run says about it."""

import re
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from fulmen.fabric.arguments import check_kind, check_text, check_whole
from fulmen.fabric.errors import CheckpointError, ConfigurationError
from fulmen.trainer._typing import Trainer
from fulmen.trainer.callbacks.monitored import validated_once_per_epoch
from fulmen.trainer.checkpoint.filename import check_template
from fulmen.trainer.checkpoint.place import check_place
from fulmen.trainer.core.module import LightningModule


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


def gets_fresher(trainer: Trainer, monitor: str, batch_idx: int) -> bool:
    """Will validation bring the monitored value, or a newer one, before anything else is trained?"""
    if not validates(trainer):
        return False
    return monitor not in trainer.callback_metrics or validation_follows(trainer, batch_idx)


def saves_at_epoch_end(trainer: Trainer, asked: bool | None) -> bool:
    """Is it the end of a training epoch that saves, rather than that of a validation? `asked` is the user's answer."""
    if asked is not None:
        return asked
    # With one validation per epoch, all metrics are there at the end of the epoch. Otherwise validation decides.
    return not validates(trainer) or validated_once_per_epoch(trainer)


def values_of(trainer: Trainer) -> dict[str, Any]:
    """What may stand in the name of a file: the logged metrics, the epoch and the step."""
    values: dict[str, Any] = dict(trainer.callback_metrics)
    for name, count in (("epoch", trainer.current_epoch), ("step", trainer.global_step)):
        logged = values.get(name)
        values[name] = logged.int() if isinstance(logged, Tensor) else torch.tensor(count)
    return values


def refuse_unwritable(trainer: Trainer, folder: str, module: LightningModule, template: str | None = None) -> None:
    """Refuse, in all processes, a folder to which no checkpoint of `module` can be written.

    Raises:
        CheckpointError: See `check_place`.
    """
    if trainer.fast_dev_run:
        return
    refusal = None
    if trainer.is_global_zero:
        # At least what is trained is saved; what is not may be left out by the user's `on_save_checkpoint`.
        trained = (parameter for parameter in module.parameters() if parameter.requires_grad)
        try:
            num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in trained)
            check_place(folder, num_bytes, re.sub(r"\{.*?\}", "", template or ""))
        except CheckpointError as error:
            refusal = error
    refusal = trainer.strategy.broadcast(refusal)
    if refusal is not None:
        raise refusal


def check_filename(filename: Any) -> None:
    """Refuse what is no template for names of checkpoints.

    Raises:
        ArgumentTypeError: For what is no text.
        ConfigurationError: For a text that can never become a name.
    """
    if filename is not None:
        wanted = "'{epoch}-{val_loss:.2f}', for example"
        check_kind("ModelCheckpoint", "filename", filename, str, "It is a template for names.", wanted)
        check_template(filename)


def check_save_last(save_last: object) -> None:
    """Refuse what is no way to keep the last checkpoint.

    Raises:
        ConfigurationError: Quoting it.
    """
    if save_last not in (None, True, False, "link"):
        raise ConfigurationError(
            f"ModelCheckpoint(save_last={save_last!r}) is unknown. The last checkpoint is a file or a link."
            " Pass save_last=True, save_last='link' or save_last=False."
        )


def check_intervals(steps: int | None, interval: timedelta | None, epochs: int | None) -> None:
    """Refuse intervals that are none, or that exclude each other.

    Raises:
        ArgumentTypeError: For one that is no number, and no time.
        ConfigurationError: Naming them.
    """
    if interval is not None:
        meaning, wanted = "It is the time from one checkpoint to the next.", "timedelta(minutes=30), for example"
        check_kind("ModelCheckpoint", "train_time_interval", interval, timedelta, meaning, wanted)
    for name, number in (("every_n_train_steps", steps), ("every_n_epochs", epochs)):
        if number is None:
            continue
        check_whole("ModelCheckpoint", name, number, "It counts from one checkpoint to the next.")
        if number < 0:
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
        ArgumentTypeError: For what is no number, and no name.
        ConfigurationError: Naming it.
    """
    check_whole("ModelCheckpoint", "save_top_k", save_top_k, "It is how many checkpoints are kept, and -1 is all.")
    check_text("ModelCheckpoint", "monitor", monitor, "It is the name of one logged metric.")
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
