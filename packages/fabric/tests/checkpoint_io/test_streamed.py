"""A piece of a saved tensor is the same, read a few MiB at a time or narrowed in memory."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.fabric.checkpoint_io import streamed
from fulmen.fabric.checkpoint_io.blocks import BlockReader, DamagedBlockError
from fulmen.fabric.checkpoint_io.manifest import Digests

DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64, torch.uint8, torch.float8_e4m3fn]


def reader_of(value: Any, before: bytes = b"before") -> tuple[BlockReader, int, int]:
    file = io.BytesIO()
    file.write(before)
    torch.save(value, file)
    size = file.tell() - len(before)
    file.write(b"behind")
    return BlockReader(file, None, file.tell()), len(before), size


def piece_of(tensor: torch.Tensor, offsets: list[int], lengths: list[int]) -> torch.Tensor:
    for axis, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        tensor = tensor.narrow(axis, offset, length)
    return tensor


@settings(max_examples=60)
@given(st.data())
def test_any_piece_of_any_tensor_is_read_as_it_is(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 6), max_size=4))
    dtype = data.draw(st.sampled_from(DTYPES))
    is_transposed = data.draw(st.booleans())
    tensor = torch.randint(0, 2, sizes).to(dtype)
    tensor = tensor.transpose(0, -1) if is_transposed and sizes else tensor
    bounds = [sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size)))) for size in tensor.shape]
    offsets, lengths = [start for start, _ in bounds], [end - start for start, end in bounds]
    expected = piece_of(tensor, offsets, lengths)
    reader, start, size = reader_of(tensor)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streamed, "_WORTH_STREAMING", data.draw(st.sampled_from([0, 10**9])))
        patch.setattr(streamed, "_BUFFER_NUM_BYTES", data.draw(st.sampled_from([16, 2**20])))
        target = torch.zeros(lengths, dtype=dtype)
        streamed.read_tensor(reader, start, size, offsets, lengths, target)
    assert torch.equal(target.to(torch.complex64), expected.to(torch.complex64))


def test_a_large_tensor_goes_into_a_target_of_another_dtype_and_layout() -> None:
    tensor = torch.randn(700, 900)
    reader, start, size = reader_of(tensor)
    target = torch.zeros(500, 300, dtype=torch.float64).T
    streamed.read_tensor(reader, start, size, [100, 50], [300, 500], target)
    assert torch.equal(target, tensor[100:400, 50:550].double())


def test_a_damaged_block_is_noticed_before_it_is_used() -> None:
    tensor = torch.arange(3_000_000.0)
    file = io.BytesIO()
    torch.save(tensor, file)
    content = bytearray(file.getvalue())
    from fulmen.fabric.checkpoint_io.blocks import DigestingWriter

    writer = DigestingWriter(io.BytesIO())
    writer.write(content)
    digests: Digests = writer.digests()
    content[9_000_000] ^= 4
    reader = BlockReader(io.BytesIO(content), digests, len(content))
    target = torch.zeros(3_000_000)
    with pytest.raises(DamagedBlockError):
        streamed.read_tensor(reader, 0, len(content), [0], [3_000_000], target)


def test_something_else_than_a_tensor_is_judged_by_torch() -> None:
    class Planted:
        def __reduce__(self) -> Any:
            return print, ("planted code was run",)

    reader, start, size = reader_of({"a": Planted(), "b": torch.zeros(500_000)})
    with pytest.raises(Exception, match=r"not an allowed global|Unsupported"):
        streamed.read_tensor(reader, start, size, [0], [1], torch.zeros(1))
