"""A nested state and its entries by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.fabric.checkpoint_io.nested import flatten, holds_tensor, unflatten
from fulmen.fabric.errors import ConfigurationError

TENSOR = torch.ones(2)
LEAVES = st.one_of(st.integers(), st.text(max_size=3), st.none(), st.just(TENSOR), st.just(()), st.lists(st.integers()))
KEYS = st.one_of(st.text(alphabet="abc", min_size=1, max_size=3), st.integers(0, 9))
NESTED = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.dictionaries(KEYS, inner, max_size=3), st.lists(inner, max_size=2)),
    max_leaves=8,
)
STATES = st.dictionaries(st.text(alphabet="abc", min_size=1, max_size=3), NESTED, max_size=3)


def texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): texts(part) for key, part in value.items()}
    return [texts(part) for part in value] if isinstance(value, list) else value


@settings(max_examples=25)
@given(STATES)
def test_a_state_is_the_same_after_it_was_taken_apart(state: dict[str, Any]) -> None:
    entries = flatten(state)
    paths = {name: entry.real_path for name, entry in entries.items()}
    assert unflatten({name: entry.value for name, entry in entries.items()}, paths) == state


@settings(max_examples=25)
@given(STATES)
def test_the_names_are_those_that_torch_gives(state: dict[str, Any]) -> None:
    from torch.distributed.checkpoint._nested_dict import flatten_state_dict

    theirs, paths = flatten_state_dict(state)
    # torch leaves out what is empty.
    ours = {name: entry for name, entry in flatten(state).items() if entry.value != {}}
    assert list(ours) == list(theirs)
    assert {name: entry.path for name, entry in ours.items()} == paths
    assert all(ours[name].value is theirs[name] for name in theirs)


@settings(max_examples=25)
@given(STATES)
def test_a_value_is_put_back_where_it_was(state: dict[str, Any]) -> None:
    entries = flatten(state)
    for number, entry in enumerate(entries.values()):
        entry.value = number
    assert [entry.container[entry.key] for entry in entries.values()] == list(range(len(entries)))


@settings(max_examples=25)
@given(STATES)
def test_tensors_are_found_wherever_they_are(state: dict[str, Any]) -> None:
    assert holds_tensor(state) == any(entry.value is TENSOR for entry in flatten(state).values())


def test_tensors_in_a_tuple_are_seen_too() -> None:
    assert holds_tensor({"a": [(1, TENSOR)]})
    assert not holds_tensor({"a": [(1, "TENSOR")]})


def test_names_that_would_be_one_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"'a\.b'"):
        flatten({"a.b": 1, "a": {"b": 2}})
    with pytest.raises(ConfigurationError, match=r"\(1, 2\).*tuple"):
        flatten({"a": {(1, 2): 3}})


def test_a_path_with_numbers_for_keys_is_not_plain() -> None:
    entries = flatten({"a": {0: TENSOR, "b": [{"c": 1}]}})
    assert {name: entry.has_plain_path for name, entry in entries.items()} == {"a.0": False, "a.b.0.c": True}
    assert unflatten({"x.y": 1}, {}) == {"x.y": 1}
