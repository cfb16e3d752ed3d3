"""What the scripts in this folder start: digits, learned by as many processes as there are, on as many machines.

It goes on from its newest checkpoint, whoever started it again and with however many processes.
"""

import argparse
import os

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen.trainer import LightningModule, Trainer, seed_everything
from fulmen.trainer.callbacks import ModelCheckpoint


class Digits(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, digits = batch
        loss = F.cross_entropy(self.net(images), digits)
        self.log("loss", loss, on_epoch=True, sync_dist=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    # torchrun says how many machines have come; the other scripts pass the number.
    machines = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    parser.add_argument("--num-nodes", type=int, default=machines)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--strategy", default="ddp")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--folder", default="run", help="seen by all machines")
    given = parser.parse_args()

    seed_everything(1, verbose=False)
    data = load_digits()
    images, digits = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    trainer = Trainer(
        accelerator=given.accelerator,
        devices="auto",  # as many as were started on this machine
        num_nodes=given.num_nodes,
        strategy=given.strategy,
        max_epochs=given.epochs,
        callbacks=ModelCheckpoint(every_n_train_steps=20),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=given.folder,
    )
    trainer.fit(Digits(), DataLoader(TensorDataset(images, digits), batch_size=32, shuffle=True), ckpt_path="auto")
    if trainer.is_global_zero:
        print(
            f"{trainer.world_size} processes, {trainer.global_step} steps, loss {trainer.callback_metrics['loss']:.3f}"
        )


if __name__ == "__main__":
    main()
