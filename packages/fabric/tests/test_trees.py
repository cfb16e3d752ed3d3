from __future__ import annotations

import copy
import pickle
from collections import OrderedDict, UserDict, defaultdict, deque
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric import trees as fabric_trees
from fulmen.fabric.errors import ConfigurationError
from fulmen.fabric.trees import (
    AttributeDict,
    apply_func,
    convert_tensors,
    convert_to_scalars,
    convert_to_tensors,
    leaves,
    map_tensors,
    map_tree,
    move_data_to_device,
    move_to_device,
    num_bytes,
)


class Pair(NamedTuple):
    image: Any
    label: Any


@dataclass
class Sample:
    image: Any
    label: Any


@dataclass(frozen=True)
class FrozenSample:
    image: Any
    area: int = field(init=False, default=4)


@dataclass
class SlottedSample:
    __slots__ = ("image",)
    image: Any


leaf_values = st.integers() | st.text(max_size=3) | st.none()
trees = st.recursive(
    leaf_values,
    lambda below: (
        st.lists(below, max_size=3)
        | st.lists(below, max_size=3).map(tuple)
        | st.lists(below, max_size=3).map(deque)
        | st.dictionaries(st.text(max_size=2), below, max_size=3)
        | st.dictionaries(st.text(max_size=2), below, max_size=3).map(OrderedDict)
        | st.builds(Pair, below, below)
        | st.builds(Sample, below, below)
        | st.builds(FrozenSample, below)
    ),
    max_leaves=12,
)


@given(trees)
def test_mapping_the_identity_gives_an_equal_tree(tree: Any) -> None:
    mapped = map_tree(tree, lambda leaf: leaf)
    assert mapped == tree
    assert type(mapped) is type(tree)


@given(trees)
def test_every_leaf_is_visited_once_in_order_and_the_original_stays(tree: Any) -> None:
    before = copy.deepcopy(tree)
    seen: list[Any] = []

    def tag(leaf: Any) -> tuple[str, Any]:
        seen.append(leaf)
        return "seen", leaf

    tagged = map_tree(tree, tag)
    assert seen == list(leaves(tree))
    assert tree == before
    tags = list(leaves(tagged))
    assert tags[::2] == ["seen"] * len(seen)
    assert tags[1::2] == seen


@given(trees)
def test_moving_then_measuring(tree: Any) -> None:
    with_tensors = apply_func(tree, int, lambda _: torch.zeros(3, dtype=torch.float32))
    num_tensors = sum(isinstance(leaf, torch.Tensor) for leaf in leaves(with_tensors))
    moved = move_data_to_device(with_tensors, "meta")
    assert all(leaf.device.type == "meta" for leaf in leaves(moved) if isinstance(leaf, torch.Tensor))
    assert num_bytes(moved) == num_bytes(with_tensors) == 12 * num_tensors


def test_containers_keep_what_their_constructor_was_told() -> None:
    tree: Any = defaultdict(list, a=torch.zeros(1))
    assert map_tensors(tree, lambda t: t + 1).default_factory is list
    assert map_tensors(deque([torch.zeros(1)], maxlen=3), lambda t: t).maxlen == 3
    assert isinstance(map_tensors(UserDict(a=torch.zeros(1)), lambda t: t + 1), UserDict)
    proxy = map_tensors(MappingProxyType({"a": torch.zeros(1)}), lambda t: t + 1)
    assert isinstance(proxy, MappingProxyType)
    assert proxy["a"].item() == 1
    assert map_tensors(torch.zeros(2, 3).shape, lambda t: t) == (2, 3)
    assert torch.equal(map_tensors(torch.zeros(2).max(0), lambda t: t + 1).values, torch.ones(()))
    assert map_tensors(SlottedSample(torch.zeros(1)), lambda t: t + 1).image.item() == 1


def test_dataclass_types_and_unset_fields_are_left_alone() -> None:
    assert map_tensors(Sample, lambda t: t) is Sample
    sample = Sample(torch.zeros(1), 0)
    del sample.label
    mapped = map_tensors(sample, lambda t: t + 1)
    assert mapped.image.item() == 1
    assert not hasattr(mapped, "label")


class Movable:
    """Moves in place and returns nothing, as some graph batches do."""

    def __init__(self) -> None:
        self.device: torch.device | None = None

    def to(self, device: torch.device) -> None:
        self.device = device


class MovableMapping(UserDict[str, Any]):
    """As a Hugging Face batch: a mapping that moves itself."""

    def to(self, device: torch.device) -> MovableMapping:
        return MovableMapping({key: value.to(device) for key, value in self.items()}, moved=True)


def test_what_can_move_moves_itself() -> None:
    batch: dict[str, Any] = {
        "graph": Movable(),
        "text": MovableMapping(ids=torch.zeros(2)),
        "name": "x",
        "kind": Movable,
    }
    moved = move_to_device(batch, torch.device("meta"))
    assert moved["graph"] is batch["graph"]
    assert moved["graph"].device == torch.device("meta")
    assert moved["text"]["moved"]
    assert moved["text"]["ids"].device.type == "meta"
    assert (moved["name"], moved["kind"]) == ("x", Movable)
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(2), torch.ones(1)])
    assert isinstance(move_to_device(packed, "cpu"), torch.nn.utils.rnn.PackedSequence)


def test_a_tensor_in_place_is_the_same_tensor() -> None:
    tensor = torch.ones(2)
    assert move_to_device(tensor, "cpu") is tensor
    parameter = torch.nn.Parameter(tensor)
    assert move_to_device([parameter], "cpu")[0] is parameter


def test_only_floats_change_their_type() -> None:
    tree = {"image": torch.ones(2), "label": torch.ones(2, dtype=torch.long), "mask": torch.ones(2, dtype=torch.bool)}
    converted = convert_tensors(tree, torch.float64)
    assert [t.dtype for t in converted.values()] == [torch.float64, torch.long, torch.bool]


def test_numbers_become_tensors() -> None:
    numpy = pytest.importorskip("numpy")
    converted = convert_to_tensors([True, 3, 0.5, numpy.arange(3.0), torch.ones(1, dtype=torch.int8)], "cpu")
    assert [t.dtype for t in converted] == [torch.uint8, torch.int32, torch.float32, torch.float64, torch.int8]
    with pytest.raises(ConfigurationError, match="'text' cannot become a tensor"):
        convert_to_tensors({"a": "text"}, "cpu")


def test_the_table_of_what_becomes_a_tensor() -> None:
    numpy = pytest.importorskip("numpy")
    values = [True, 3, 0.5, numpy.arange(3)]
    assert [kind for kind, _ in fabric_trees.CONVERSION_DTYPES] == [bool, int, float, numpy.ndarray]
    made = [convert(value) for (_, convert), value in zip(fabric_trees.CONVERSION_DTYPES, values, strict=True)]
    assert [tensor.dtype for tensor in made] == [torch.uint8, torch.int32, torch.float32, torch.int64]
    with pytest.raises(AttributeError, match="no attribute 'CONVERSIONS'"):
        _ = fabric_trees.CONVERSIONS


@given(st.lists(st.floats(allow_nan=False) | st.integers(-(2**40), 2**40) | st.booleans()))
def test_scalars_survive_the_way_there_and_back(values: list[float | int | bool]) -> None:
    tree = [torch.tensor(v, dtype=torch.float64 if isinstance(v, float) else None) for v in values]
    assert convert_to_scalars({"values": tree, "name": "x"}) == {"values": values, "name": "x"}


def test_a_vector_is_no_scalar() -> None:
    with pytest.raises(ConfigurationError, match=r"shape \(2,\) is no scalar"):
        convert_to_scalars({"a": torch.ones(2)})
    assert convert_to_scalars(torch.ones(1, 1)) == 1.0


class TestAttributeDict:
    def test_keys_are_attributes(self) -> None:
        params = AttributeDict(lr=0.1)
        params.depth = 3
        assert params == {"lr": 0.1, "depth": 3}
        assert (params.lr, params["depth"]) == (0.1, 3)
        del params.lr
        assert "lr" not in params

    def test_a_missing_key_names_what_is_there(self) -> None:
        params = AttributeDict(lr=0.1)
        with pytest.raises(AttributeError, match=r"'width'; there are \['lr'\]"):
            _ = params.width
        with pytest.raises(AttributeError, match="width"):
            del params.width

    def test_it_travels(self) -> None:
        params = AttributeDict(lr=0.1, nested={"a": 1})
        assert pickle.loads(pickle.dumps(params)) == copy.deepcopy(params) == params

    def test_it_prints_as_a_table(self) -> None:
        assert repr(AttributeDict(lr=0.1, depth="x")) == "lr:    0.1\ndepth: 'x'"
        assert repr(AttributeDict()) == ""
