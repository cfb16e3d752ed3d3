"""A piece of a saved tensor, read into memory that is there already, a few MiB at a time."""

from __future__ import annotations

import io
import math
import pickle
import sys
import zipfile
from collections.abc import Sequence
from typing import IO, Any, cast

import torch
from torch import Tensor

from fulmen.fabric.checkpoint_io.blocks import BlockReader, Window
from fulmen.fabric.checkpoint_io.manifest import UNREADABLE_ARCHIVE

# What is smaller is read whole: to look for its bytes would cost more.
_WORTH_STREAMING = 2**20
_BUFFER_NUM_BYTES = 2**20
# Newer types than these are saved in another way, and read whole.
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}


def read_tensor(
    reader: BlockReader, start: int, length: int, offsets: Sequence[int], lengths: Sequence[int], target: Tensor
) -> None:
    """Copy a piece of the tensor that `torch.save` wrote at `start` into `target`, on any device.

    Args:
        reader: The file.
        start, length: Where the saved tensor begins, and how many bytes it takes.
        offsets, lengths: The piece, per axis.
        target: Of the shape `lengths`.
    """
    found = _contiguous_data(Window(reader, start, length)) if length > _WORTH_STREAMING else None
    if found is None:
        tensor = torch.load(cast(IO[bytes], Window(reader, start, length)), map_location="cpu", weights_only=True)
        for axis, (offset, size) in enumerate(zip(offsets, lengths, strict=True)):
            tensor = tensor.narrow(axis, offset, size)
        target.copy_(tensor)
        return
    data_at, dtype, sizes = found
    _stream(reader, start + data_at, dtype, sizes, offsets, lengths, target)


def _stream(
    reader: BlockReader,
    data_at: int,
    dtype: torch.dtype,
    sizes: Sequence[int],
    offsets: Sequence[int],
    lengths: Sequence[int],
    target: Tensor,
) -> None:
    if math.prod(lengths) == 0:
        return
    row_num_bytes = math.prod(sizes[1:]) * dtype.itemsize
    if row_num_bytes > _BUFFER_NUM_BYTES and len(sizes) > 1:
        for row in range(lengths[0]):
            row_at = data_at + (offsets[0] + row) * row_num_bytes
            _stream(reader, row_at, dtype, sizes[1:], offsets[1:], lengths[1:], target[row])
        return
    num_rows = max(1, _BUFFER_NUM_BYTES // row_num_bytes)
    buffer = bytearray(min(num_rows, lengths[0]) * row_num_bytes)
    for first in range(0, lengths[0], num_rows):
        count = min(num_rows, lengths[0] - first)
        view = memoryview(buffer)[: count * row_num_bytes]
        if reader.read_into(data_at + (offsets[0] + first) * row_num_bytes, view) != len(view):
            raise EOFError("the data of a tensor is cut short")
        rows = torch.frombuffer(view, dtype=dtype).view(count, *sizes[1:])
        for axis, (offset, size) in enumerate(zip(offsets[1:], lengths[1:], strict=True), start=1):
            rows = rows.narrow(axis, offset, size)
        target[first : first + count].copy_(rows)


def _contiguous_data(window: Window) -> tuple[int, torch.dtype, tuple[int, ...]] | None:
    """Where the bytes of a saved tensor begin, its dtype and shape; None if it is not one plain, contiguous tensor."""
    try:
        with zipfile.ZipFile(window) as archive:
            records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            if "byteorder" in records and archive.read(records["byteorder"]) != sys.byteorder.encode():
                return None
            dtype, key, sizes = _Described(io.BytesIO(archive.read(records["data.pkl"]))).load()
            record = records[f"data/{key}"]
        num_bytes = math.prod(sizes) * dtype.itemsize
        if not sizes or record.compress_type != zipfile.ZIP_STORED or record.file_size < num_bytes:
            return None
        window.seek(record.header_offset + 26)
        name_and_extra = window.read(4)
        assert name_and_extra is not None
        skipped = int.from_bytes(name_and_extra[:2], "little") + int.from_bytes(name_and_extra[2:], "little")
        return record.header_offset + 30 + skipped, dtype, sizes
    except (*UNREADABLE_ARCHIVE, pickle.UnpicklingError, TypeError, AttributeError):
        # Not the common case: torch judges it.
        return None


class _Described(pickle.Unpickler):
    """Reads (dtype, key of the storage, shape) from the pickle of one contiguous tensor, and refuses all else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _describe
        if (module, name) == ("collections", "OrderedDict"):
            return tuple
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        _, dtype, key, *_ = pid
        return dtype, key


def _describe(
    storage: Any, offset: Any, sizes: Any, strides: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> tuple[torch.dtype, str, tuple[int, ...]]:
    dtype, key = storage
    contiguous = tuple(math.prod(sizes[axis + 1 :]) for axis in range(len(sizes)))
    if not isinstance(dtype, torch.dtype) or offset != 0 or tuple(strides) != contiguous or metadata:
        raise pickle.UnpicklingError("not contiguous")
    return dtype, key, tuple(sizes)
