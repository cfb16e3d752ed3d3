"""How many samples are in a batch: the weight of its values in the mean of an epoch."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from fulmen.fabric.rank_zero import warn_once
from fulmen.trainer.errors import MisconfigurationException


def extract_batch_size(batch: Any) -> int:
    """The length of the first axis of the first tensor in a nested batch; of a 0-dim tensor, 1.

    Raises:
        MisconfigurationException: There is no tensor in it.
    """
    # The two shapes that nearly all batches have, in half a microsecond.
    kind = batch.__class__
    if kind is Tensor and batch.ndim:
        return int(batch.shape[0])
    if (kind is list or kind is tuple) and len(batch) == 2:
        first, second = batch
        if first.__class__ is Tensor and second.__class__ is Tensor and first.ndim and second.ndim:
            size = first.shape[0]
            if size == second.shape[0]:
                return int(size)
    return _measure(batch)


def _measure(batch: Any) -> int:
    found = None
    for size in _sizes(batch):
        if found is None:
            found = size
        elif size != found:
            warn_once(
                f"The tensors of a batch have different lengths, such as {found} and {size}, so its size is a guess:"
                f" {found}, the first. It is the weight of this batch in means over the epoch."
                f" Pass self.log(..., batch_size=...) to say it."
            )
            break
    if found is None:
        raise MisconfigurationException(
            f"self.log(..., on_epoch=True) needs the size of the batch, and found no tensor in it"
            f" (it is a {type(batch).__name__})."
            f" The mean over the epoch weighs every batch by its number of samples."
            f" Pass self.log(..., batch_size=...)."
        )
    return found


def _sizes(batch: Any) -> Iterator[int]:
    if isinstance(batch, Tensor):
        yield int(batch.shape[0]) if batch.ndim else 1
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _sizes(value)
    elif is_dataclass(batch) and not isinstance(batch, type):
        for field in fields(batch):
            yield from _sizes(getattr(batch, field.name))
    elif isinstance(batch, Iterable) and not isinstance(batch, str | bytes | Iterator):
        for value in batch:
            yield from _sizes(value)
