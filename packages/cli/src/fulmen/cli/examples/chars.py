"""A language model: a small transformer learns to write sums, digit by digit.

It is a transformer of two layers, on all sums of numbers up to 60.

    lightning-cli fit --model fulmen.cli.examples.chars.Writer --data fulmen.cli.examples.chars.Sums \
        --trainer.max_epochs 15 --trainer.gradient_clip_val 1
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from fulmen.trainer import LightningDataModule, LightningModule

SYMBOLS = "0123456789+= "


class Writer(LightningModule):
    """Predicts each symbol from those before it.

    Args:
        width: Features of each symbol; a multiple of 4.
        num_layers: Of the transformer.
        max_length: Symbols in the longest text.
        lr: The learning rate.
    """

    # B = batch, T = symbols of a text, V = kinds of symbols

    def __init__(self, width: int = 64, num_layers: int = 2, max_length: int = 16, lr: float = 0.003) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.symbols = nn.Embedding(len(SYMBOLS), width)
        self.places = nn.Embedding(max_length, width)
        layer = nn.TransformerEncoderLayer(width, nhead=4, dim_feedforward=4 * width, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, len(SYMBOLS))

    def forward(self, text_BT: Tensor) -> Tensor:
        """Logits of the next symbols: [B, T, V]."""
        length = text_BT.shape[1]
        features = self.symbols(text_BT) + self.places(torch.arange(length, device=text_BT.device))
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=text_BT.device)
        logits_BTV: Tensor = self.head(self.layers(features, mask=mask, is_causal=True))
        return logits_BTV

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross entropy of the next symbol."""
        loss = self._loss(batch)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """The same for sums that were not seen."""
        self.log("val_loss", self._loss(batch), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)

    def _loss(self, batch: list[Tensor]) -> Tensor:
        (text_BT,) = batch
        logits_BTV = self(text_BT[:, :-1])
        return F.cross_entropy(logits_BTV.flatten(0, 1), text_BT[:, 1:].flatten())


class Sums(LightningDataModule):
    """Sums as texts of one length: "3+19=22   ".

    Args:
        max_number: The largest number that is added.
        batch_size: Sums in a batch.
    """

    def __init__(self, max_number: int = 60, batch_size: int = 64) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        """Write all sums; every tenth is kept for validation."""
        numbers = range(self.hparams.max_number + 1)
        length = len(f"{numbers[-1]}+{numbers[-1]}={2 * numbers[-1]}") + 1
        texts = [f"{a}+{b}={a + b}".ljust(length) for a in numbers for b in numbers]
        encoded = torch.tensor([[SYMBOLS.index(symbol) for symbol in text] for text in texts])
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))
        kept = len(texts) // 10
        self.parts = {"val": encoded[order[:kept]], "train": encoded[order[kept:]]}

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Shuffled."""
        return DataLoader(TensorDataset(self.parts["train"]), self.hparams.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Sums that are not trained with."""
        return DataLoader(TensorDataset(self.parts["val"]), self.hparams.batch_size)
