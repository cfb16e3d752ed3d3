"""An LSTM that predicts the next word, and carries what it remembers from batch to batch."""

from collections.abc import Iterator, Sized
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, Sampler

from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.demos.text import WikiText2

State = tuple[Tensor, Tensor]


class SimpleLSTM(nn.Module):
    """Words to log probabilities of the next words.

    Args:
        vocab_size: Different words.
        ninp: Numbers that stand for a word.
        nhid: Numbers that each layer remembers.
        nlayers: Layers.
        dropout: Part of the numbers that is left out in training.
    """

    def __init__(
        self, vocab_size: int = 33278, ninp: int = 512, nhid: int = 512, nlayers: int = 4, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.nhid = nhid
        self.nlayers = nlayers
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(vocab_size, ninp)
        self.rnn = nn.LSTM(ninp, nhid, nlayers, dropout=dropout, batch_first=True)
        self.decoder = nn.Linear(nhid, vocab_size)
        self.init_weights()

    def init_weights(self) -> None:
        """Small random weights, no bias."""
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, input: Tensor, hidden: State) -> tuple[Tensor, State]:
        """Words (B, T) and the state before them, to log probabilities (B * T, V) and the state after them."""
        output, hidden = self.rnn(self.drop(self.encoder(input)), hidden)
        logits = self.decoder(self.drop(output))
        return F.log_softmax(logits.flatten(0, 1), dim=1), hidden

    def init_hidden(self, batch_size: int) -> State:
        """The state before the first word."""
        weight = self.decoder.weight
        shape = (self.nlayers, batch_size, self.nhid)
        return weight.new_zeros(shape), weight.new_zeros(shape)


class SequenceSampler(Sampler[list[int]]):
    """Batches of which each goes on where the one before ended.

    The samples are cut into `batch_size` long runs; batch i holds the i-th sample of every run.

    Args:
        dataset: Only its length counts.
        batch_size: Runs side by side.
    """

    def __init__(self, dataset: Sized, batch_size: int) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.chunk_size = len(dataset) // batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for offset in range(self.chunk_size):
            yield [run * self.chunk_size + offset for run in range(self.batch_size)]

    def __len__(self) -> int:
        return self.chunk_size


class LightningLSTM(LightningModule):
    """Trains `SimpleLSTM` on text.

    Args:
        vocab_size: Different words of the text.
        text: What to train on: a dataset as in `fulmen.trainer.demos`; None: WikiText-2, fetched over the network.
        model: What is trained; None: a `SimpleLSTM` of its usual size.
    """

    def __init__(
        self, vocab_size: int = 33278, text: Dataset[Any] | None = None, model: SimpleLSTM | None = None
    ) -> None:
        super().__init__()
        self.model = model or SimpleLSTM(vocab_size=vocab_size)
        self.hidden: State | None = None
        self.text = text

    def on_train_epoch_end(self) -> None:
        """The text begins again."""
        self.hidden = None

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of the predicted words; what is remembered goes on to the next batch, gradients do not."""
        inputs, target = batch
        if self.hidden is None:
            self.hidden = self.model.init_hidden(len(inputs))
        hidden = self.hidden[0].detach(), self.hidden[1].detach()
        output, self.hidden = self.model(inputs, hidden)
        loss = F.nll_loss(output, target.flatten())
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def prepare_data(self) -> None:
        """Fetches the text, if none was given."""
        if self.text is None:
            WikiText2(download=True)

    def train_dataloader(self) -> DataLoader[Any]:
        """20 runs side by side."""
        text: Any = WikiText2(download=False) if self.text is None else self.text
        return DataLoader(text, batch_sampler=SequenceSampler(text, batch_size=20))

    def configure_optimizers(self) -> Optimizer:
        """SGD."""
        return torch.optim.SGD(self.parameters(), lr=20.0)
