import warnings
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.errors import MisconfigurationException
from fulmen.trainer.metrics.batch_size import extract_batch_size

Pair = namedtuple("Pair", "x y")


@dataclass
class Data:
    x: object
    y: object


def nested(of):
    return st.one_of(
        st.lists(of, min_size=1, max_size=3),
        st.lists(of, min_size=1, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=2), of, min_size=1, max_size=3),
        st.tuples(of, of).map(lambda two: Pair(*two)),
        st.tuples(of, of).map(lambda two: Data(*two)),
    )


@given(size=st.integers(1, 20), data=st.data())
def test_found_at_any_depth(size, data):
    tensor = st.lists(st.integers(1, 3), max_size=2).map(lambda shape: torch.zeros(size, *shape))
    batch = data.draw(st.recursive(tensor, nested, max_leaves=8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert extract_batch_size(batch) == size


def test_the_first_of_several_with_a_warning():
    with pytest.warns(UserWarning, match="different lengths, such as 3 and 4"):
        assert extract_batch_size([torch.zeros(3), torch.zeros(4)]) == 3


def test_a_number_is_one_sample():
    assert extract_batch_size(torch.tensor(1.0)) == 1


def test_text_is_skipped():
    assert extract_batch_size({"text": ["a", "bc"], "x": torch.zeros(2, 3)}) == 2


@pytest.mark.parametrize("batch", ["text", 3, [], {"a": "b"}, object()])
def test_nothing_to_measure(batch):
    with pytest.raises(MisconfigurationException, match=r"Pass self\.log\(\.\.\., batch_size=\.\.\.\)"):
        extract_batch_size(batch)
