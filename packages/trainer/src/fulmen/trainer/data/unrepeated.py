"""Each sample once, over several processes: samplers for evaluation.

Padding, as training does it, would count some samples twice. Shares may differ by one sample, so a loop over them must
not communicate at each step. The class names are the ones that users know.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler

from fulmen.fabric.data.samplers import is_plain_shuffle
from fulmen.fabric.data.worker_seeds import seed_generators
from fulmen.fabric.seeding import isolate_rng


class UnrepeatedDistributedSampler(DistributedSampler[Any]):
    """Every `num_replicas`-th sample, from `rank` on; all processes together have each sample once.

    Args:
        args, kwargs: As for torch's `DistributedSampler`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.total_size = len(self.dataset)  # type: ignore[arg-type]
        self.num_samples = len(range(self.rank, self.total_size, self.num_replicas))

    def __iter__(self) -> Iterator[Any]:
        order: Iterable[int] = range(self.total_size)
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            order = torch.randperm(self.total_size, generator=generator).tolist()
        return iter(list(order)[self.rank :: self.num_replicas])


class UnrepeatedDistributedSamplerWrapper(UnrepeatedDistributedSampler):
    """The same over the order of any sampler, or of any batch sampler.

    The sampler is asked under random numbers that depend on seed and epoch only, so that all processes agree on it.

    Args:
        sampler: Gives the order of all processes together.
        args, kwargs: As for torch's `DistributedSampler`, without the dataset.
    """

    def __init__(self, sampler: Iterable[Any], *args: Any, **kwargs: Any) -> None:
        # Only the length matters; samplers need not be indexable.
        super().__init__(range(len(sampler)), *args, **kwargs)  # type: ignore[arg-type]
        self.sampler = sampler

    def __iter__(self) -> Iterator[Any]:
        with isolate_rng(include_cuda=False):
            seed_generators(self.seed + self.epoch)
            order = list(self.sampler)
        return (order[place] for place in super().__iter__())

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next iteration, for the wrapped sampler too."""
        super().set_epoch(epoch)
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)


def share_without_repeats(loader: DataLoader[Any], *, rank: int, world_size: int, seed: int) -> DataLoader[Any]:
    """A shallow copy of `loader` that reads the share of process `rank`, no sample twice.

    Args:
        loader: Over a map-style dataset, not sharded yet. It is not changed.
        rank, world_size: Which process this is, of how many.
        seed: The same in all processes.
    """
    batches = loader.batch_sampler
    whole = {"num_replicas": world_size, "rank": rank, "seed": seed}
    if batches is not None and type(batches) is not BatchSampler:
        # A batch sampler of the user's own decides which samples go together: its batches are dealt out whole.
        share = UnrepeatedDistributedSamplerWrapper(batches, shuffle=False, **whole)
        return with_samplers(loader, batch_sampler=share)
    sampler: Any = loader.sampler
    shuffles = is_plain_shuffle(sampler)
    if shuffles or type(sampler) is SequentialSampler:
        share_of_samples = UnrepeatedDistributedSampler(sampler.data_source, shuffle=shuffles, **whole)
    else:
        share_of_samples = UnrepeatedDistributedSamplerWrapper(sampler, shuffle=False, **whole)
    return with_samplers(loader, sampler=share_of_samples)


def with_samplers(loader: DataLoader[Any], *, sampler: Any = None, batch_sampler: Any = None) -> DataLoader[Any]:
    """A shallow copy of `loader` with another sampler, or with another batch sampler."""
    view = copy.copy(loader)
    attributes = view.__dict__  # DataLoader forbids to assign these; a copy that nobody iterates yet may have them.
    attributes["_iterator"] = None
    if sampler is not None:
        attributes["sampler"] = sampler
        if loader.batch_sampler is not None:
            batch_sampler = BatchSampler(sampler, loader.batch_size or 1, loader.drop_last)
    if batch_sampler is not None:
        attributes["batch_sampler"] = batch_sampler
    return view
