"""Nested hyperparameters to flat, printable ones."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.loggers.params import (
    add_prefix,
    as_number,
    flatten_params,
    params_dict,
    printable_params,
)

names = st.text("abc", min_size=1, max_size=2)
nested = st.recursive(
    st.integers() | st.lists(st.integers()), lambda inner: st.dictionaries(names, inner), max_leaves=8
)


@given(st.dictionaries(names, nested))
def test_flattening_keeps_every_leaf_under_its_path(params: dict[str, Any]) -> None:
    flat = flatten_params(params)
    for path, leaf in flat.items():
        found: Any = params
        for name in path.split("/"):
            found = found[name]
        assert found == leaf
        assert not isinstance(leaf, dict)
    assert len(flat) == _num_leaves(params)


def _num_leaves(tree: Any) -> int:
    return sum(_num_leaves(value) for value in tree.values()) if isinstance(tree, dict) else 1


@dataclass
class Options:
    width: int = 3


def test_other_nests_are_flattened_too() -> None:
    params = params_dict(Namespace(model=Options(), data=Namespace(size=2), kind=Options))
    assert flatten_params(params, ".") == {"model.width": 3, "data.size": 2, "kind": Options}
    assert params_dict(None) == {}


def test_values_become_printable() -> None:
    tensor = torch.ones(2)
    params = printable_params({"a": 1, "b": None, "c": [1], "d": numpy.float32(0.5), "e": tensor, "f": True})
    assert params == {"a": 1, "b": "None", "c": "[1]", "d": 0.5, "e": tensor, "f": True}
    assert type(params["d"]) is float


@pytest.mark.parametrize(
    ("value", "number"), [(torch.tensor(2.0), 2.0), (torch.tensor([[3]]), 3), (numpy.int64(4), 4), ("five", "five")]
)
def test_one_element_is_a_number(value: Any, number: Any) -> None:
    assert as_number(value) == number
    assert type(as_number(value)) is type(number)


def test_prefixes() -> None:
    assert add_prefix({"a": 1}, "p", "-") == {"p-a": 1}
    assert add_prefix({"a": 1}, "", "-") == {"a": 1}
