"""Take a third of the weights that are left out of the net after each epoch, and train on with the others.

python examples/trainer/pruning.py
"""

from small_digits import DigitsData, DigitsNet

from fulmen.trainer import Trainer, seed_everything
from fulmen.trainer.callbacks import ModelPruning


def main() -> None:
    seed_everything(1)
    model = DigitsNet()
    pruning = ModelPruning(
        "l1_unstructured",
        parameters_to_prune=[(model.backbone[0], "weight"), (model.backbone[5], "weight"), (model.head, "weight")],
        amount=1 / 3,
        apply_pruning=lambda epoch: epoch < 6,  # the last two epochs mend what was lost
        use_lottery_ticket_hypothesis=False,  # go on from the weights that were learned
        verbose=1,
    )
    trainer = Trainer(accelerator="cpu", max_epochs=8, logger=False, enable_checkpointing=False, callbacks=pruning)
    trainer.fit(model, datamodule=DigitsData())

    pruned = [model.backbone[0].weight, model.backbone[5].weight, model.head.weight]
    zeros = sum(int((weight == 0).sum()) for weight in pruned) / sum(weight.numel() for weight in pruned)
    print(f"zero: {zeros:.1%} of the weights")
    print(f"accuracy {trainer.callback_metrics['val_accuracy']:.3f}")


if __name__ == "__main__":
    main()
