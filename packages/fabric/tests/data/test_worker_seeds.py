"""What workers draw is what they would have drawn, wherever a run was stopped."""

import io
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from fulmen.fabric.data.resumable import ResumableLoader
from fulmen.fabric.data.worker_seeds import Givers, SeededRequests, StreamSeeds
from fulmen.fabric.seeding import collect_rng_state, restore_rng_state

pytestmark = pytest.mark.filterwarnings("ignore")
SIZE = 11
NUM_EPOCHS = 3


def augmented(index: int) -> Tensor:
    """By every generator that people use in workers."""
    return torch.tensor([index, torch.rand(()).item(), random.random(), numpy.random.rand()], dtype=torch.double)


class Samples(Dataset[Any]):
    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Tensor:
        return augmented(index)


class Stream(IterableDataset[Any]):
    """The first worker has twice as much as the second: it goes on alone."""

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        for index in range(SIZE):
            if worker is None or (index % 3 == 0) == (worker.id == 1):
                yield augmented(index)


class StatefulStream(Stream):
    def __init__(self) -> None:
        self.done = self.skip = 0

    def __iter__(self) -> Iterator[Any]:
        self.done, self.skip = self.skip, 0
        worker = get_worker_info()
        own = [i for i in range(SIZE) if worker is None or (i % 3 == 0) == (worker.id == 1)]
        while self.done < len(own):
            self.done += 1
            yield augmented(own[self.done - 1])

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.done = self.skip = state["done"]


def torchdata(data: Any, **how: Any) -> Any:
    return pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader(data, **how)


MAKE: dict[str, Callable[..., Any]] = {
    "stream": lambda **how: DataLoader(Stream(), **how),
    "stream, not batched": lambda **how: DataLoader(Stream(), **{**how, "batch_size": None}),
    "torchdata, shuffle": lambda **how: torchdata(Samples(), shuffle=True, **how),
    "torchdata, stream": lambda **how: torchdata(Stream(), **how),
    "torchdata, stateful stream": lambda **how: torchdata(StatefulStream(), **how),
    "torchdata, every third state": lambda **how: torchdata(StatefulStream(), snapshot_every_n_steps=3, **how),
}


class Run:
    """A loop that counts epochs and batches, draws random numbers, saves and goes on."""

    def __init__(self, make: Callable[[], Any], seed: int = 1) -> None:
        torch.manual_seed(seed)  # before: torchdata's sampler draws a seed when it is made
        random.seed(seed)
        self.view = ResumableLoader(make(), seed=5)
        self.epoch = self.batch = 0
        self.read: list[Any] = []

    def go(self, stop: int | None = None, num_epochs: int = NUM_EPOCHS) -> None:
        while self.epoch < num_epochs:
            self.view.set_epoch(self.epoch)
            for batch in self.view:
                self.batch += 1
                self.read.append(batch.tolist())
                torch.rand(3)
                if stop is not None and len(self.read) == stop:
                    return
            self.epoch, self.batch = self.epoch + 1, 0

    def save(self) -> io.BytesIO:
        file = io.BytesIO()
        counts = [self.epoch, self.batch]
        state = {"view": self.view.state_dict(), "rng": collect_rng_state(), "counts": counts, "read": self.read}
        torch.save(state, file)
        file.seek(0)
        return file

    def resume(self, file: io.BytesIO) -> None:
        state = torch.load(file, weights_only=True)
        self.view.load_state_dict(state["view"])
        self.epoch, self.batch = state["counts"]
        self.view.set_epoch(self.epoch)
        self.view.skip_to(self.batch)
        self.read = state["read"]
        restore_rng_state(state["rng"])


@pytest.mark.parametrize("keeps_workers", [False, True])
@pytest.mark.parametrize("kind", MAKE)
def test_workers_draw_what_they_would_have_drawn(kind: str, keeps_workers: bool) -> None:
    how = {"batch_size": 2, "num_workers": 2, "persistent_workers": keeps_workers, "multiprocessing_context": "fork"}
    make = partial(MAKE[kind], **how)
    whole = Run(make)
    whole.go()
    per_epoch = len(whole.read) // NUM_EPOCHS
    # In the first epoch; in the second, when the second worker has nothing left; at its last batch; and behind it.
    for stop, num_epochs in ((2, 1), (2 * per_epoch - 1, 2), (2 * per_epoch, 2), (None, 2)):
        first = Run(make)
        first.go(stop, num_epochs)
        second = Run(make, seed=77)
        second.resume(first.save())
        second.go()
        assert second.read == whole.read, stop
    draws = [sample[1] for batch in whole.read for sample in (batch if isinstance(batch[0], list) else [batch])]
    assert len({*draws}) == NUM_EPOCHS * SIZE


@given(st.lists(st.integers(0, 2), max_size=20), st.integers(0, 4))
def test_who_had_given_what_when_the_newest_state_was_taken(givers: list[int], every: int) -> None:
    expected = Givers(every)
    counted = Givers(every)
    for worker in givers:
        current = [worker]
        list(counted.note(iter("b"), lambda current=current: current[0]))
    state_at = len(givers) - len(givers) % every if every else 0
    list(expected.note(iter("b" * state_at), iter(givers).__next__))
    went_on = Givers(**counted.state_dict())
    assert {w: n for w, n in went_on.at_state(len(givers)).items() if n} == expected.counts


def test_requests_are_as_before_without_seeds_and_know_their_length() -> None:
    requests = SeededRequests.of([[1, 2], [3]])
    assert list(requests) == [[1, 2], [3]]
    assert len(requests) == 2
    requests.upcoming = StreamSeeds(1)
    assert len(list(requests)) == 2
    assert requests.upcoming.iteration != StreamSeeds(1).iteration
