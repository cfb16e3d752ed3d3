"""A transformer that predicts the next word."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.demos.text import WikiText2


class PositionalEncoding(nn.Module):
    """Adds to each word where it stands: sines and cosines (Vaswani et al., 2017, https://arxiv.org/abs/1706.03762).

    Args:
        dim: Numbers that stand for a word.
        dropout: Part of them that is left out in training.
        max_len: Longest text.
    """

    pe: Tensor

    def __init__(self, dim: int, dropout: float = 0.1, max_len: int = 5000) -> None:
        super().__init__()
        self.dim = dim
        self.max_len = max_len
        self.dropout = nn.Dropout(p=dropout)
        position = torch.arange(max_len).unsqueeze(1)
        rate = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
        pe = torch.zeros(max_len, dim)
        pe[:, 0::2] = torch.sin(position * rate)
        pe[:, 1::2] = torch.cos(position * rate[: dim // 2])
        self.register_buffer("pe", pe, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Words (B, T, dim) with their places."""
        output: Tensor = self.dropout(x + self.pe[: x.size(1)])
        return output


class Transformer(nn.Module):
    """Words to log probabilities of the next words.

    No position sees a later word: neither in the text, nor in the target, of which it sees what came before.

    Args:
        vocab_size: Different words.
        ninp: Numbers that stand for a word.
        nhead: Heads of attention.
        nhid: Width of the layers between.
        nlayers: Layers of the encoder, and of the decoder.
        dropout: Part of the numbers that is left out in training.
    """

    def __init__(
        self,
        vocab_size: int = 33278,
        ninp: int = 200,
        nhead: int = 2,
        nhid: int = 200,
        nlayers: int = 2,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.pos_encoder = PositionalEncoding(ninp, dropout)
        self.embedding = nn.Embedding(vocab_size, ninp)
        self.transformer = nn.Transformer(
            d_model=ninp,
            nhead=nhead,
            num_encoder_layers=nlayers,
            num_decoder_layers=nlayers,
            dim_feedforward=nhid,
            dropout=dropout,
            batch_first=True,
        )
        self.decoder = nn.Linear(ninp, vocab_size)
        self.ninp = ninp
        self.vocab_size = vocab_size
        self.src_mask: Tensor | None = None

    def generate_square_subsequent_mask(self, size: int) -> Tensor:
        """(size, size): -inf where a position would see a later one, else 0."""
        return torch.triu(torch.full((size, size), -math.inf), diagonal=1)

    def forward(self, inputs: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Words (B, T) and the words after each of them (B, T), to log probabilities (B * T, V).

        Args:
            inputs: The words.
            target: For each the next word; position t is shown those before t only.
            mask: (T, T), added to the attention; None: no position sees a later one.
        """
        num_words = inputs.size(1)
        if mask is None:
            if self.src_mask is None or len(self.src_mask) != num_words or self.src_mask.device != inputs.device:
                self.src_mask = self.generate_square_subsequent_mask(num_words).to(
                    inputs.device, self.decoder.weight.dtype
                )
            mask = self.src_mask
        shown = torch.cat([inputs[:, :1], target[:, :-1]], dim=1)
        output = self.transformer(
            self._embedded(inputs), self._embedded(shown), src_mask=mask, tgt_mask=mask, memory_mask=mask
        )
        return F.log_softmax(self.decoder(output), dim=-1).flatten(0, 1)

    def _embedded(self, words: Tensor) -> Tensor:
        output: Tensor = self.pos_encoder(self.embedding(words) * math.sqrt(self.ninp))
        return output


class LightningTransformer(LightningModule):
    """Trains `Transformer` on text.

    Args:
        vocab_size: Different words of the text.
        text: What to train on: a dataset as in `fulmen.trainer.demos`; None: WikiText-2, fetched over the network.
    """

    def __init__(self, vocab_size: int = 33278, text: Dataset[Any] | None = None) -> None:
        super().__init__()
        self.model = Transformer(vocab_size=vocab_size)
        self.text = text

    def forward(self, inputs: Tensor, target: Tensor) -> Tensor:
        """As `Transformer`."""
        output: Tensor = self.model(inputs, target)
        return output

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of the predicted words."""
        inputs, target = batch
        return F.nll_loss(self(inputs, target), target.flatten())

    def prepare_data(self) -> None:
        """Fetches the text, if none was given."""
        if self.text is None:
            WikiText2(download=True)

    def train_dataloader(self) -> DataLoader[Any]:
        """One block in a batch."""
        text: Any = WikiText2(download=False) if self.text is None else self.text
        return DataLoader(text)

    def configure_optimizers(self) -> Optimizer:
        """SGD."""
        return torch.optim.SGD(self.model.parameters(), lr=0.1)
