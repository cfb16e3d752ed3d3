import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset

from fulmen.fabric.data.resumable import ResumableLoader
from fulmen.trainer.data.combine_modes import MODES
from fulmen.trainer.data.combined_loader import CombinedLoader
from fulmen.trainer.data.fetchers import Fetcher
from fulmen.trainer.errors import ConfigurationError

counts = st.integers(0, 8)
limits = counts | st.just(math.inf)


class Unsized:
    """Counts how often it is asked; knows no length."""

    def __init__(self, items):
        self.items = items
        self.asked = 0

    def __iter__(self):
        for item in self.items:
            self.asked += 1
            yield item
        self.asked += 1


class Skipping(list):
    """Leaves out by itself what it is told to, as a view of a loader does."""

    first = 0

    def skip_to(self, batch):
        self.first = batch

    def __iter__(self):
        first, self.first = self.first, 0
        return iter(self[first:])


sources = st.sampled_from([list, Unsized, Skipping, lambda items: ResumableLoader(DataLoader(items, batch_size=None))])


def ends(items, limit):
    return items if math.isinf(limit) else items[: int(limit)]


@given(sources, counts, limits, counts)
def test_a_fetcher_is_a_slice_that_knows_its_last(source, length, limit, start):
    items = list(range(length))
    fetcher = Fetcher(source(items), limit, start=start)
    expected = ends(items, limit)
    for epoch_start in (start, 0):
        seen = [(item, fetcher.count, fetcher.is_last) for item in fetcher]
        assert seen == [(item, item + 1, item == expected[-1]) for item in expected[epoch_start:]]
        assert fetcher.is_last
        assert list(fetcher) == expected
        fetcher = Fetcher(source(items), limit)


@given(sources, counts, limits, st.lists(st.booleans(), min_size=9, max_size=9))
def test_asking_for_the_last_changes_nothing(source, length, limit, asks):
    fetcher = Fetcher(source(list(range(length))), limit)
    seen = []
    for item, ask in zip(fetcher, asks, strict=False):
        seen.append(item)
        if ask:
            assert fetcher.is_last == (item == len(ends(range(length), limit)) - 1)
    assert seen == list(ends(range(length), limit))


@given(sources, counts, limits, st.booleans())
def test_an_end_that_is_known_says_which_batch_is_the_last(source, length, limit, indexed):
    fetcher = Fetcher(source(list(range(length))), limit, indexed=indexed)
    for _ in fetcher:
        known = fetcher.end
        assert known is None or (fetcher.count >= known) == fetcher.is_last
    assert fetcher.end == fetcher.count or fetcher.count == limit


@given(counts, counts)
def test_a_source_is_not_touched_after_its_limit(length, limit):
    source = Unsized(range(length))
    fetcher = Fetcher(source, limit)
    for _ in fetcher:
        assert source.asked == fetcher.count
    assert source.asked <= limit


def test_a_source_that_ends_by_itself_is_brought_to_its_end():
    ended = []

    class Sized(list):
        def __iter__(self):
            yield from super().__iter__()
            ended.append(True)

    assert list(Fetcher(Sized([1, 2]), 2)) == [1, 2]
    assert ended == [True]
    assert list(Fetcher(Sized([1, 2]), 1)) == [1]
    assert ended == [True]


def test_random_numbers_are_drawn_as_in_a_plain_loop():
    class Noise(IterableDataset):
        def __iter__(self):
            for _ in range(4):
                yield torch.rand(())

    def loop(batches):
        torch.manual_seed(0)
        return [(batch.item(), torch.rand(()).item()) for batch in batches]

    def asking(fetcher):
        for batch in fetcher:
            yield batch
            assert fetcher.is_last in (True, False)

    source = DataLoader(Noise())
    assert loop(asking(Fetcher(source))) == loop(source)


def test_a_source_shorter_than_its_length_ends_the_epoch():
    class Liar(list):
        def __len__(self):
            return 5

    fetcher = Fetcher(Liar([1, 2]))
    assert [(item, fetcher.is_last) for item in fetcher] == [(1, False), (2, False)]
    assert fetcher.is_last
    assert fetcher.length == 2


def test_of_a_combined_loader_the_batch_or_all_three():
    together = CombinedLoader({"a": range(2), "b": range(3)}, "max_size")
    assert list(Fetcher(together, 1)) == [{"a": 0, "b": 0}]
    assert list(Fetcher(together, 1, indexed=True)) == [({"a": 0, "b": 0}, 0, 0)]
    in_turn = CombinedLoader([range(2), range(3)], "sequential")
    fetcher = Fetcher(in_turn, [1, 2])
    seen = [(item, fetcher.is_last) for item in fetcher]
    assert seen == [((0, 0, 0), False), ((0, 0, 1), False), ((1, 1, 1), True)]
    assert list(Fetcher([7, 8], start=1, indexed=True)) == [(8, 1, 0)]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.sampled_from(list(MODES)), counts, st.booleans())
def test_a_combined_loader_goes_on_where_it_was(sizes, mode, start, indexed):
    def fetcher(start):
        return Fetcher(CombinedLoader([range(size) for size in sizes], mode), start=start, indexed=indexed)

    whole = list(fetcher(0))
    late = fetcher(start)
    assert list(late) == whole[start:]
    assert list(late) == whole


def test_letting_go_ends_the_iteration():
    fetcher = Fetcher(Unsized([1, 2, 3]))
    assert next(iter(fetcher)) == 1
    assert not fetcher.is_last
    fetcher.close()
    assert next(fetcher, None) is None


@given(counts, limits, st.integers(1, 3), st.sampled_from([list, Unsized]), st.booleans())
def test_a_step_that_fetches_its_batches_gets_them_all_with_their_indices(length, limit, at_once, source, indexed):
    heard = []
    fetcher = Fetcher(source(list(range(length))), limit, indexed=indexed)
    taken = []
    for batches in fetcher.items(lambda *item: heard.append(item)):
        for _ in range(at_once):
            try:
                taken.append(next(batches))
            except StopIteration:
                break
        assert batches.batch == taken[-1][0]
        assert batches.where(False) == (taken[-1][1],)
        assert batches.where(True) == taken[-1][1:]
    assert taken == heard == [(item, item, 0) for item in ends(range(length), limit)]


def test_a_step_that_takes_no_batch_is_refused():
    fetcher = Fetcher([1, 2])
    batches = next(fetcher.items(lambda *item: None))
    next(batches)
    batches.check_taken(0, "Model.training_step")
    with pytest.raises(ConfigurationError, match=r"Model\.training_step\(dataloader_iter\) took no batch"):
        batches.check_taken(1, "Model.training_step")
