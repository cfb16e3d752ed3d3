"""BoringModel and friends: the smallest things that run, for tests and bug reports."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from fulmen.trainer.core.datamodule import LightningDataModule
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.core.needs import STEP_OUTPUT


class RandomDataset(Dataset[Tensor]):
    """`length` random vectors of `size` numbers."""

    def __init__(self, size: int, length: int) -> None:
        self.len = length
        self.data = torch.randn(length, size)

    def __getitem__(self, index: int) -> Tensor:
        return self.data[index]

    def __len__(self) -> int:
        return self.len


class RandomDictDataset(Dataset[dict[str, Tensor]]):
    """`length` dicts of two vectors: "a" is random, "b" is "a" plus two."""

    def __init__(self, size: int, length: int) -> None:
        self.len = length
        self.data = torch.randn(length, size)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.data[index]
        return {"a": row, "b": row + 2}

    def __len__(self) -> int:
        return self.len


class RandomIterableDataset(IterableDataset[Tensor]):
    """`count` random vectors of `size` numbers, new ones on each pass, and no length."""

    def __init__(self, size: int, count: int) -> None:
        self.count = count
        self.size = size

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(self.count):
            yield torch.randn(self.size)


class RandomIterableDatasetWithLen(RandomIterableDataset):
    """`RandomIterableDataset` that knows its length."""

    def __len__(self) -> int:
        return self.count


class BoringModel(LightningModule):
    """One linear layer, 32 to 2, with all steps, loaders, an optimizer and a scheduler."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        """`x` has shape (batch, 32)."""
        output: Tensor = self.layer(x)  # TorchScript reads a comment that silences a type checker as a type
        return output

    def loss(self, preds: Tensor, labels: Tensor | None = None) -> Tensor:
        """Mean squared distance to `labels`, or to ones."""
        return F.mse_loss(preds, torch.ones_like(preds) if labels is None else labels)

    def step(self, batch: Any) -> Tensor:
        """The loss of a batch."""
        return self.loss(self(batch))

    def training_step(self, batch: Any, batch_idx: int) -> STEP_OUTPUT:
        """Gives the loss in a dict."""
        return {"loss": self.step(batch)}

    def validation_step(self, batch: Any, batch_idx: int) -> STEP_OUTPUT:
        """Gives the loss as "x"."""
        return {"x": self.step(batch)}

    def test_step(self, batch: Any, batch_idx: int) -> STEP_OUTPUT:
        """Gives the loss as "y"."""
        return {"y": self.step(batch)}

    def configure_optimizers(self) -> tuple[list[Optimizer], list[LRScheduler]]:
        """SGD, with a learning rate that falls every epoch."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)]

    def train_dataloader(self) -> DataLoader[Any]:
        """64 samples, one in a batch."""
        return DataLoader(RandomDataset(32, 64))

    def val_dataloader(self) -> DataLoader[Any]:
        """64 samples, one in a batch."""
        return DataLoader(RandomDataset(32, 64))

    def test_dataloader(self) -> DataLoader[Any]:
        """64 samples, one in a batch."""
        return DataLoader(RandomDataset(32, 64))

    def predict_dataloader(self) -> DataLoader[Any]:
        """64 samples, one in a batch."""
        return DataLoader(RandomDataset(32, 64))


class ManualOptimBoringModel(BoringModel):
    """`BoringModel` that steps by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> STEP_OUTPUT:
        """Backward and step, by hand."""
        optimizer = self.optimizers()
        loss = self.step(batch)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss


class DemoModel(LightningModule):
    """One linear layer with hyperparameters."""

    def __init__(self, out_dim: int = 10, learning_rate: float = 0.02) -> None:
        super().__init__()
        self.l1 = nn.Linear(32, out_dim)
        self.learning_rate = learning_rate

    def forward(self, x: Tensor) -> Tensor:
        """`x` has shape (batch, ...) with 32 numbers per sample."""
        return torch.relu(self.l1(x.flatten(1)))

    def training_step(self, batch: Any, batch_nb: int) -> STEP_OUTPUT:
        """The sum of the outputs."""
        loss: Tensor = self(batch).sum()
        return loss

    def configure_optimizers(self) -> Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


class Net(nn.Module):
    """A small convolutional classifier of 28 x 28 images into ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.dropout1 = nn.Dropout(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(64 * 12 * 12, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, 1, 28, 28) to log probabilities (batch, 10)."""
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = self.dropout1(F.max_pool2d(x, 2)).flatten(1)
        x = self.dropout2(F.relu(self.fc1(x)))
        return F.log_softmax(self.fc2(x), dim=1)


class BoringDataModule(LightningDataModule):
    """Random vectors, split into four sets of 64."""

    random_train: Dataset[Tensor]
    random_val: Dataset[Tensor]
    random_test: Dataset[Tensor]
    random_predict: Dataset[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.random_full = RandomDataset(32, 64 * 4)

    def setup(self, stage: str) -> None:
        """Splits the vectors for `stage`."""
        if stage in ("fit", "validate"):
            self.random_val = Subset(self.random_full, range(64, 64 * 2))
        if stage == "fit":
            self.random_train = Subset(self.random_full, range(64))
        if stage == "test":
            self.random_test = Subset(self.random_full, range(64 * 2, 64 * 3))
        if stage == "predict":
            self.random_predict = Subset(self.random_full, range(64 * 3, 64 * 4))

    def train_dataloader(self) -> DataLoader[Any]:
        """64 samples, one in a batch."""
        return DataLoader(self.random_train)

    def val_dataloader(self) -> DataLoader[Any]:
        """64 samples, one in a batch."""
        return DataLoader(self.random_val)

    def test_dataloader(self) -> DataLoader[Any]:
        """64 samples, one in a batch."""
        return DataLoader(self.random_test)

    def predict_dataloader(self) -> DataLoader[Any]:
        """64 samples, one in a batch."""
        return DataLoader(self.random_predict)


class BoringDataModuleNoLen(LightningDataModule):
    """Random vectors from datasets that have no length."""

    def setup(self, stage: str) -> None:
        """Makes the datasets for `stage`."""
        if stage in ("fit", "validate"):
            self.random_val = RandomIterableDataset(32, 64)
        if stage == "fit":
            self.random_train = RandomIterableDataset(32, 64)
        if stage == "test":
            self.random_test = RandomIterableDataset(32, 64)
        if stage == "predict":
            self.random_predict = RandomIterableDataset(32, 64)

    def train_dataloader(self) -> DataLoader[Any]:
        """64 samples, one in a batch."""
        return DataLoader(self.random_train)

    def val_dataloader(self) -> DataLoader[Any]:
        """64 samples, one in a batch."""
        return DataLoader(self.random_val)

    def test_dataloader(self) -> DataLoader[Any]:
        """64 samples, one in a batch."""
        return DataLoader(self.random_test)

    def predict_dataloader(self) -> DataLoader[Any]:
        """64 samples, one in a batch."""
        return DataLoader(self.random_predict)


class IterableBoringDataModule(LightningDataModule):
    """Several datasets for each stage; those for training are read from several loaders at once."""

    def __init__(self) -> None:
        super().__init__()
        self.train_datasets = [RandomDataset(4, 16), RandomDataset(4, 16)]
        self.val_datasets = [RandomDataset(4, 32), RandomDataset(4, 32)]
        self.test_datasets = [RandomDataset(4, 32), RandomDataset(4, 32)]
        self.predict_datasets = [RandomDataset(4, 64), RandomDataset(4, 64)]

    def train_dataloader(self) -> Iterable[DataLoader[Any]]:
        """A loader for each dataset."""
        return [DataLoader(dataset, batch_size=4) for dataset in self.train_datasets]

    def val_dataloader(self) -> DataLoader[Any]:
        """All datasets, one after the other."""
        return DataLoader(torch.utils.data.ConcatDataset(self.val_datasets))

    def test_dataloader(self) -> DataLoader[Any]:
        """All datasets, one after the other."""
        return DataLoader(torch.utils.data.ConcatDataset(self.test_datasets))

    def predict_dataloader(self) -> DataLoader[Any]:
        """All datasets, one after the other."""
        return DataLoader(torch.utils.data.ConcatDataset(self.predict_datasets))
