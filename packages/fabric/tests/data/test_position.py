"""Dealing out, and going on with another number of processes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import count, islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler

from fulmen.fabric.data.position import Position, check_rank, deal, share_length
from fulmen.fabric.errors import ConfigurationError

sizes = st.integers(0, 60)
worlds = st.integers(1, 7)


@given(sizes, worlds, st.booleans())
def test_a_share_is_that_of_torchs_distributed_sampler(size: int, world_size: int, drop_last: bool) -> None:
    for rank in range(world_size):
        theirs: Any = DistributedSampler(range(size), world_size, rank, shuffle=False, drop_last=drop_last)  # type: ignore[arg-type]
        share = list(deal(range(size), rank, world_size, drop_last=drop_last))
        # torch cannot fill up from nothing.
        assert size == 0 or share == list(theirs)
        assert len(share) == share_length(size, rank, world_size, drop_last=drop_last)


@given(sizes, worlds)
def test_every_unit_is_dealt_once_and_the_last_round_is_filled_with_first_ones(size: int, world_size: int) -> None:
    shares = [list(deal(range(size), rank, world_size, drop_last=False)) for rank in range(world_size)]
    in_turn = [unit for round_ in zip(*shares, strict=True) for unit in round_]
    assert in_turn[:size] == list(range(size))
    assert len(in_turn) - size < world_size
    assert set(in_turn[size:]) <= set(range(min(size, world_size)))


@given(sizes, worlds)
def test_without_repeats_every_unit_is_dealt_once(size: int, world_size: int) -> None:
    shares = [list(deal(range(size), rank, world_size, drop_last=False, repeats=False)) for rank in range(world_size)]
    assert sorted(unit for share in shares for unit in share) == list(range(size))
    lengths = [len(share) for share in shares]
    assert lengths == [
        share_length(size, rank, world_size, drop_last=False, repeats=False) for rank in range(world_size)
    ]
    # Who gets one more comes first.
    assert lengths == sorted(lengths, reverse=True)
    assert max(lengths) - min(lengths) <= 1


@given(sizes, worlds, st.booleans(), st.booleans())
def test_an_order_that_is_known_is_dealt_as_one_that_comes_bit_by_bit(
    size: int, world_size: int, drop_last: bool, repeats: bool
) -> None:
    for rank in range(world_size):
        known, drawn = (
            list(deal(units, rank, world_size, drop_last=drop_last, repeats=repeats))
            for units in (list(range(size)), iter(range(size)))
        )
        assert known == drawn


@given(sizes, worlds, st.booleans(), st.booleans(), st.integers(0, 70))
def test_what_is_left_out_is_the_beginning_of_the_share(
    size: int, world_size: int, drop_last: bool, repeats: bool, skip: int
) -> None:
    for rank in range(world_size):
        share = list(deal(range(size), rank, world_size, drop_last=drop_last, repeats=repeats))
        for units in (range(size), iter(range(size))):
            rest = deal(units, rank, world_size, drop_last=drop_last, repeats=repeats, skip=skip)
            assert list(rest) == share[skip:]


def test_an_endless_order_is_read_one_round_ahead_at_most() -> None:
    endless = count()
    assert list(islice(deal(endless, 1, 3, drop_last=False), 2)) == [1, 4]
    assert next(endless) <= 9


@given(st.integers(1, 80), st.lists(st.tuples(worlds, st.integers(1, 4), st.integers(0, 5)), min_size=1, max_size=6))
def test_any_chain_of_runs_visits_every_unit_once(size: int, runs: list[tuple[int, int, int]]) -> None:
    """Each run has another number of processes and batch size, and is stopped after some batches; the last one ends."""
    visited: list[int] = []
    position = Position(0, 0, *runs[0][:2])
    for number, (world_size, batch_size, num_batches) in enumerate(runs):
        position = position.resumed_on(world_size, batch_size)
        left = size - position.units_done
        whole_batches = max(left, 0) // (world_size * batch_size)
        is_last = number == len(runs) - 1
        batches = whole_batches if is_last else min(num_batches, whole_batches)
        order = list(range(size))[position.start :]
        for rank in range(world_size):
            share = list(deal(order, rank, world_size, drop_last=True))
            visited += share[position.batch * batch_size : (position.batch + batches) * batch_size]
        position = Position(position.start, position.batch + batches, world_size, batch_size)
    assert sorted(visited) == list(range(position.units_done))
    assert size - position.units_done < runs[-1][0] * runs[-1][1]


@given(
    st.integers(1, 60),
    st.lists(st.tuples(worlds, st.integers(1, 4), st.integers(0, 5)), min_size=1, max_size=5),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_an_epoch_that_others_began_is_as_long_as_what_is_left_of_it(
    size: int, runs: list[tuple[int, int, int]], drop_last: bool, repeats: bool, whole_batches: bool
) -> None:
    """Every unit comes once, but for the last round: its filling comes twice, or it is left out."""
    position = Position(0, 0, *runs[0][:2])
    seen: Counter[int] = Counter()
    for number, (world_size, batch_size, num_batches) in enumerate(runs):
        position = position.resumed_on(world_size, batch_size)
        order = range(size)[position.start :]
        how: Any = {"drop_last": drop_last, "repeats": repeats}
        given = 0
        for rank in range(world_size):
            share = list(deal(order, rank, world_size, **how))
            batches = [share[at : at + batch_size] for at in range(0, len(share), batch_size)]
            if whole_batches:
                batches = [batch for batch in batches if len(batch) == batch_size]
            assert position.length(size, rank, whole_batches=whole_batches, **how) == position.before + len(batches)
            is_last = number == len(runs) - 1
            taken = batches[position.batch :] if is_last else batches[position.batch : position.batch + num_batches]
            given = max(given, len(taken))
            seen.update(unit for batch in taken for unit in batch)
        before = position.number
        position = replace(position, batch=position.batch + given)
        assert position.number == before + given
    most = max(world_size for world_size, _, _ in runs)
    if not drop_last and not whole_batches:
        assert set(seen) == set(range(size))
    assert sum(count - 1 for count in seen.values()) <= (most - 1 if repeats and not drop_last else 0)


@pytest.mark.parametrize(("rank", "world_size"), [(-1, 2), (2, 2), (0, 0)])
def test_a_rank_that_is_not_there_is_refused(rank: int, world_size: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"rank={rank} with world_size={world_size}"):
        check_rank(rank, world_size)
