"""Random numbers in workers that do not depend on which worker makes a batch, or on what it made before.

Each thing that a worker is asked for takes a seed with it, and whether it stays at a signal. What is read by index gets
one for each batch; of a dataset that is read in one order, each worker has a part of its own, and counts what it has
made of it.
"""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeAlias

import torch
from torch.utils.data import Sampler, get_worker_info

from fulmen.fabric.data.parts import keeps_state
from fulmen.fabric.data.worker_signals import stay, workers_stay
from fulmen.fabric.seeding import derive_seed

_NUMBER = "number_of_batches"


def seed_generators(seed: int) -> None:
    """Seed torch (on the CPU), Python and, if it is loaded, numpy."""
    # `torch.manual_seed` would also seed the GPUs, whose streams are the training's.
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed([seed & 0xFFFFFFFF, seed >> 32])


def seed_of_batch(seed: int, epoch: int, start: int, world_size: int, rank: int, batch: int) -> int:
    """The seed for one batch of one process, in an epoch that was dealt out anew at unit `start`."""
    return derive_seed(seed, epoch, start, batch * world_size + rank)


class SeededIndices:
    """Indices on their way to a worker: the plain indices arrive there, and the worker's generators are seeded.

    So a batch's random numbers (also those of `collate_fn`) do not depend on which worker makes it, or on what that
    worker made before; and the worker sees the user's own dataset and `collate_fn`.
    """

    __slots__ = ("indices", "seed")

    def __init__(self, indices: Any, seed: int) -> None:
        self.indices = indices
        self.seed = seed

    def __reduce__(self) -> tuple[Callable[[Any, int, bool], Any], tuple[Any, int, bool]]:
        # A worker unpickles one batch of indices right before it fetches it, in the same thread.
        return _seed_and_unwrap, (self.indices, self.seed, workers_stay())


def _seed_and_unwrap(indices: Any, seed: int, stays: bool) -> Any:
    if stays:
        stay()
    seed_generators(seed)
    return indices


@dataclass(frozen=True, slots=True)
class StreamSeeds:
    """The seeds for one iteration over a dataset that is read in one order.

    Which worker gets the n-th request depends on time, once one of them has ended: each counts its own.

    Args:
        seed: Of this iteration, in this process.
        done: How many batches each worker had given before, if it goes on.
        iteration: Tells iterations apart: workers may live for several.
    """

    seed: int
    done: dict[int, int] = field(default_factory=dict)
    iteration: int = field(default_factory=count().__next__)

    def wrap(self, request: Any, number: int) -> Any:
        """The request as it is sent to a worker."""
        return _StreamRequest(request, self)


@dataclass(frozen=True, slots=True)
class BatchSeeds:
    """The seeds for one iteration over what is read by index.

    Args:
        seed_of: Gives the seed of the batch of that number.
    """

    seed_of: Callable[[int], int]

    def wrap(self, request: Any, number: int) -> Any:
        """The request as it is sent to a worker."""
        return SeededIndices(request, self.seed_of(number))


Seeds: TypeAlias = StreamSeeds | BatchSeeds


class _StreamRequest:
    __slots__ = ("request", "seeds")

    def __init__(self, request: Any, seeds: StreamSeeds) -> None:
        self.request = request
        self.seeds = seeds

    def __reduce__(self) -> tuple[Callable[[Any, StreamSeeds, bool], Any], tuple[Any, StreamSeeds, bool]]:
        return _seed_next, (self.request, self.seeds, workers_stay())


# In a worker: the iteration that it works for, and how many batches of it it was asked for.
_asked: tuple[int, int] = (-1, 0)


def _seed_next(request: Any, seeds: StreamSeeds, stays: bool) -> Any:
    global _asked
    if stays:
        stay()
    worker = get_worker_info()
    number = 0 if worker is None else worker.id
    iteration, asked = _asked
    if iteration != seeds.iteration:
        asked = seeds.done.get(number, 0)
    seed_generators(derive_seed(seeds.seed, number, asked))
    _asked = (seeds.iteration, asked + 1)
    return request


class SeededRequests(Sampler[Any]):
    """What a loader asks its workers for, each with a seed; else it is as what it wraps.

    Args:
        requests: The batch sampler; or the sampler, where the loader does not batch.
    """

    def __init__(self, requests: Iterable[Any]) -> None:
        self.requests = requests
        self.upcoming: Seeds | None = None
        """For the next iteration; None leaves requests as they are."""
        self.passes_over = 0
        """So often somebody begins and reads nothing: no order is drawn for that."""

    @staticmethod
    def of(requests: Any) -> SeededRequests:
        """Keeping a state of its own if `requests` does."""
        return (_StatefulRequests if keeps_state(requests) else SeededRequests)(requests)

    def __iter__(self) -> Iterator[Any]:
        if self.passes_over:
            self.passes_over -= 1
            return iter(())
        inner = iter(self.requests)
        if self.upcoming is None:
            return inner
        return (_StatefulWalk if keeps_state(inner) else _Walk)(inner, self.upcoming)

    def __len__(self) -> int:
        return len(self.requests)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name == "requests":  # not there yet while this is being copied
            raise AttributeError(name)
        return getattr(self.requests, name)


class _StatefulRequests(SeededRequests):
    def state_dict(self) -> Any:
        return self.requests.state_dict()  # type: ignore[attr-defined]

    def load_state_dict(self, state: Any) -> None:
        self.requests.load_state_dict(state)  # type: ignore[attr-defined]


class _Walk(Iterator[Any]):
    def __init__(self, inner: Iterator[Any], seeds: Seeds) -> None:
        self.inner = inner
        self.number = 0
        self._wrap = seeds.wrap

    def __next__(self) -> Any:
        request = self._wrap(next(self.inner), self.number)
        self.number += 1
        return request


class _StatefulWalk(_Walk):
    def state_dict(self) -> Any:
        state = self.inner.state_dict()  # type: ignore[attr-defined]
        return {**state, _NUMBER: self.number}

    def load_state_dict(self, state: Any) -> None:
        self.number = state.get(_NUMBER, 0)
        self.inner.load_state_dict(  # type: ignore[attr-defined]
            {name: value for name, value in state.items() if name != _NUMBER}
        )


def reads_again(state: Any) -> bool:
    """Does torchdata, from this state of its loader, read the batches of the epoch again? Then its data keeps none."""
    workers = state.get("_snapshot", {}).get("_worker_snapshots", {}) if isinstance(state, dict) else {}
    for worker in workers.values():
        stream = worker.get("fetcher_state") or {}
        return worker.get("dataset_state") is None and stream.get("dataset_iter_state") is None
    return False


class Givers:
    """How many batches of an iteration each worker has given.

    Args:
        every: A state of the loader is taken after every so many batches; 0: only before the first.
        counts: By the number of the worker.
        recent: Which ones gave the last batches, as many as can follow such a state.
    """

    def __init__(self, every: int = 1, counts: dict[int, int] | None = None, recent: Iterable[int] = ()) -> None:
        self.every = every
        self.counts = dict(counts or {})
        self.recent: deque[int] = deque(recent, maxlen=every or None)
        self.read_again = False
        """Do the workers go on by reading what they had given from the start?"""

    def note(self, batches: Iterator[Any], giver: Callable[[], int | None]) -> Iterator[Any]:
        """The same batches; each is counted for the worker that `giver` names when it has come."""
        for batch in batches:
            if (worker := giver()) is not None:
                self.counts[worker] = self.counts.get(worker, 0) + 1
                self.recent.append(worker)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {"every": self.every, "counts": dict(self.counts), "recent": list(self.recent)}

    def at_state(self, given: int) -> dict[int, int]:
        """The counts when the newest state was taken, if `given` batches have come since the beginning."""
        if self.read_again:
            return {}
        since = given % self.every if self.every else given
        counts = dict(self.counts)
        for worker in list(self.recent)[len(self.recent) - since :] if since else ():
            counts[worker] -= 1
        return counts
