"""Threads stand for processes: they share nothing but a store, and step together as gradients make processes do."""

import random
import threading
import time

import pytest
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.trainer.errors import InterruptedBySignal
from fulmen.trainer.run.signals import Signals

SIGTERM = 15


@pytest.fixture(scope="module")
def shared_store():
    return dist.TCPStore("127.0.0.1", 0, 1, True, wait_for_workers=False)


class Process:
    """Trains in step with the others, and evaluates in between, each at its own pace."""

    def __init__(self, rank, store, world_size, together, seed, *, passes):
        self.signals, self.rank, self.together = Signals(), rank, together
        self.signals.stop_with_others(store, rank, world_size)
        self.pace, self.passes = random.Random(seed * 100 + rank), passes
        self.done = []
        self.thread = threading.Thread(target=self.run)

    def run(self):
        try:
            for batch in range(100_000):
                self.signals.begin_next()
                self.together.wait(timeout=150)  # all-reduce
                self.rest()
                self.done.append(f"batch {batch}")
                if self.passes and batch % 3 == 2:
                    self.evaluate(batch)
        except InterruptedBySignal:
            pass

    def evaluate(self, batch):
        self.signals.begin_next()
        for _ in range(self.pace.randrange(1, 8)):  # nothing in common while they evaluate
            self.rest()
            if self.signals.caught:
                self.signals.stop_if_due(self.signals.place)
        self.signals.begin_next()
        self.together.wait(timeout=150)  # the means of all
        self.done.append(f"pass after {batch}")

    def rest(self):
        time.sleep(self.pace.random() * 0.004)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    world_size=st.integers(2, 4),
    asked=st.sets(st.integers(0, 3), min_size=1),
    passes=st.booleans(),
)
def test_all_stop_at_the_same_place_whoever_was_asked(shared_store, seed, world_size, asked, passes):
    store = dist.PrefixStore(f"{seed}{world_size}{sorted(asked)}{passes}{time.monotonic_ns()}", shared_store)
    together = threading.Barrier(world_size)
    processes = [Process(rank, store, world_size, together, seed, passes=passes) for rank in range(world_size)]
    for process in processes:
        process.thread.start()
    time.sleep(random.Random(seed).random() * 0.1)
    for rank in {rank % world_size for rank in asked}:
        processes[rank].signals._hear(SIGTERM)
    for process in processes:
        process.thread.join(timeout=150)
        process.signals._close()
    assert not any(process.thread.is_alive() for process in processes)
    assert not together.broken, "one waited for another that had stopped"
    assert all(process.signals.stopped for process in processes)
    assert len({tuple(process.done) for process in processes}) == 1
    assert len(processes[0].done) < 50_000


def test_without_a_signal_nobody_stops(shared_store):
    signals = Signals()
    signals.stop_with_others(dist.PrefixStore(f"{time.monotonic_ns()}", shared_store), 0, 2)
    time.sleep(0.3)
    signals.begin_next()
    signals._close()
    assert not signals.caught


def test_who_gets_no_answer_stops_where_it_is(shared_store, monkeypatch):
    monkeypatch.setattr("fulmen.trainer.run.common_stop._ANSWER_WITHIN_S", 0.3)
    signals = Signals()
    signals.stop_with_others(dist.PrefixStore(f"{time.monotonic_ns()}", shared_store), 0, 2)
    signals._hear(SIGTERM)
    while not signals.caught:
        time.sleep(0.01)
    with pytest.raises(InterruptedBySignal):
        signals.begin_next()
    signals._close()
