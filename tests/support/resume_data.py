"""Data for fits that can be cut anywhere: sets, samplers and loaders of many kinds, by name."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, WeightedRandomSampler, get_worker_info


def _sample(index: int, size: int) -> tuple[Tensor, Tensor]:
    """Augmented by all three global generators."""
    noise = torch.rand(4) + random.random() + float(numpy.random.rand())
    return torch.full((4,), index / size) + 0.1 * noise, torch.tensor([float(index % 3)])


class Samples(Dataset[Any]):
    """Read by index."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        return _sample(index, self.size)


class Stream(IterableDataset[Any]):
    """Read in one order, without a length; workers share it."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return (_sample(index, self.size) for index in range(first, self.size, step))


class ShuffledStream(Stream):
    """Another order in each epoch, from the global generator; workers agree on none, so each has all of it."""

    def __iter__(self) -> Iterator[Any]:
        return (_sample(int(index), self.size) for index in torch.randperm(self.size))


class SizedStream(Stream):
    """The same, with a length."""

    def __len__(self) -> int:
        return self.size


class StatefulStream(Stream):
    """Knows where it is; without a state it begins anew."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.next = self._first = 0

    def __iter__(self) -> Iterator[Any]:
        self.next, self._first = self._first, 0
        while self.next < self.size:
            self.next += 1
            yield _sample(self.next - 1, self.size)

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = self._first = state["next"]


class ByEpoch(Sampler[int]):
    """An order that depends on the epoch that it was told."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self.size, generator=torch.Generator().manual_seed(self.epoch)).tolist())

    def __len__(self) -> int:
        return self.size


class OwnOrder(Sampler[int]):
    """An order from a generator of its own."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.random = random.Random(7)

    def __iter__(self) -> Iterator[int]:
        return iter(self.random.sample(range(self.size), self.size))

    def __len__(self) -> int:
        return self.size


class OwnBatches:
    """Batches of one to three in an order of its own, from a generator of its own; how many is not known before."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.random = random.Random(5)

    def __iter__(self) -> Iterator[list[int]]:
        left = list(range(self.size))
        self.random.shuffle(left)
        while left:
            count = self.random.randint(1, 3)
            yield left[:count]
            left = left[count:]


class Batches:
    """Batches without a DataLoader."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[Any]:
        return ((torch.rand(2, 4) + index, torch.zeros(2, 1)) for index in range(self.size))

    def __len__(self) -> int:
        return self.size


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(9)


def _torchdata(data: Any, **arguments: Any) -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(data, **arguments)


MakeLoader = Callable[..., Any]
SIZED: dict[str, MakeLoader] = {
    "in order": lambda n, **how: DataLoader(Samples(n), **how),
    "shuffle": lambda n, **how: DataLoader(Samples(n), shuffle=True, **how),
    "generator": lambda n, **how: DataLoader(Samples(n), shuffle=True, generator=_generator(), **how),
    "weighted": lambda n, **how: DataLoader(
        Samples(n), sampler=WeightedRandomSampler([1.0 + index for index in range(n)], n), **how
    ),
    "weighted, generator": lambda n, **how: DataLoader(
        Samples(n), sampler=WeightedRandomSampler([1.0] * n, n, generator=_generator()), **how
    ),
    "own sampler": lambda n, **how: DataLoader(Samples(n), sampler=OwnOrder(n), **how),
    "told its epoch": lambda n, **how: DataLoader(Samples(n), sampler=ByEpoch(n), **how),
    "sized stream": lambda n, **how: DataLoader(SizedStream(n), **how),
    "no DataLoader": lambda n, **_: Batches(n),
}
UNSIZED: dict[str, MakeLoader] = {
    "own batches": lambda n, batch_size=0, drop_last=False, **how: DataLoader(
        Samples(n),
        batch_sampler=OwnBatches(n),  # type: ignore[arg-type]
        **how,
    ),
    "stream": lambda n, **how: DataLoader(Stream(n), **how),
    "shuffled stream": lambda n, **how: DataLoader(ShuffledStream(n), **how),
    "stateful stream": lambda n, **how: DataLoader(StatefulStream(n), **how),
}
TORCHDATA: dict[str, MakeLoader] = {
    "torchdata, shuffle": lambda n, **how: _torchdata(Samples(n), shuffle=True, **how),
    "torchdata, generator": lambda n, **how: _torchdata(Samples(n), shuffle=True, generator=_generator(), **how),
    "torchdata, stream": lambda n, **how: _torchdata(Stream(n), **how),
    "torchdata, stateful stream": lambda n, **how: _torchdata(StatefulStream(n), **how),
}
LOADERS = SIZED | UNSIZED | TORCHDATA
