"""What is said here of plain tensors, test_sharded.py says of tensors that are split over processes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fulmen.fabric.errors import CheckpointError, ConfigurationError
from fulmen.fabric.strategies.sharded_tensors import (
    clamp,
    fill,
    gather,
    gradients,
    is_dtensor,
    local_part,
    scale,
    split_like,
    total_norm,
)

CPU = torch.device("cpu")
numbers = st.lists(st.floats(-1e3, 1e3), max_size=5)
tensors = st.lists(numbers, max_size=4).map(lambda rows: [torch.tensor(row, dtype=torch.float64) for row in rows])


@given(tensors, st.sampled_from([1.0, 2.0, 3.0, math.inf]))
def test_the_norm_is_that_of_all_numbers_in_one_row(found, norm_type):
    row = torch.cat(found) if found else torch.zeros(1, dtype=torch.float64)
    expected = torch.linalg.vector_norm(row, norm_type) if row.numel() else torch.zeros((), dtype=torch.float64)
    norm = total_norm(found, norm_type, CPU)
    torch.testing.assert_close(norm.double(), expected, rtol=1e-9, atol=1e-12)


def test_norms_of_other_types_of_numbers():
    small = torch.full((4,), 300.0, dtype=torch.float16)  # whose squares float16 does not hold
    assert total_norm([small], 2.0, CPU).item() == 600.0
    assert total_norm([small], 2.0, CPU).dtype == torch.float32
    assert total_norm([torch.tensor([3 + 4j]), torch.tensor([12.0])], 2.0, CPU).real.item() == pytest.approx(13.0)


@given(tensors, st.floats(0.1, 10))
def test_values_are_brought_into_a_range_in_place(found, limit):
    expected = [tensor.clamp(-limit, limit) for tensor in found]
    clamp(found, limit)
    for tensor, wanted in zip(found, expected, strict=True):
        assert torch.equal(tensor, wanted)


def test_tensors_of_all_types_are_scaled_in_place():
    found = [torch.ones(2), torch.ones(2, dtype=torch.float64)]
    scale(found, torch.tensor(0.5))
    assert [tensor.tolist() for tensor in found] == [[0.5, 0.5], [0.5, 0.5]]


def test_only_gradients_that_are_there_are_found():
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    first.grad = torch.ones(1)
    assert gradients([first, second]) == [first.grad]


def test_plain_tensors_are_whole():
    tensor = torch.arange(3.0)
    assert not is_dtensor(tensor)
    assert local_part(tensor) is tensor
    copy = split_like(tensor, torch.zeros(3))
    assert torch.equal(copy, tensor)
    assert copy.data_ptr() != tensor.data_ptr()
    assert torch.equal(gather(nn.Parameter(tensor), CPU, keep=True), tensor)
    assert gather(tensor, CPU, keep=False) is None


def test_what_cannot_be_filled_is_named():
    target = torch.zeros(2)
    fill("w", target, torch.ones(2))
    assert target.tolist() == [1.0, 1.0]
    with pytest.raises(CheckpointError, match=r"'w' has the shape \(3,\) in the checkpoint, and \(2,\) here"):
        fill("w", target, torch.ones(3))
    with pytest.raises(ConfigurationError, match="'w' is on the meta device"):
        fill("w", torch.zeros(2, device="meta"), torch.ones(2))
