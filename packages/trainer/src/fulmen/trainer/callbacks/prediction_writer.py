"""Write predictions to where they are wanted, as they come or all at the end."""

from collections.abc import Sequence
from typing import Any, Literal

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.rank_zero import warn_once
from fulmen.trainer._typing import Trainer
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.core.writes_predictions import WriteInterval


class BasePredictionWriter(Callback):
    """Hands you what `predict_step` returned, with the indices of the samples; every process writes its own share.

    Override `write_on_batch_end`, `write_on_epoch_end`, or both, as `write_interval` says. With
    `Trainer.predict(..., return_predictions=False)` and `write_interval="batch"` nothing is kept in memory.

    Args:
        write_interval: "batch": after each batch; "epoch": once, after all; "batch_and_epoch": both.

    Raises:
        ConfigurationError: For any other interval.
    """

    def __init__(self, write_interval: Literal["batch", "epoch", "batch_and_epoch"] = "batch") -> None:
        known = [str(interval.value) for interval in WriteInterval]
        found = WriteInterval.try_from_str(write_interval, "value") if isinstance(write_interval, str) else None
        if found is None:
            raise ConfigurationError(
                f"{type(self).__name__}(write_interval={write_interval!r}) is unknown. Predictions can be written after"
                f" each batch, after all of them, or both. Pass one of {', '.join(map(repr, known))}."
            )
        self.interval: WriteInterval = found

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the predictions of one batch.

        Args:
            trainer, pl_module: Of the run.
            prediction: What `predict_step` returned.
            batch_indices: The places of the samples in the dataset; None where nobody knows them.
            batch: The batch, on its device.
            batch_idx: Its number in this process.
            dataloader_idx: Which loader it is of.
        """

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Write the predictions of all batches of this process.

        Args:
            trainer, pl_module: Of the run.
            predictions: One for each batch; of several loaders, one such list for each.
            batch_indices: For each loader (also if there is one only) and each batch, the places of its samples.
        """

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Hand over one batch."""
        if not self.interval.on_batch:
            return
        indices = trainer.predict_loop.batch_indices(dataloader_idx)
        if indices is None:
            warn_once(
                f"{type(self).__name__}.write_on_batch_end gets batch_indices=None. Only a DataLoader over a dataset"
                " with indices tells which samples are in a batch. Put an index into the samples, or do without."
            )
        self.write_on_batch_end(trainer, pl_module, outputs, indices, batch, batch_idx, dataloader_idx)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand over all batches."""
        if self.interval.on_epoch:
            loop = trainer.predict_loop
            self.write_on_epoch_end(trainer, pl_module, loop.all_predictions, loop.epoch_batch_indices)
