"""What a loop must know of callbacks that write predictions."""

from typing import Any, Protocol, runtime_checkable

from fulmen.fabric.enums import LightningEnum


class WriteInterval(LightningEnum):
    """When predictions are written."""

    BATCH = "batch"
    EPOCH = "epoch"
    BATCH_AND_EPOCH = "batch_and_epoch"

    @property
    def on_batch(self) -> bool:
        """After each batch?"""
        return self in (WriteInterval.BATCH, WriteInterval.BATCH_AND_EPOCH)

    @property
    def on_epoch(self) -> bool:
        """Once, after all batches?"""
        return self in (WriteInterval.EPOCH, WriteInterval.BATCH_AND_EPOCH)


@runtime_checkable
class WritesPredictions(Protocol):
    """A callback that is handed predictions and the indices of their samples."""

    interval: WriteInterval

    def write_on_batch_end(self, *args: Any) -> Any:
        """Gets the predictions of one batch."""

    def write_on_epoch_end(self, *args: Any) -> Any:
        """Gets those of all batches."""
