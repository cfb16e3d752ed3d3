"""Shares of samplers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from fulmen.fabric.data.samplers import DistributedSamplerWrapper, ShardedSampler
from fulmen.fabric.data.worker_seeds import seed_generators


class Shuffled:
    """An own sampler that shuffles with Python's global generator, when it is asked or while it goes."""

    def __init__(self, size: int, lazily: bool) -> None:
        self.size = size
        self.lazily = lazily

    def __iter__(self) -> Iterator[int]:
        left = list(range(self.size))
        if not self.lazily:
            random.shuffle(left)
            return iter(left)
        return (left.pop(random.randrange(len(left))) for _ in range(self.size))

    def __len__(self) -> int:
        return self.size


SAMPLERS: dict[str, Callable[[int], Any]] = {
    "sequential": lambda size: SequentialSampler(range(size)),
    "shuffle": lambda size: RandomSampler(range(size)),
    "shuffle with a generator": lambda size: RandomSampler(range(size), generator=torch.Generator().manual_seed(3)),
    "subset": lambda size: SubsetRandomSampler(range(size)),
    "own": lambda size: Shuffled(size, lazily=False),
    "own, lazy": lambda size: Shuffled(size, lazily=True),
}


@settings(deadline=None)
@given(
    st.sampled_from(sorted(SAMPLERS)),
    st.integers(1, 40),
    st.integers(1, 5),
    st.integers(0, 3),
    st.integers(0, 100),
    st.booleans(),
)
def test_the_shares_of_n_processes_cover_every_sample_once(
    kind: str, size: int, world_size: int, epoch: int, seed: int, drop_last: bool
) -> None:
    shares = []
    for rank in range(world_size):
        # Each process has drawn other numbers before.
        seed_generators(rank + 1)
        sampler = ShardedSampler(SAMPLERS[kind](size), rank=rank, world_size=world_size, seed=seed, drop_last=drop_last)
        sampler.set_epoch(epoch)
        shares.append(list(sampler))
        assert len(shares[-1]) == len(sampler)
    visits = Counter(sample for share in shares for sample in share)
    if drop_last:
        assert all(times == 1 for times in visits.values())
        assert size - len(visits) < world_size
    else:
        assert set(visits) == set(range(size))
        assert visits.total() - size < world_size


@given(st.integers(1, 40), st.integers(1, 5), st.booleans(), st.booleans())
def test_plain_samplers_give_what_a_hand_written_ddp_loop_sees(
    size: int, world_size: int, shuffle: bool, drop_last: bool
) -> None:
    for rank in range(world_size):
        theirs: Any = DistributedSampler(range(size), world_size, rank, shuffle, seed=7, drop_last=drop_last)  # type: ignore[arg-type]
        plain = RandomSampler(range(size)) if shuffle else SequentialSampler(range(size))
        ours = ShardedSampler(plain, rank=rank, world_size=world_size, seed=7, drop_last=drop_last)
        for epoch in (0, 5):
            theirs.set_epoch(epoch)
            ours.set_epoch(epoch)
            assert list(ours) == list(theirs)
            assert len(ours) == len(theirs)


def test_shuffle_overrides_plain_samplers_only() -> None:
    def order(sampler: object, shuffle: bool | None) -> list[int]:
        return list(ShardedSampler(sampler, rank=0, world_size=1, shuffle=shuffle))  # type: ignore[arg-type]

    assert order(RandomSampler(range(50)), False) == list(range(50))
    assert order(SequentialSampler(range(50)), True) != list(range(50))
    assert order([3, 1, 2], True) == [3, 1, 2]


def test_drawing_the_order_leaves_no_trace_and_draws_another_one_each_epoch() -> None:
    weighted = WeightedRandomSampler([1.0] * 20, 20)
    sampler = ShardedSampler(weighted, rank=0, world_size=2)
    torch.manual_seed(0)
    random.seed(0)
    before = (torch.get_rng_state(), random.getstate())
    orders = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert orders[0] != orders[1]


def test_an_endless_sampler_is_shared_lazily() -> None:
    class Endless:
        def __iter__(self) -> Iterator[int]:
            return iter(lambda: random.randrange(10), None)

    sampler = ShardedSampler(Endless(), rank=1, world_size=2)
    assert len(list(islice(iter(sampler), 30))) == 30
    with pytest.raises(TypeError):
        len(sampler)


def test_an_own_batch_sampler_is_dealt_batch_by_batch() -> None:
    batches = BatchSampler(range(10), 2, drop_last=False)
    assert list(ShardedSampler(batches, rank=1, world_size=2)) == [[2, 3], [6, 7], [0, 1]]


@given(st.sampled_from(sorted(SAMPLERS)), st.integers(0, 40), st.integers(1, 5))
def test_without_repeats_every_sample_is_given_once(kind: str, size: int, world_size: int) -> None:
    if size == 0 and "shuffle" in kind:
        return  # torch makes no such sampler
    seen = []
    for rank in range(world_size):
        sampler = ShardedSampler(SAMPLERS[kind](size), rank=rank, world_size=world_size, repeats=False)
        share = list(sampler)
        assert len(share) == len(sampler)
        seen += share
    assert sorted(seen) == list(range(size))


@given(st.integers(1, 30), st.integers(1, 4), st.booleans(), st.booleans(), st.integers(0, 3))
def test_the_wrapper_reorders_what_its_sampler_gives(
    size: int, world_size: int, shuffle: bool, drop_last: bool, epoch: int
) -> None:
    letters = [f"sample {number}" for number in range(size)]
    for rank in range(world_size):
        whole = (world_size, rank, shuffle, 1, drop_last)
        theirs: Any = DistributedSampler(range(size), *whole)  # type: ignore[arg-type]
        ours = DistributedSamplerWrapper(letters, *whole)
        theirs.set_epoch(epoch)
        ours.set_epoch(epoch)
        assert list(ours) == [letters[index] for index in theirs]
        assert len(ours) == len(theirs)


@given(st.sampled_from(sorted(SAMPLERS)), st.integers(1, 40), st.integers(1, 5), st.integers(0, 3))
def test_processes_agree_on_what_the_wrapped_sampler_gives(kind: str, size: int, world_size: int, epoch: int) -> None:
    shares = []
    for rank in range(world_size):
        seed_generators(rank + 1)  # each process has drawn other numbers before
        sampler = DistributedSamplerWrapper(SAMPLERS[kind](size), num_replicas=world_size, rank=rank, shuffle=False)
        sampler.set_epoch(epoch)
        shares.append(list(sampler))
    assert {sample for share in shares for sample in share} == set(range(size))
    assert len({len(share) for share in shares}) == 1


def test_the_wrapper_deals_out_what_has_no_end_and_tells_the_epoch() -> None:
    class Endless:
        epoch = 0

        def __iter__(self) -> Iterator[int]:
            return iter(lambda: self.epoch, None)

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    sampler = DistributedSamplerWrapper(Endless(), num_replicas=2, rank=1)
    sampler.set_epoch(7)
    assert list(islice(iter(sampler), 3)) == [7, 7, 7]
    with pytest.raises(TypeError):
        len(sampler)
