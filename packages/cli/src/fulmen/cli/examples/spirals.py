"""A classifier: which of three spirals does a point lie on?

It shows a module and its data, and what is logged.

    lightning-cli fit --model fulmen.cli.examples.spirals.Classifier --data fulmen.cli.examples.spirals.Spirals \
        --trainer.max_epochs 30 --trainer.log_every_n_steps 10
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from fulmen.trainer import LightningDataModule, LightningModule

NUM_SPIRALS = 3


class Classifier(LightningModule):
    """A net of two hidden layers.

    Args:
        width: Units of each hidden layer.
        lr: The learning rate.
    """

    def __init__(self, width: int = 64, lr: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(
            nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, NUM_SPIRALS)
        )

    def forward(self, points: Tensor) -> Tensor:
        """Logits of the spirals."""
        logits: Tensor = self.layers(points)
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross entropy."""
        loss, accuracy = self._measure(batch)
        self.log_dict({"loss": loss, "acc": accuracy}, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Loss and accuracy."""
        loss, accuracy = self._measure(batch)
        self.log_dict({"val_loss": loss, "val_acc": accuracy}, prog_bar=True)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Loss and accuracy."""
        loss, accuracy = self._measure(batch)
        self.log_dict({"test_loss": loss, "test_acc": accuracy})

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The spiral of each point."""
        points, _ = batch
        spirals: Tensor = self(points).argmax(dim=1)
        return spirals

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)

    def _measure(self, batch: list[Tensor]) -> tuple[Tensor, Tensor]:
        points, spirals = batch
        logits = self(points)
        return F.cross_entropy(logits, spirals), (logits.argmax(dim=1) == spirals).float().mean()


class Spirals(LightningDataModule):
    """Points on three spirals, with noise.

    Args:
        num_points: To train with; a quarter as many to validate, and to test.
        noise: The standard deviation of each coordinate; the spirals have radius 1.
        batch_size: Points in a batch.
    """

    def __init__(self, num_points: int = 1200, noise: float = 0.03, batch_size: int = 64) -> None:
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Shuffled."""
        return self._loader(self.hparams.num_points, seed=0, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Other points."""
        return self._loader(self.hparams.num_points // 4, seed=1)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Other points again."""
        return self._loader(self.hparams.num_points // 4, seed=2)

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Those to test."""
        return self.test_dataloader()

    def _loader(self, num_points: int, *, seed: int, shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
        generator = torch.Generator().manual_seed(seed)
        spirals = torch.randint(NUM_SPIRALS, (num_points,), generator=generator)
        radius = torch.rand(num_points, generator=generator).sqrt()
        angle = 2 * math.pi * (1.2 * radius + spirals / NUM_SPIRALS)
        points = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
        points += self.hparams.noise * torch.randn(points.shape, generator=generator)
        return DataLoader(TensorDataset(points, spirals), self.hparams.batch_size, shuffle=shuffle)
