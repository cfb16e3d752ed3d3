"""How long is this loader, if it knows; and two more questions to a loader before it runs."""

from __future__ import annotations

import os
from collections.abc import Sized
from typing import TypeGuard

from torch.utils.data import DataLoader, IterableDataset

from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.rank_zero import rank_zero_warn


def sized_len(dataloader: object) -> int | None:
    """`len(dataloader)`, or None if it has no length or does not know it yet."""
    try:
        return len(dataloader)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None


def has_len(dataloader: object) -> TypeGuard[Sized]:
    """Does it know its length? Warns if that is 0."""
    length = sized_len(dataloader)
    if length == 0:
        rank_zero_warn(
            f"This {type(dataloader).__name__} has length 0: nothing will be read from it. Its dataset is empty, or"
            " smaller than one batch while drop_last=True. Give it more samples, or a smaller batch size."
        )
    return length is not None


def has_iterable_dataset(dataloader: object) -> bool:
    """Is it a loader over a dataset that is read in one order only?"""
    return isinstance(getattr(dataloader, "dataset", None), IterableDataset)


def suggested_max_num_workers(local_world_size: int) -> int:
    """How many workers each of `local_world_size` processes on this machine may start before they slow each other.

    Raises:
        ConfigurationError: If `local_world_size` is below 1.
    """
    if local_world_size < 1:
        raise ConfigurationError(
            f"suggested_max_num_workers({local_world_size}) asks for less than one process. The processor cores are"
            " divided among the processes of this machine. Pass a number of at least 1."
        )
    affinity = getattr(os, "sched_getaffinity", None)
    num_cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    # One core stays with the process that trains.
    return max(1, num_cores // local_world_size - 1)


def is_map_loader(dataloader: object) -> TypeGuard[DataLoader[object]]:
    """Is it torch's DataLoader over a dataset that is read by index?"""
    return isinstance(dataloader, DataLoader) and not isinstance(dataloader.dataset, IterableDataset)
