"""Two nets against each other: one makes points, the other tells them from points on a ring.

It shows manual optimization: two optimizers, each with its own loss.

    lightning-cli fit --model fulmen.cli.examples.gan.Gan --data fulmen.cli.examples.gan.Ring --trainer.max_epochs 20
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from fulmen.trainer import LightningDataModule, LightningModule


class Gan(LightningModule):
    """A generator and a critic, two hidden layers each.

    Args:
        num_latents: Random numbers that a point is made of.
        width: Units of each hidden layer.
        lr: The learning rate of both.
    """

    def __init__(self, num_latents: int = 4, width: int = 64, lr: float = 0.001) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = _net(num_latents, width, 2)
        self.critic = _net(2, width, 1)

    def forward(self, latents: Tensor) -> Tensor:
        """Points."""
        points: Tensor = self.generator(latents)
        return points

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """One step of the critic, one of the generator."""
        (real,) = batch
        of_generator, of_critic = self.optimizers()
        made = self(self._latents(len(real)))
        critic_loss = _loss(self.critic(real), is_real=True) + _loss(self.critic(made.detach()), is_real=False)
        self._step(of_critic, critic_loss)
        generator_loss = _loss(self.critic(made), is_real=True)
        self._step(of_generator, generator_loss)
        self.log_dict({"critic_loss": critic_loss, "generator_loss": generator_loss}, prog_bar=True)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """How far from the ring are the points?"""
        (real,) = batch
        made = self(self._latents(len(real)))
        self.log("val_distance", (made.norm(dim=1) - 1).abs().mean(), prog_bar=True)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One for each net."""
        return [
            torch.optim.Adam(net.parameters(), lr=self.hparams.lr, betas=(0.5, 0.9))
            for net in (self.generator, self.critic)
        ]

    def _latents(self, num_points: int) -> Tensor:
        return torch.randn(num_points, self.hparams.num_latents, device=self.device)

    def _step(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


class Ring(LightningDataModule):
    """Points on a ring of radius 1, with noise.

    Args:
        num_points: To train with; a quarter as many to validate.
        noise: The standard deviation of each coordinate.
        batch_size: Points in a batch.
    """

    def __init__(self, num_points: int = 4096, noise: float = 0.05, batch_size: int = 64) -> None:
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Shuffled."""
        return self._loader(self.hparams.num_points, seed=0, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Other points."""
        return self._loader(self.hparams.num_points // 4, seed=1)

    def _loader(self, num_points: int, *, seed: int, shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
        generator = torch.Generator().manual_seed(seed)
        angle = 2 * math.pi * torch.rand(num_points, generator=generator)
        points = torch.stack([angle.cos(), angle.sin()], dim=1)
        points += self.hparams.noise * torch.randn(points.shape, generator=generator)
        return DataLoader(TensorDataset(points), self.hparams.batch_size, shuffle=shuffle)


def _net(num_in: int, width: int, num_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(num_in, width),
        nn.LeakyReLU(0.2),
        nn.Linear(width, width),
        nn.LeakyReLU(0.2),
        nn.Linear(width, num_out),
    )


def _loss(logits: Tensor, *, is_real: bool) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(is_real)))
