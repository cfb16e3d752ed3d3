"""The flags of Trainer as attributes, which can be changed while a run goes on."""

from typing import Any, Protocol

from fulmen.trainer.run.settings import Settings


class HasSettings(Protocol):
    """Whatever has the settings of a run."""

    @property
    def settings(self) -> Settings:
        """Every flag."""


def setting(name: str, doc: str) -> Any:
    """A property of something that has settings: reads one of them, and writes it if the new value is right."""

    def read(self: HasSettings) -> Any:
        return getattr(self.settings, name)

    def write(self: HasSettings, value: Any) -> None:
        self.settings.change(name, value)

    return property(read, write, doc=doc)


class TrainerFlags:
    """Reads and writes the settings of the run."""

    accumulate_grad_batches: int = setting("accumulate_grad_batches", "Batches to an optimizer step.")
    barebones: bool = setting("barebones", "Is all that costs time beside the steps switched off?")
    check_val_every_n_epoch: int | None = setting("check_val_every_n_epoch", "Epochs from validation to validation.")
    enable_autolog_hparams: bool = setting("enable_autolog_hparams", "Are hyperparameters handed to the loggers?")
    fast_dev_run: bool | int = setting("fast_dev_run", "Batches of a quick check run, or False.")
    gradient_clip_algorithm: str | None = setting("gradient_clip_algorithm", "'norm' or 'value'.")
    gradient_clip_val: float | None = setting("gradient_clip_val", "The bound of gradients.")
    limit_predict_batches: int | float = setting("limit_predict_batches", "Batches of a prediction, or a part.")
    limit_test_batches: int | float = setting("limit_test_batches", "Batches of a test, or a part.")
    limit_train_batches: int | float = setting("limit_train_batches", "Batches of a training epoch, or a part.")
    limit_val_batches: int | float = setting("limit_val_batches", "Batches of a validation, or a part.")
    log_every_n_steps: int = setting("log_every_n_steps", "Steps from row to row in the loggers.")
    num_sanity_val_steps: int = setting("num_sanity_val_steps", "Batches of the sanity check.")
    overfit_batches: int | float = setting("overfit_batches", "The few batches to overfit on.")
    reload_dataloaders_every_n_epochs: int = setting("reload_dataloaders_every_n_epochs", "0 is never.")
    val_check_interval: Any = setting("val_check_interval", "Batches to the next validation, or a part of an epoch.")
