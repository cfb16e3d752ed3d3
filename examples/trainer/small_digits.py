"""What the examples learn: handwritten digits of scikit-learn, 8 x 8 pixels, by a small net in two parts."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from fulmen.trainer import LightningDataModule, LightningModule


class DigitsNet(LightningModule):
    """A backbone that makes features of images, and a head that names the digit."""

    def __init__(self, width: int = 32, lr: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, width, kernel_size=3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(width * 16, 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, digits = batch
        loss = F.cross_entropy(self(images), digits)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, digits = batch
        answers = self(images).argmax(dim=1)
        self.log("val_accuracy", (answers == digits).float().mean(), prog_bar=True)
        return answers

    def predict_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        images, _ = batch
        return self(images).argmax(dim=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # A frozen part gets its own group when it is unfrozen.
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=self.hparams.lr)


class DigitsData(LightningDataModule):
    """The images of some digits: four fifths to train, one fifth to validate and to predict."""

    def __init__(self, digits: Sequence[int] = range(10), batch_size: int = 32) -> None:
        super().__init__()
        self.digits = list(digits)
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        data = load_digits()
        images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16  # pixels go from 0 to 16
        labels = torch.tensor(data.target)
        chosen = torch.isin(labels, torch.tensor(self.digits))
        dataset = TensorDataset(images[chosen], labels[chosen])
        self.train, self.val = random_split(dataset, [0.8, 0.2], torch.Generator().manual_seed(0))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, self.batch_size)

    def predict_dataloader(self) -> DataLoader:
        return self.val_dataloader()
