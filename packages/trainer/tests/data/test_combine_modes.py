import math
from itertools import cycle, islice, zip_longest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.trainer.data.combine_modes import MODES, check_mode, combined_length
from fulmen.trainer.errors import ConfigurationError

iterables = st.lists(st.lists(st.integers(), max_size=6), max_size=4)


@st.composite
def limited(draw):
    some = draw(iterables)
    limits = [draw(st.integers(0, 7) | st.just(math.inf)) for _ in some]
    return some, limits


def cut(some, limits):
    return [
        iterable if math.isinf(limit) else iterable[: int(limit)] for iterable, limit in zip(some, limits, strict=True)
    ]


def expected(mode, some):
    """What itertools makes of lists that are cut already."""
    if mode == "sequential":
        return [(item, place, index) for index, iterable in enumerate(some) for place, item in enumerate(iterable)]
    if mode == "min_size":
        items = zip(*some, strict=False)
    elif mode == "max_size":
        items = zip_longest(*some)
    else:
        longest = max(map(len, some), default=0) if all(some) else 0
        items = islice(zip(*map(cycle, some), strict=False), longest)
    return [(list(item), place, 0) for place, item in enumerate(items)]


@given(limited(), st.sampled_from(list(MODES)))
def test_modes_are_those_of_itertools(case, mode):
    some, limits = case
    assert list(MODES[mode](some, limits)) == expected(mode, cut(some, limits))


@given(limited(), st.sampled_from(list(MODES)))
def test_the_length_is_how_many_come(case, mode):
    some, limits = case
    assert combined_length(mode, list(map(len, some)), limits) == len(list(MODES[mode](some, limits)))


@given(limited(), st.sampled_from(list(MODES)), st.data())
def test_an_unknown_length_is_unknown_or_right(case, mode, data):
    some, limits = case
    lengths = [data.draw(st.sampled_from([len(iterable), None])) for iterable in some]
    length = combined_length(mode, lengths, limits)
    assert length is None or length == len(list(MODES[mode](some, limits)))


@given(iterables, st.integers(0, 6))
def test_a_cycle_goes_on_where_it_stopped(some, start):
    whole = expected("max_size_cycle", some)
    if not 0 < start < len(whole):
        return

    class Entered(list):
        """Begins in the middle the first time, as a loader that was told to."""

        entered = False

        def __iter__(self):
            first, self.entered = not self.entered, True
            return islice(super().__iter__(), start % len(self) if first else 0, None)

    no_limits = [math.inf] * len(some)
    ended = [start >= len(iterable) for iterable in some]
    rest = MODES["max_size_cycle"]([Entered(iterable) for iterable in some], no_limits, ended=ended, first_idx=start)
    assert list(rest) == whole[start:]


@given(iterables, st.data())
def test_a_sequence_goes_on_where_it_stopped(some, data):
    whole = expected("sequential", some)
    if not whole:
        return
    place = data.draw(st.integers(0, len(whole) - 1))
    _, batch, index = whole[place]
    entered = [iter(islice(iterable, batch if at == index else 0, None)) for at, iterable in enumerate(some)]
    assert list(MODES["sequential"](entered, [math.inf] * len(some), first=(index, batch))) == whole[place:]


def test_what_is_not_needed_is_not_touched():
    class Untouchable:
        def __iter__(self):
            raise AssertionError("touched")

    assert list(MODES["sequential"]([[1], Untouchable()], [1, 0])) == [(1, 0, 0)]
    assert list(MODES["min_size"]([[1], Untouchable()], [1, 0])) == []


def test_the_longest_ends_a_cycle_before_others_begin_anew():
    begun = []

    class Counted(list):
        def __iter__(self):
            begun.append(len(self))
            return super().__iter__()

    list(MODES["max_size_cycle"]([Counted([1, 2]), Counted([1, 2, 3, 4])], [math.inf] * 2))
    assert sorted(begun) == [2, 2, 4]


@pytest.mark.parametrize("mode", ["foo", None, 3, ["min_size"]])
def test_an_unknown_mode_is_refused(mode):
    with pytest.raises(ConfigurationError, match="'min_size', 'max_size_cycle', 'max_size', 'sequential'"):
        check_mode(mode)
