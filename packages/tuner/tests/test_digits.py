"""On real data: handwritten digits."""

import math
import random

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulmen.trainer.core.module import LightningModule
from fulmen.tuner.tuner import Tuner

datasets = pytest.importorskip("sklearn.datasets")


class Digits(LightningModule):
    def __init__(self, lr):
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)
        )

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


@pytest.fixture(scope="module")
def data():
    pixels, labels = datasets.load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 1, 8, 8)[order]
    return images, torch.tensor(labels)[order]


def test_the_suggested_rate_trains_at_least_as_well_as_common_ones(make_trainer, data):
    images, labels = data
    train = DataLoader(TensorDataset(images[:1400], labels[:1400]), batch_size=32, shuffle=True)
    valid = DataLoader(TensorDataset(images[1400:], labels[1400:]), batch_size=512)

    def loss_after_three_epochs(lr):
        torch.manual_seed(1)
        model = Digits(lr)
        trainer = make_trainer(max_epochs=3, num_sanity_val_steps=0)
        if lr is None:
            model.lr = 1e-3
            Tuner(trainer).lr_find(model, train)
        trainer.fit(model, train, valid)
        return float(trainer.callback_metrics["loss"])

    suggested = loss_after_three_epochs(None)
    assert suggested <= min(loss_after_three_epochs(1e-3), loss_after_three_epochs(1e-1))


def test_the_batch_size_is_the_largest_that_fits_for_20_limits(kit, make_trainer, data):
    images, labels = (part[:1400] for part in data)

    class Narrow(Digits):
        def __init__(self, limit):
            super().__init__(1e-3)
            self.memory, self.batch_size = kit.Memory(limit), 32

        def training_step(self, batch, batch_idx):
            self.memory.take(len(batch[0]))
            return super().training_step(batch, batch_idx)

        def train_dataloader(self):
            return DataLoader(TensorDataset(images, labels), batch_size=self.batch_size)

    draw = random.Random(7)
    for limit in [draw.randint(1, 1400) for _ in range(20)]:
        model = Narrow(limit)
        tuner = Tuner(make_trainer(limit_val_batches=0))
        found = tuner.scale_batch_size(model, mode="binsearch", margin=0.0, steps_per_trial=1)
        assert found == model.batch_size == limit
        sizes = tuner.batch_size_trials.results["batch_size"]
        assert len(set(sizes)) == len(sizes) <= math.log2(1400) + 6
