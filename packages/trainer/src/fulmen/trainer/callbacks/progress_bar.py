"""What all progress bars share: totals, names, and which metrics to show."""

from typing import Any

from fulmen.fabric.errors import ArgumentTypeError
from fulmen.fabric.rank_zero import warn_once
from fulmen.trainer._typing import Trainer
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.metrics.outlets import asked


class ProgressBar(Callback):
    """The base of all progress bars; a Trainer has at most one.

    Yours to override: `disable`, `enable`, `get_metrics`, `print`, the descriptions, and any hook.
    """

    _is_enabled = True

    def __init__(self) -> None:
        self._trainer: Trainer | None = None
        self._dataloader_idx: int | None = None

    @property
    def trainer(self) -> Trainer:
        """The trainer whose progress is shown.

        Raises:
            ArgumentTypeError: Before `setup`.
        """
        if self._trainer is None:
            raise ArgumentTypeError(
                f"{type(self).__name__}.trainer is not there yet. The trainer is known from setup on."
                " Read it in a hook, or after super().setup(...)."
            )
        return self._trainer

    @property
    def sanity_check_description(self) -> str:
        """In front of the bar of the sanity check."""
        return "Sanity Checking"

    @property
    def train_description(self) -> str:
        """In front of the bar of training, before the first epoch."""
        return "Training"

    @property
    def validation_description(self) -> str:
        """In front of the bar of validation."""
        return "Validation"

    @property
    def test_description(self) -> str:
        """In front of the bar of testing."""
        return "Testing"

    @property
    def predict_description(self) -> str:
        """In front of the bar of predicting."""
        return "Predicting"

    @property
    def total_train_batches(self) -> int | float:
        """Batches of a training epoch; infinite if unknown."""
        total: int | float = self.trainer.num_training_batches
        return total

    @property
    def total_val_batches(self) -> int | float:
        """Batches of all validation loaders in this epoch."""
        every = self.trainer.check_val_every_n_epoch
        runs = every is None or (self.trainer.current_epoch + 1) % every == 0
        return sum(self.trainer.num_val_batches) if runs else 0

    @property
    def total_val_batches_current_dataloader(self) -> int | float:
        """Batches of the loader that is running, in validation or the sanity check."""
        trainer = self.trainer
        return self._of_current(trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches)

    @property
    def total_test_batches_current_dataloader(self) -> int | float:
        """Batches of the test loader that is running."""
        return self._of_current(self.trainer.num_test_batches)

    @property
    def total_predict_batches_current_dataloader(self) -> int | float:
        """Batches of the predict loader that is running."""
        return self._of_current(self.trainer.num_predict_batches)

    def _of_current(self, totals: list[int | float]) -> int | float:
        if self._dataloader_idx is None or self._dataloader_idx >= len(totals):
            return totals[0] if len(totals) == 1 else sum(totals)
        return totals[self._dataloader_idx]

    def has_dataloader_changed(self, dataloader_idx: int) -> bool:
        """Is this another loader than in the last call? It is the current one from now on."""
        has_changed = self._dataloader_idx != dataloader_idx
        self._dataloader_idx = dataloader_idx
        return has_changed

    def reset_dataloader_idx_tracker(self) -> None:
        """No loader is the current one."""
        self._dataloader_idx = None

    @property
    def is_enabled(self) -> bool:
        """Is anything shown?"""
        return self._is_enabled

    @property
    def is_disabled(self) -> bool:
        """Is nothing shown?"""
        return not self.is_enabled

    def disable(self) -> None:
        """Show nothing from the next stage on."""
        self._is_enabled = False

    def enable(self) -> None:
        """Show progress again from the next stage on."""
        self._is_enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print so that the bar stays whole."""
        print(*args, **kwargs)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Only rank zero shows progress."""
        self._trainer = trainer
        if not trainer.is_global_zero:
            self.disable()

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What to show: the version of the logger, and what was logged with `prog_bar=True`.

        Called when the bar is drawn, not in every step: reading a value may wait for the device.
        """
        standard, logged = get_standard_metrics(trainer), trainer.progress_bar_metrics
        taken = standard.keys() & logged.keys()
        if taken:
            warn_once(
                f"The progress bar shows {', '.join(sorted(taken))} itself, and a metric was logged under that name."
                " The logged value is shown. Log it under another name, or override get_metrics of the progress bar."
            )
        return {**standard, **logged}


def get_standard_metrics(trainer: Trainer) -> dict[str, int | str]:
    """What a bar shows beside the user's metrics: `v_num`, the version of the first logger."""
    if not trainer.loggers:
        return {}
    version = asked(trainer.loggers[0], "version")
    if version is None:
        return {}
    # Hashes are long; their end tells them apart.
    return {"v_num": version[-4:] if isinstance(version, str) else version}
