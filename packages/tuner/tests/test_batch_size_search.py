import math

from hypothesis import given
from hypothesis import strategies as st

from fulmen.tuner.batch_size_search import BatchSizeSearch

SIZES = st.integers(1, 10_000)


def searched(search: BatchSizeSearch, limit: int, num_samples: int | None = None) -> tuple[BatchSizeSearch, list[int]]:
    tried = []
    while (size := search.next_size) is not None:
        tried.append(size)
        search = search.after(size, fits=size <= limit)
        if num_samples is not None:
            search = search.below(num_samples)
    return search, tried


@given(SIZES, SIZES, st.integers(0, 20_000), st.booleans(), st.none() | SIZES)
def test_every_search_ends_soon_repeats_nothing_and_finds_what_fits(initial, ceiling, limit, bisects, num_samples):
    search, tried = searched(BatchSizeSearch(min(initial, ceiling), ceiling, bisects, 1000), limit, num_samples)
    assert len(set(tried)) == len(tried)
    assert len(tried) <= math.log2(ceiling) + (math.log2(math.log2(ceiling) + 1) + 3 if bisects else 2)
    assert search.trials == tuple((size, size <= limit) for size in tried)
    assert all(1 <= size <= ceiling for size in tried)
    found = search.result()
    assert (found is None) == (limit == 0)
    assert found is None or 1 <= found <= min(limit, ceiling, num_samples or ceiling)


@given(SIZES, SIZES, st.integers(1, 20_000), SIZES)
def test_bisecting_finds_the_limit_exactly(initial, ceiling, limit, num_samples):
    search, _ = searched(BatchSizeSearch(min(initial, ceiling), ceiling, True, 1000), limit, num_samples)
    assert search.result() == min(limit, ceiling, num_samples)


@given(st.integers(1, 8192), st.integers(1, 10_000))
def test_among_8192_sizes_the_limit_is_found_in_19_trials(initial, limit):
    search, tried = searched(BatchSizeSearch(initial, 8192, True), limit)
    assert search.result() == min(limit, 8192)
    assert len(tried) <= math.log2(8192) + 6


def test_the_way_to_a_limit():
    assert searched(BatchSizeSearch(2, 8192, True), 21)[1] == [2, 128, 16, 32, 24, 20, 22, 21]
    assert searched(BatchSizeSearch(2, 8192, True), 10_000)[1] == [2, 128, 1024, 4096, 8192]
    assert searched(BatchSizeSearch(16, 8192, True), 5)[1] == [16, 8, 4, 6, 5]
    assert searched(BatchSizeSearch(2, 8192), 21)[1] == [2, 4, 8, 16, 32]


@given(st.integers(0, 8), st.integers(1, 20_000))
def test_doubling_finds_the_largest_power_of_two(exponent, limit):
    search, _ = searched(BatchSizeSearch(2**exponent, 2**20), limit)
    assert search.result() == 2 ** int(math.log2(limit))


@given(SIZES, st.integers(1, 20_000), st.integers(1, 30), st.booleans())
def test_no_more_trials_than_allowed(initial, limit, max_trials, bisects):
    search, tried = searched(BatchSizeSearch(initial, 100_000, bisects, max_trials), limit)
    assert len(tried) == search.num_trials <= max_trials


@given(st.integers(1, 20_000), st.floats(0.0, 0.999))
def test_a_margin_stays_below_a_limit_that_was_met(limit, margin):
    search, _ = searched(BatchSizeSearch(2, 8192, True, 1000), limit)
    exact = search.result()
    assert exact is not None
    safe = search.result(margin)
    assert safe == (exact if search.fails is None else max(int(exact * (1 - margin)), 1))


def test_what_is_known_is_a_value():
    search = BatchSizeSearch(2, 8)
    assert search.after(2, fits=True) is not search
    assert search == BatchSizeSearch(2, 8)
