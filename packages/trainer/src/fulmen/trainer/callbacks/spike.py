"""Act on loss spikes."""

from typing import Any

from torch import Tensor

from fulmen.fabric.class_names import class_name
from fulmen.fabric.measure.spikes import SpikeDetection as FabricSpikeDetection
from fulmen.fabric.rank_zero import warn_once
from fulmen.trainer._typing import Trainer
from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.module import LightningModule


class SpikeDetection(FabricSpikeDetection, Callback):
    """End a fit whose loss jumps, and write down the batches that did it; arguments as in fabric's.

    It reads the loss back from the device after every batch.
    """

    def on_train_batch_end(  # type: ignore[override]  # the Trainer in place of a Fabric, and one argument more
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss of the batch, if the step gave one.

        Raises:
            TrainingSpikeException: On all processes, if the loss of one of them jumped.
        """
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            FabricSpikeDetection.on_train_batch_end(self, trainer, loss, batch, batch_idx)
        else:
            warn_once(
                f"{type(self).__name__} found no loss in what {class_name(pl_module)}.training_step() returned. It"
                " cannot say whether the loss jumps. Return the loss, or a dict with the key 'loss'."
            )
