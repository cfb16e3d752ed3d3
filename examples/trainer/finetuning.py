"""A net that knows 0 to 4 learns 5 to 9: first the head alone, then the backbone with it, more carefully.

python examples/trainer/finetuning.py
"""

from small_digits import DigitsData, DigitsNet

from fulmen.trainer import Trainer, seed_everything
from fulmen.trainer.callbacks import BackboneFinetuning

FLAGS = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}


def main() -> None:
    seed_everything(1)
    model = DigitsNet()
    Trainer(**FLAGS, max_epochs=3).fit(model, datamodule=DigitsData(digits=range(5)))

    finetuning = BackboneFinetuning(
        unfreeze_backbone_at_epoch=2,
        lambda_func=lambda epoch: 1.2,  # the backbone's learning rate grows by a fifth each epoch
        backbone_initial_ratio_lr=0.1,  # from a tenth of that of the head
        should_align=True,  # until it has come to that of the head
        verbose=True,
    )
    trainer = Trainer(**FLAGS, max_epochs=6, callbacks=finetuning)
    trainer.fit(model, datamodule=DigitsData(digits=range(5, 10)))

    rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
    print(f"learning rates at the end: head {rates[0]:.4f}, backbone {rates[1]:.4f}")
    print(f"accuracy {trainer.callback_metrics['val_accuracy']:.3f}")


if __name__ == "__main__":
    main()
