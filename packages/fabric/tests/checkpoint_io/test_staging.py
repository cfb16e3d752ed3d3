"""A copy in memory that is saved as the original would be."""

from __future__ import annotations

import collections
import io
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.fabric.checkpoint_io.staging import Staging


def saved(state: Any) -> dict[str, bytes]:
    """What `torch.save` writes, record by record."""
    import zipfile

    file = io.BytesIO()
    torch.save(state, file)
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist() if "serialization_id" not in name}


def base(number: int) -> torch.Tensor:
    return torch.arange(24.0) + number


TENSORS = st.builds(
    lambda number, kind: {
        "whole": lambda t: t,
        "view": lambda t: t[3:9],
        "transposed": lambda t: t.view(4, 6).T,
        "parameter": lambda t: torch.nn.Parameter(t),
        "frozen": lambda t: torch.nn.Parameter(t, requires_grad=False),
        "half": lambda t: t.bfloat16(),
        "empty": lambda t: t[:0],
        "scalar": lambda t: t.sum(),
        "complex": lambda t: torch.complex(t, t),
        "sparse": lambda t: t.view(4, 6).to_sparse(),
        "grad": lambda t: t.clone().requires_grad_(),
    }[kind](base(number)),
    st.integers(0, 3),
    st.sampled_from(
        ["whole", "view", "transposed", "parameter", "frozen", "half", "empty", "scalar", "complex", "sparse", "grad"]
    ),
)
LEAVES = st.one_of(st.integers(), st.text(), st.none(), TENSORS, st.just({1, 2}), st.binary())
STATES = st.dictionaries(
    st.text(max_size=3),
    st.recursive(LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=3), st.tuples(inner)), max_leaves=4),
    max_size=4,
)


@settings(max_examples=30)
@given(STATES, STATES)
def test_a_copy_is_saved_as_the_original_byte_for_byte(first: dict[str, Any], second: dict[str, Any]) -> None:
    staging = Staging()
    for state in (first, second):
        assert saved(staging.copy(state)) == saved(state)


def test_tensors_that_share_memory_still_do_and_share_none_with_the_original() -> None:
    weight = torch.arange(10.0)
    state = {"a": weight, "b": weight[2:4], "again": weight, "list": [weight.view(2, 5)]}
    copied = Staging().copy(state)
    assert copied["a"] is copied["again"]
    copied["a"][2] = -1
    assert copied["b"][0] == copied["list"][0][0, 2] == -1
    assert weight[2] == 2


def test_nothing_that_changes_later_is_seen() -> None:
    counter = collections.Counter(a=1)
    state = {"w": torch.zeros(3), "lists": [[1]], "counter": counter, "array": bytearray(b"x")}
    copied = Staging().copy(state)
    state["w"] += 1
    state["lists"][0].append(2)
    counter["a"] = 5
    state["array"][0] = 0
    assert torch.equal(copied["w"], torch.zeros(3))
    assert copied["lists"] == [[1]]
    assert copied["counter"] == collections.Counter(a=1)
    assert copied["array"] == b"x"


def test_what_torch_computes_only_when_it_is_read_is_copied_too() -> None:
    values = torch.complex(torch.arange(3.0), torch.ones(3))
    for lazy in (values.conj(), values.conj().imag, torch._neg_view(values)):
        (copied,) = Staging().copy_tensors([lazy])
        assert torch.equal(copied, lazy)


def test_what_needs_threads_is_copied_by_them() -> None:
    tensors = [torch.arange(5_000_000) * number for number in range(3)]
    for copied, tensor in zip(Staging().copy_tensors(tensors), tensors, strict=True):
        assert torch.equal(copied, tensor)


def test_memory_is_used_again_until_it_is_released() -> None:
    staging = Staging()
    first = staging.copy({"w": torch.ones(1000)})["w"]
    second = staging.copy({"w": torch.zeros(500)})["w"]
    assert first.data_ptr() == second.data_ptr()
    larger = staging.copy({"w": torch.ones(2000)})["w"]
    staging.release()
    assert bool((larger == 1).all())  # what still uses it keeps it


def test_what_cannot_be_copied_is_answered() -> None:
    import threading

    with pytest.raises(TypeError):
        Staging().copy({"lock": threading.Lock()})
