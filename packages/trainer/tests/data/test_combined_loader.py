import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from fulmen.fabric.data.resumable import ResumableLoader
from fulmen.trainer.data.combined_loader import CombinedLoader
from fulmen.trainer.errors import ConfigurationError

MODES = ["min_size", "max_size_cycle", "max_size", "sequential"]


def loader(num_samples, *, shuffle=False, batch_size=1):
    return DataLoader(torch.arange(num_samples), batch_size=batch_size, shuffle=shuffle)


def plain(items):
    return torch.utils._pytree.tree_map(lambda leaf: leaf.tolist() if isinstance(leaf, torch.Tensor) else leaf, items)


def test_a_batch_has_the_shape_of_the_collection():
    combined = CombinedLoader({"a": loader(4, batch_size=2), "b": [loader(2), (loader(3),)]}, "max_size")
    items = plain(list(combined))
    assert items[0] == ({"a": [0, 1], "b": [[0], ([0],)]}, 0, 0)
    assert items[2] == ({"a": None, "b": [None, ([2],)]}, 2, 0)
    assert len(combined) == len(items) == 3


def test_one_after_the_other_with_both_indices():
    combined = CombinedLoader([loader(2), loader(1)], "sequential")
    assert plain(list(combined)) == [([0], 0, 0), ([1], 1, 0), ([0], 0, 1)]
    combined.limits = [1, 1]
    assert plain(list(combined)) == [([0], 0, 0), ([0], 0, 1)]
    assert len(combined) == 2
    combined.limits = 1
    assert combined.limits == [1, 1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.sampled_from(MODES), st.integers(0, 9), st.booleans())
def test_skipping_gives_the_rest_of_the_same_order(sizes, mode, start, views):
    def epochs(start):
        loaders = [loader(size) for size in sizes]
        combined = CombinedLoader([ResumableLoader(each) for each in loaders] if views else loaders, mode)
        combined.skip_to(start)
        return plain(list(combined)), plain(list(combined))

    whole, again = epochs(0)
    assert epochs(start) == (whole[start:], again)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 9))
def test_shuffled_loaders_that_begin_again_are_resumed_in_the_same_order(sizes, start):
    def generators():
        return [torch.Generator().manual_seed(place) for place in range(len(sizes))]

    def view(size, generator):
        return ResumableLoader(DataLoader(torch.arange(size), shuffle=True, generator=generator))

    def epoch(start, states=None):
        views = [view(size, generator) for size, generator in zip(sizes, generators(), strict=True)]
        combined = CombinedLoader(views, "max_size_cycle")
        if states is not None:
            for each, state in zip(views, states, strict=True):
                each.load_state_dict(state)
            combined.keep_rounds()
        combined.skip_to(start)
        items, saved = [], []
        for item in combined:
            items.append(plain(item))
            saved.append([each.state_dict() for each in views])
        return items, saved

    whole, saved = epoch(0)
    assert epoch(start)[0] == whole[start:], "by its own means"
    # A state that was taken exactly at the end of a round does not hold what its sampler draws on ending.
    if 0 < start <= len(whole) and all(start % size for size in sizes):
        assert epoch(start, saved[start - 1])[0] == whole[start:], "by the states of its loaders"


def test_flattened_may_be_exchanged():
    combined = CombinedLoader({"a": range(2), "b": range(3)}, "min_size")
    combined.flattened = [range(5), range(6)]
    assert combined.iterables == {"a": range(5), "b": range(6)}
    assert len(combined) == 5


def test_samplers_have_the_shape_of_the_collection():
    first = loader(2)
    combined = CombinedLoader({"a": first, "b": range(2)}, "min_size")
    assert combined.sampler == {"a": first.sampler, "b": None}
    assert combined.batch_sampler == {"a": first.batch_sampler, "b": None}


def test_it_travels_without_the_iteration_under_way():
    combined = CombinedLoader([range(3)], "sequential")
    next(iter(combined))
    assert list(pickle.loads(pickle.dumps(combined))) == list(combined)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="mode='foo'"):
        CombinedLoader([range(2)], "foo")
    combined = CombinedLoader([range(2), range(3)], "min_size")
    with pytest.raises(ConfigurationError, match="3 values for 2 loaders"):
        combined.limits = [1, 2, 3]
    with pytest.raises(ConfigurationError, match="1 values for 2 loaders"):
        combined.flattened = [range(2)]
    with pytest.raises(RuntimeError, match="Call iter"):
        next(combined)
    next(iter(combined))
    combined.reset()
    with pytest.raises(RuntimeError, match="Call iter"):
        next(combined)
    with pytest.raises(TypeError, match="zip"):
        len(CombinedLoader([zip([1], [2], strict=True)], "max_size"))
