"""Loaders of unknown length that take turns go on where they were, also behind an item that was looked at early."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.fabric.data.resumable import ResumableLoader
from fulmen.trainer.data.combined_loader import CombinedLoader
from fulmen.trainer.data.members import Mark, Members
from fulmen.trainer.data.sources import PreparedLoaders


class Plain:
    """So many numbers, without a length and without a state."""

    def __init__(self, size):
        self.size = size

    def __iter__(self):
        return iter(range(self.size))


def combined(sizes, mode):
    views = [ResumableLoader(Plain(size)) for size in sizes]
    loader = CombinedLoader(list(range(len(sizes))), mode)
    loader.flattened = views
    return PreparedLoaders(loader, views)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.sampled_from(["min_size", "max_size", "max_size_cycle"]),
    st.integers(0, 8),
    st.integers(0, 1),
)
def test_what_is_left_comes_in_the_same_order(sizes, mode, stop, ahead):
    whole = list(combined(sizes, mode).loader)
    before = combined(sizes, mode)
    items = iter(before.loader)
    for _ in range(stop + ahead):
        next(items, None)
    stop = min(stop, len(whole))
    after = combined(sizes, mode)
    after.load_state_dict(before.state_dict())
    after.loader.skip_to(stop)
    assert list(after.loader) == whole[stop:]


def test_marks_of_the_two_newest_items_are_kept():
    members = Members([[1, 2], [3]])
    iterators = [iter(member) for member in members.members]
    for given_ in (1, 2):
        next(iterators[0], None)
        next(iterators[1], None)
        members.note(given_)
    assert members.state_dict() == [
        [1, [list(Mark(1, 1, False)), list(Mark(1, 1, False))]],
        [2, [list(Mark(1, 2, False)), list(Mark(1, 1, True))]],
    ]


@pytest.mark.parametrize("given_", [0, 7])
def test_an_item_that_nobody_marked_is_gone_to_by_reading(given_):
    prepared = combined([3, 5], "max_size_cycle")
    prepared.loader.keep_rounds(given_, [])
    prepared.loader.skip_to(4)
    assert [batches for batches, *_ in prepared.loader] == [[1, 4]]
