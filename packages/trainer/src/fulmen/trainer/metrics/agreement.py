"""Joining logged values over the processes of a run: one collective for all names of a kind."""

import zlib
from typing import Any, Protocol

import torch
from torch import Tensor

from fulmen.trainer.errors import MisconfigurationException
from fulmen.trainer.metrics.accumulator import as_tensor
from fulmen.trainer.metrics.results import Entry


class Reducer(Protocol):
    """What the board asks of the processes of a run together."""

    @property
    def world_size(self) -> int:
        """How many processes there are."""

    def reduce_tensors(self, tensors: list[Tensor], op: str) -> list[Tensor]:
        """Each tensor joined over all processes ("sum", "mean", "min", "max"), in one collective."""

    def reduce(self, tensor: Any, group: Any | None = None, reduce_op: Any = "mean") -> Any:
        """One tensor joined over the processes of a group."""


def in_same_order(entries: list[Entry]) -> list[Entry]:
    """The same order on every process, whatever was logged first there."""
    return sorted(entries, key=lambda entry: (entry.call.hook, entry.plain_name))


def agree_on_names(entries: list[Entry], reducer: Reducer, device: torch.device) -> None:
    """Make sure that every process is about to join the same names.

    Raises:
        MisconfigurationException: They are not, on every process.
    """
    # Without it, processes that logged different names would wait for each other, or add up unlike things.
    names = [entry.plain_name for entry in entries]
    mark = float(zlib.crc32("\n".join(names).encode()) % 2**24)
    ends = reducer.reduce_tensors([torch.tensor(mark, device=device), torch.tensor(-mark, device=device)], "max")
    if ends[0].item() != -ends[1].item():
        raise MisconfigurationException(
            f"self.log(..., sync_dist=True) was called with these names in this epoch on this process: {names},"
            f" and with others on another one. Values are joined name by name, so all processes must log the same."
            f" Log them everywhere, or pass sync_dist=False."
        )


def agree_on_epoch(entries: list[Entry], reducer: Reducer, device: torch.device) -> None:
    """Set the `final` value of each entry: over all batches of all processes."""
    tensors: list[Tensor] = []
    kinds: list[str] = []
    groups: list[Any] = []
    spans: list[slice] = []
    for entry in entries:
        assert entry.accumulator is not None
        parts = entry.accumulator.wide(device)
        spans.append(slice(len(tensors), len(tensors) + len(parts)))
        tensors += parts
        kinds += [entry.accumulator.collective] * len(parts)
        groups += [entry.group] * len(parts)
    joined = _reduce(tensors, kinds, groups, reducer)
    for entry, span in zip(entries, spans, strict=True):
        assert entry.accumulator is not None
        entry.final = entry.accumulator.from_wide(joined[span])


def agree_on_step(entries: list[Entry], reducer: Reducer, device: torch.device) -> None:
    """Replace the `unsent` value of each entry by what all processes have together."""
    tensors = [as_tensor(entry.unsent, device).detach() for entry in entries if entry.unsent is not None]
    kinds = [entry.call.reduction for entry in entries]
    groups = [entry.group for entry in entries]
    for entry, value in zip(entries, _reduce(tensors, kinds, groups, reducer), strict=True):
        entry.unsent = value


def _reduce(tensors: list[Tensor], kinds: list[str], groups: list[Any], reducer: Reducer) -> list[Tensor]:
    joined = list(tensors)
    for kind in dict.fromkeys(kinds):
        fused = [i for i, group in enumerate(groups) if kinds[i] == kind and group is None]
        if fused:
            answers = reducer.reduce_tensors([tensors[i] for i in fused], kind)
            for i, answer in zip(fused, answers, strict=True):
                joined[i] = answer
    for i, group in enumerate(groups):
        if group is not None:
            joined[i] = reducer.reduce(tensors[i], group=group, reduce_op=kinds[i])
    return joined
