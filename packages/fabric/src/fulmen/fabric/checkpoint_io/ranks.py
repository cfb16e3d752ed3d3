"""Work that several processes do together: it goes well on all of them, or all of them raise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch.distributed as dist

from fulmen.fabric.errors import CheckpointError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class _Outcome(Generic[T]):
    """What a step gave on one process, or how it failed there."""

    value: T | None
    failure: str | None = None


class Ranks:
    """The processes of a group, or this one alone where there is no process group.

    Args:
        process_group: None is all processes. Steps that run in a thread need a group of their own.
    """

    def __init__(self, process_group: Any | None = None) -> None:
        self._group = process_group
        self._are_connected = dist.is_available() and dist.is_initialized() and dist.get_world_size(process_group) > 1
        self.rank = dist.get_rank(process_group) if self._are_connected else 0
        self.world_size = dist.get_world_size(process_group) if self._are_connected else 1
        self._zero = 0 if process_group is None or not self._are_connected else dist.get_global_rank(process_group, 0)

    @property
    def is_zero(self) -> bool:
        """Is this the process that decides and commits?"""
        return self.rank == 0

    def each(self, work: Callable[[], T]) -> T:
        """Run `work` on every process; what it gave here, if it went well everywhere.

        Raises:
            CheckpointError: Where it went well, if it failed on another process. Where it failed, its own error.
        """
        value, error = _attempt(work)
        failures: list[str | None] = [None] * self.world_size
        if self._are_connected:
            dist.all_gather_object(failures, _text(error), group=self._group)
        self._raise_first(error, failures)
        return value  # type: ignore[return-value]

    def plan(self, work: Callable[[], T], decide: Callable[[list[T]], list[R]]) -> R:
        """Run `work` on every process, `decide` from all its results on rank 0, and give each process its part.

        Raises:
            CheckpointError: As `each`, also if `decide` fails.
        """
        value, error = _attempt(work)
        here = _Outcome(value, _text(error))
        found: list[Any] = [None] * self.world_size
        if not self._are_connected:
            found = [here]
        else:
            dist.gather_object(here, found if self.is_zero else None, dst=self._zero, group=self._group)
        parts: list[Any] = [None] * self.world_size
        failures: list[str | None] = [None] * self.world_size
        if self.is_zero:
            failures = [outcome.failure for outcome in found]
            if not any(failures):
                decided, error = _attempt(lambda: decide([outcome.value for outcome in found]))
                failures[0] = _text(error)
                parts = parts if decided is None else decided
            parts = [(part, failures) for part in parts]
        if not self._are_connected:
            (mine,) = parts
        else:
            received: list[Any] = [None]
            dist.scatter_object_list(received, parts if self.is_zero else None, src=self._zero, group=self._group)
            (mine,) = received
        part, failures = mine
        self._raise_first(error, failures)
        return part  # type: ignore[no-any-return]

    def on_zero(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 alone; every process gets what it gave.

        Raises:
            CheckpointError: As `each`.
        """
        return self.plan(lambda: None, lambda _: [work()] * self.world_size)

    def _raise_first(self, error: BaseException | None, failures: list[str | None]) -> None:
        if error is not None:
            raise error
        for rank, failure in enumerate(failures):
            if failure is not None:
                raise CheckpointError(f"Rank {rank} of {self.world_size}: {failure}")


def _attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error


def _text(error: Exception | None) -> str | None:
    return None if error is None else f"{type(error).__name__}: {error}"
