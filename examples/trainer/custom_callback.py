"""A callback of your own: after each validation, which two digits are taken for each other most often?

python examples/trainer/custom_callback.py
"""

from collections import Counter
from typing import Any

from small_digits import DigitsData, DigitsNet

from fulmen.trainer import Callback, LightningModule, Trainer, seed_everything


class Confusions(Callback):
    """Counts mistakes; what it has seen is in the checkpoint, and goes on after a resume."""

    def __init__(self) -> None:
        self.pairs: Counter[str] = Counter()
        self.worst: list[str] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.pairs.clear()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # what validation_step returned
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for answer, digit in zip(outputs.tolist(), batch[1].tolist(), strict=True):
            if answer != digit:
                self.pairs[f"{digit} for {answer}"] += 1

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        pl_module.log("mistakes", float(self.pairs.total()), prog_bar=True)
        self.worst += [pair for pair, _ in self.pairs.most_common(1)]
        trainer.print(f"epoch {trainer.current_epoch}: {self.pairs.total()} mistakes, {self.pairs.most_common(2)}")

    def state_dict(self) -> dict[str, Any]:
        return {"worst": self.worst}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.worst = state_dict["worst"]


def main() -> None:
    seed_everything(1)
    trainer = Trainer(accelerator="cpu", max_epochs=4, logger=False, enable_checkpointing=False, callbacks=Confusions())
    trainer.fit(DigitsNet(), datamodule=DigitsData())
    print(f"at the end: {trainer.callback_metrics['mistakes']:.0f} mistakes")


if __name__ == "__main__":
    main()
