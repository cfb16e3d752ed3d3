"""The four jobs that every framework is given in peers.py: what is trained, on what, and by which optimizer."""

from __future__ import annotations

import functools
import pydoc_data.topics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from step_overhead import Stopwatch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

CONTEXT_LENGTH = 64
VOCABULARY_SIZE = 256  # bytes
EMBEDDING_SIZE = 144
NUM_HEADS = 4
NUM_LAYERS = 4


class Examples(Dataset[Any]):
    """Pairs of features and target, over and over until there are enough; or features alone."""

    def __init__(self, features: Tensor, targets: Tensor | None, length: int) -> None:
        self._features = features
        self._targets = targets
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        place = index % len(self._features)
        return self._features[place] if self._targets is None else (self._features[place], self._targets[place])


@dataclass(frozen=True, slots=True)
class Work:
    """One job. `targets` of `examples` is None where the loss needs none."""

    key: str
    title: str
    batch_size: int
    num_steps: int  # of one run
    make_model: Callable[[], nn.Module]
    examples: Callable[[], tuple[Tensor, Tensor | None]]
    loss: Callable[[Tensor, Tensor | None], Tensor]
    learning_rate: float
    momentum: float = 0.0

    def model(self) -> nn.Module:
        """The same weights each time."""
        torch.manual_seed(0)
        return self.make_model()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The same optimizer each time."""
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate, momentum=self.momentum)

    def loader(self, num_steps: int, *, paired: bool = False, num_workers: int = 0) -> DataLoader[Any]:
        """Batches in the same order each time; `paired`: with a target also where none is needed. Workers stay."""
        features, targets = self.examples()
        if paired and targets is None:
            targets = torch.zeros(len(features), dtype=torch.int64)
        examples = Examples(features, targets, num_steps * self.batch_size)
        return DataLoader(examples, self.batch_size, num_workers=num_workers, persistent_workers=num_workers > 0)

    def loss_of(self, model: Callable[[Tensor], Tensor], batch: Any) -> Tensor:
        """The loss of one batch of our loader."""
        features, targets = (batch, None) if isinstance(batch, Tensor) else batch
        return self.loss(model(features), targets)


def features_of(batch: Any) -> Tensor:
    """What the model is called with."""
    features: Tensor = batch if isinstance(batch, Tensor) else batch[0]
    return features


@dataclass(slots=True)
class Job:
    """One run of one framework: so many steps in so many epochs, between `watch.start` and `watch.stop`."""

    work: Work
    num_steps: int
    num_epochs: int = 1
    watch: Stopwatch = field(default_factory=Stopwatch)
    model: nn.Module = field(init=False)
    paired: bool = False
    num_workers: int = 0

    def __post_init__(self) -> None:
        self.model = self.work.model()

    def loader(self) -> DataLoader[Any]:
        """The batches of one epoch."""
        return self.work.loader(self.num_steps // self.num_epochs, paired=self.paired, num_workers=self.num_workers)

    def optimizer(self) -> torch.optim.Optimizer:
        """For the model of this run."""
        return self.work.optimizer(self.model)

    def weights(self) -> Tensor:
        """All parameters, one after the other."""
        return torch.cat([parameter.detach().flatten() for parameter in self.model.parameters()]).clone()


# ---- models


class Block(nn.Module):
    """Attention and two linear layers, each with a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(EMBEDDING_SIZE)
        self.heads = nn.Linear(EMBEDDING_SIZE, 3 * EMBEDDING_SIZE)
        self.out = nn.Linear(EMBEDDING_SIZE, EMBEDDING_SIZE)
        self.before_layers = nn.LayerNorm(EMBEDDING_SIZE)
        self.layers = nn.Sequential(
            nn.Linear(EMBEDDING_SIZE, 4 * EMBEDDING_SIZE), nn.GELU(), nn.Linear(4 * EMBEDDING_SIZE, EMBEDDING_SIZE)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Shapes: (batch, position, embedding) in and out."""
        size = hidden.shape[:2]
        heads = self.heads(self.before_attention(hidden)).view(*size, NUM_HEADS, -1).transpose(1, 2)
        query, key, value = heads.chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.out(attended.transpose(1, 2).reshape(*size, EMBEDDING_SIZE))
        result: Tensor = hidden + self.layers(self.before_layers(hidden))
        return result


class SmallGPT(nn.Module):
    """A decoder over bytes with about a million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY_SIZE, EMBEDDING_SIZE)
        self.positions = nn.Embedding(CONTEXT_LENGTH, EMBEDDING_SIZE)
        self.blocks = nn.Sequential(*(Block() for _ in range(NUM_LAYERS)))
        self.head = nn.Linear(EMBEDDING_SIZE, VOCABULARY_SIZE, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next byte: (batch, position) to (batch, position, vocabulary)."""
        hidden = self.tokens(tokens) + self.positions.weight
        logits: Tensor = self.head(self.blocks(hidden))
        return logits


def linear() -> nn.Module:
    """Nothing but a product: what is left is the framework."""
    return nn.Linear(32, 2)


def mlp() -> nn.Module:
    """Two layers for 8 x 8 pixels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def conv_net() -> nn.Module:
    """Two convolutions and a linear layer for 8 x 8 pixels."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


# ---- data


@functools.cache
def random_features() -> tuple[Tensor, None]:
    """4,096 vectors."""
    return torch.randn(4096, 32, generator=torch.Generator().manual_seed(0)), None


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """The 1,797 handwritten digits that come with scikit-learn: (1, 8, 8) pixels from 0 to 1."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(found.target)


@functools.cache
def text() -> tuple[Tensor, Tensor]:
    """The language reference that comes with Python, as bytes: windows, and the same one byte further."""
    written = "\n".join(pydoc_data.topics.topics.values()).encode()[: 2048 * CONTEXT_LENGTH + 1]
    tokens = torch.tensor(list(written))
    return tokens[:-1].view(-1, CONTEXT_LENGTH), tokens[1:].view(-1, CONTEXT_LENGTH)


def sum_of(outputs: Tensor, targets: Tensor | None) -> Tensor:
    """The cheapest loss."""
    return outputs.sum()


def cross_entropy(outputs: Tensor, targets: Tensor | None) -> Tensor:
    """Over the last dimension of the outputs."""
    assert targets is not None
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


WORKS: Sequence[Work] = (
    Work("linear", "a linear model, batch 4", 4, 2000, linear, random_features, sum_of, 1e-4),
    Work("mlp", "an MLP on digits, batch 32", 32, 600, mlp, digits, cross_entropy, 0.05, 0.9),
    Work("conv", "a small convolutional net on digits, batch 32", 32, 300, conv_net, digits, cross_entropy, 0.05, 0.9),
    Work("gpt", "a 4-layer GPT on text, batch 8", 8, 30, SmallGPT, text, cross_entropy, 0.1, 0.9),
)
