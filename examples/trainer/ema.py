"""Validate and keep a running mean of the weights, which is steadier than the weights of the last step.

python examples/trainer/ema.py
"""

import tempfile

from small_digits import DigitsData, DigitsNet

from fulmen.trainer import Trainer, seed_everything
from fulmen.trainer.callbacks import EMAWeightAveraging, ModelCheckpoint


def main() -> None:
    seed_everything(1)
    folder = tempfile.mkdtemp()
    data = DigitsData()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=5,
        logger=False,
        callbacks=[
            EMAWeightAveraging(decay=0.98, update_starting_at_step=20),
            # The mean is what is validated, and what lies in the file.
            ModelCheckpoint(folder, monitor="val_accuracy", mode="max"),
        ],
    )
    trainer.fit(DigitsNet(lr=0.01), datamodule=data)

    best = DigitsNet.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
    [found] = trainer.validate(best, datamodule=data, verbose=False)
    print(f"accuracy of the mean {found['val_accuracy']:.3f}")


if __name__ == "__main__":
    main()
