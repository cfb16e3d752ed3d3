import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.trainer.data.limits import check_limit, num_batches
from fulmen.trainer.errors import ArgumentTypeError, ConfigurationError, MisconfigurationException

lengths = st.integers(0, 10_000)
limits = st.integers(0, 10_000) | st.floats(0.0, 1.0) | st.none()


@given(limit=limits, length=lengths)
def test_never_more_than_there_are_and_never_more_than_asked(limit, length):
    try:
        count = num_batches(limit, length, name="limit_train_batches")
    except ConfigurationError:
        assert isinstance(limit, float)
        assert 0 < limit * length < 1
        return
    assert isinstance(count, int)
    assert 0 <= count <= length
    if isinstance(limit, int):
        assert count == min(limit, length)
    elif limit is None:
        assert count == length
    else:
        assert length * limit - 1 < count <= length * limit


@given(length=st.integers(1, 10_000), limit=st.floats(1e-6, 1.0))
def test_the_fraction_that_the_error_advises_works(length, limit):
    try:
        num_batches(limit, length, name="limit_val_batches")
    except ConfigurationError as error:
        advised = float(str(error).split("Pass at least limit_val_batches=")[1].split(",")[0])
        assert num_batches(advised, length, name="limit_val_batches") >= 1


@given(limit=st.integers(0, 10_000))
def test_an_unknown_length_is_cut_by_a_count(limit):
    assert num_batches(limit, None, name="x") == num_batches(limit, math.inf, name="x") == limit


@pytest.mark.parametrize(("limit", "expected"), [(None, math.inf), (1.0, math.inf), (0.0, 0), (0, 0)])
def test_of_an_unknown_length_all_or_nothing_may_be_asked(limit, expected):
    assert num_batches(limit, None, name="x") == expected


def test_a_fraction_of_an_unknown_length_is_refused():
    with pytest.raises(ConfigurationError, match=r"limit_train_batches=0.5 .*does not know its length"):
        num_batches(0.5, None, name="limit_train_batches")


@pytest.mark.parametrize("limit", [-1, 1.5, -0.1, math.nan, math.inf])
def test_what_is_no_limit_is_refused(limit):
    with pytest.raises(ConfigurationError, match="limit_test_batches="):
        check_limit(limit, name="limit_test_batches")


@pytest.mark.parametrize("limit", ["0.5", True, [1], 1j])
def test_what_is_no_number_is_refused(limit):
    with pytest.raises(ArgumentTypeError, match="is no number") as caught:
        check_limit(limit, name="limit_test_batches")
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, MisconfigurationException)
