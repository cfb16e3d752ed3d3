"""Handwritten digits: a small convolutional net and its data.

The 1,797 images of 8 x 8 pixels come with scikit-learn, so nothing is downloaded.

    lightning-cli fit --config examples/digits/config.yaml
    lightning-cli test --config examples/digits/config.yaml --ckpt_path best
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset, random_split

from fulmen.trainer import LightningDataModule, LightningModule

NUM_DIGITS = 10


class DigitsNet(LightningModule):
    """Two convolutions and a linear layer.

    Args:
        width: Channels of the first convolution; the second has twice as many.
        dropout: Part of the features that is dropped while training.
        lr: The highest learning rate; it rises to that at first, and then falls to zero.
    """

    def __init__(self, width: int = 32, dropout: float = 0.4, lr: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, kernel_size=3, padding=1),  # 8 x 8 pixels
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),  # 4 x 4
            nn.Conv2d(width, 2 * width, kernel_size=3, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.MaxPool2d(2),  # 2 x 2
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(2 * width * 2 * 2, NUM_DIGITS),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the ten digits."""
        logits: Tensor = self.layers(images)
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss, accuracy = self._measure(batch)
        # The bar shows the last step, the curves the mean of each epoch.
        self.log_dict({"loss": loss, "acc": accuracy}, prog_bar=True, logger=False)
        self.log_dict({"train_loss": loss, "train_acc": accuracy}, on_step=False, on_epoch=True)
        self.log("lr", self.lr_schedulers().get_last_lr()[0])
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        loss, accuracy = self._measure(batch)
        self.log_dict({"val_loss": loss, "val_acc": accuracy}, prog_bar=True)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        loss, accuracy = self._measure(batch)
        self.log_dict({"test_loss": loss, "test_acc": accuracy})

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, _ = batch
        return self(images).argmax(dim=1)

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.hparams.lr, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _measure(self, batch: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Loss and accuracy."""
        images, digits = batch
        logits = self(images)
        return F.cross_entropy(logits, digits), (logits.argmax(dim=1) == digits).float().mean()


class DigitsData(LightningDataModule):
    """The digits of scikit-learn in three parts: 70 % to train, 15 % to validate, 15 % to test.

    Args:
        batch_size: Images in a batch.
        split_seed: Which image is in which part; runs with the same seed can be compared.
    """

    def __init__(self, batch_size: int = 32, split_seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.parts: list[Subset[tuple[Tensor, ...]]] = []

    def setup(self, stage: str) -> None:
        if self.parts:
            return
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16  # pixels go from 0 to 16
        dataset = TensorDataset(images, torch.tensor(digits.target))
        generator = torch.Generator().manual_seed(self.hparams.split_seed)
        self.parts = random_split(dataset, [0.7, 0.15, 0.15], generator)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.parts[0], self.hparams.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.parts[1], self.hparams.batch_size)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.parts[2], self.hparams.batch_size)

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self.test_dataloader()
