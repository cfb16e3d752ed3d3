"""Two processes predict, and each writes what it has found as it goes: nothing is kept in memory, nothing is sent.

python examples/trainer/predictions.py
"""

import csv
import tempfile
from pathlib import Path

from small_digits import DigitsData, DigitsNet

from fulmen.trainer import Trainer, seed_everything
from fulmen.trainer.callbacks import BasePredictionWriter

FLAGS = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}


class Rows(BasePredictionWriter):
    """One file for each process; a row has the place of the sample in the dataset, and the digit."""

    def __init__(self, folder: Path) -> None:
        super().__init__(write_interval="batch")
        self.folder = folder

    def write_on_batch_end(self, trainer, pl_module, prediction, batch_indices, batch, batch_idx, dataloader_idx):
        with open(self.folder / f"process_{trainer.global_rank}.csv", "a", newline="") as file:
            csv.writer(file).writerows(zip(batch_indices, prediction.tolist(), strict=True))


def main() -> None:
    seed_everything(1)
    model, data = DigitsNet(), DigitsData()
    Trainer(**FLAGS, max_epochs=2).fit(model, datamodule=data)

    folder = Path(tempfile.mkdtemp())
    trainer = Trainer(**FLAGS, devices=2, strategy="ddp_fork", callbacks=Rows(folder))
    trainer.predict(model, datamodule=data, return_predictions=False)

    files = sorted(folder.glob("*.csv"))
    digits = {int(index): int(digit) for path in files for index, digit in csv.reader(path.open())}
    data.setup("predict")
    right = sum(digits[index] == int(label) for index, (_, label) in enumerate(data.val))
    print(f"{len(digits)} samples from {len(files)} processes, accuracy {right / len(digits):.3f}")


if __name__ == "__main__":
    main()
