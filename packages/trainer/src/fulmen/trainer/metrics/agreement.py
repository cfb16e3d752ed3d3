"""Joining logged values over the processes of a run: one collective, whatever was logged where.

Every process sends the same number of numbers first: a mark that stands for the names it is about to join, and as many
of their values as there is room for. So nobody waits for a name that others do not have: all see that the marks differ,
and all raise the same error. What does not fit follows in a second message, once it is known to be alike.
"""

import zlib
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from fulmen.trainer.errors import MisconfigurationException
from fulmen.trainer.metrics.accumulator import wide_dtype
from fulmen.trainer.metrics.results import Entry

T = TypeVar("T")

_HEAD = 5  # the mark in two halves, which float32 holds exactly; numbers of values and of bytes; is it whole?
_ROOM = 256 - _HEAD  # for values in the first message: two kilobytes, which cost no more than one number


class Reducer(Protocol):
    """What the board asks of the processes of a run together."""

    @property
    def world_size(self) -> int:
        """How many processes there are."""

    @property
    def distinct_ranks(self) -> list[int] | None:
        """The processes whose values count, where some see the same data as others; None: all."""

    def all_gather(self, tensor: Tensor, group: Any | None = None, sync_grads: bool = False) -> Tensor:
        """The tensors of all processes, of one shape, on a new first axis."""

    def gather_objects(self, obj: T) -> list[T]:
        """The objects of all processes, by rank."""

    def reduce(self, tensor: Any, group: Any | None = None, reduce_op: Any = "mean") -> Any:
        """One tensor joined over the processes of a group."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one name brings: `values` are 0-dim tensors that are joined by `kind`; none if only the name must agree."""

    name: str
    hook: str
    kind: str
    values: Sequence[Tensor] = ()

    @property
    def text(self) -> str:
        """How it is told apart, and how messages call it."""
        return f"{self.name!r} ({self.kind}, in {self.hook})"


def in_same_order(entries: Sequence[Entry]) -> list[Entry]:
    """The same order on every process, whatever was logged first there."""
    return sorted(entries, key=lambda entry: (entry.call.hook, entry.plain_name))


def join(
    parts: Sequence[Part], reducer: Reducer, device: torch.device, *, is_whole: bool = True
) -> list[list[Tensor]] | None:
    """Join parts over all processes, each of which must call it, in one collective unless they are very many.

    Args:
        parts: In the same order on every process.
        reducer: The processes.
        device: Where the collective works.
        is_whole: False for a process that cannot have all parts, because it saw no batch of some loader.

    Returns:
        For each part its values joined; None if a process is not whole: then nothing is joined yet.

    Raises:
        MisconfigurationException: Processes have different names. Raised on every process.
    """
    names = "\n".join(part.text for part in parts).encode()
    values = [value for part in parts for value in part.values]
    mark = zlib.crc32(names)
    head = [mark >> 16, mark & 0xFFFF, len(values), len(names), float(is_whole)]
    message = torch.zeros(_HEAD + _ROOM, dtype=wide_dtype(device))
    message[:_HEAD] = torch.tensor(head, dtype=message.dtype)
    message = message.to(device)
    flat = torch.stack([value.detach().to(device, message.dtype).reshape(()) for value in values]) if values else None
    if flat is not None:
        message[_HEAD : _HEAD + min(len(values), _ROOM)] = flat[:_ROOM]
    gathered = reducer.all_gather(message)
    heads = gathered[:, :_HEAD].tolist()
    if not all(one[4] for one in heads):
        return None
    if any(one != heads[0] for one in heads):
        told = reducer.gather_objects([part.text for part in parts])
        everybody = set(range(len(told)))
        raise MisconfigurationException(disagreement({text: everybody for one in told for text in one}, told))
    if flat is None:
        return [[] for _ in parts]
    rows = gathered[:, _HEAD : _HEAD + len(values)]
    if len(values) > _ROOM:
        rows = torch.cat([rows, reducer.all_gather(flat[_ROOM:])], dim=1)
    distinct = reducer.distinct_ranks
    return _reduced(rows if distinct is None else rows[distinct], parts)


def _reduced(rows: Tensor, parts: Sequence[Part]) -> list[list[Tensor]]:
    """`rows` (processes, values), each column reduced as its part says."""
    by_kind = {
        "sum": lambda: rows.sum(0),
        "mean": lambda: rows.mean(0),
        "min": lambda: rows.amin(0),
        "max": lambda: rows.amax(0),
    }
    columns = {kind: by_kind[kind]().unbind() for kind in {part.kind for part in parts if part.values}}
    found: list[list[Tensor]] = []
    place = 0
    for part in parts:
        count = len(part.values)
        found.append(list(columns[part.kind][place : place + count]) if count else [])
        place += count
    return found


def disagreement(expected: Mapping[str, AbstractSet[int]], told: Sequence[Collection[str]]) -> str:
    """The message that says which process logged what the others did not.

    Args:
        expected: For each name, the ranks that should have logged it.
        told: The names of each rank.
    """
    apart = []
    for text, ranks in expected.items():
        has = sorted(rank for rank in ranks if text in told[rank])
        if len(has) < len(ranks):
            apart.append(f"{text} on rank {_ranks(has)} and not on rank {_ranks(sorted(ranks - set(has)))}")
    more = f", and {len(apart) - 3} more" if len(apart) > 3 else ""
    return (
        f"self.log(..., sync_dist=True), or a metric object, was logged differently: {'; '.join(apart[:3])}{more}."
        " Values are joined name by name, so all processes must log the same."
        " Log them everywhere, or pass sync_dist=False."
    )


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:4]))
    return f"{shown}, ..." if len(ranks) > 4 else shown
