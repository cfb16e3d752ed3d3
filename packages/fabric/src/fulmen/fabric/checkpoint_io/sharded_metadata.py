"""Read the `.metadata` of a sharded folder without running what is in it.

`torch.distributed.checkpoint` pickles its description of the tensors. Here the pickle is read with stand-ins for the
few classes that such a description is made of; then the real classes are built from what is valid. Any other class or
function ends it.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata

_METADATA = "torch.distributed.checkpoint.metadata"
_RECORDS = {
    *((_METADATA, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "BytesStorageMetadata")),
    *((_METADATA, name) for name in ("TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata")),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
}
_VALUES = {  # only the text of these is of interest, or nothing at all
    (_METADATA, "_MEM_FORMAT_ENCODING"),
    ("torch.serialization", "_get_layout"),
    *((module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")),
}


class UnsafeMetadataError(ValueError):
    """The pickle names a class or function that does not belong there."""


def unpickle_metadata(pickled: bytes) -> Metadata:
    """The description of the tensors in a folder.

    Raises:
        UnsafeMetadataError: If the pickle names anything else than this description is made of.
        ValueError: If it is damaged.
    """
    stream = io.BytesIO(pickled)
    reader = _Reader(stream)
    try:
        root = reader.load()
        if stream.tell() != len(pickled):
            raise ValueError("something follows the end of its pickle")
        return _metadata(root)
    except UnsafeMetadataError:
        raise
    except RecursionError:
        raise ValueError("its pickle is nested too deep") from None
    except Exception as error:
        # A pickle machine that is fed noise raises anything.
        raise ValueError(f"its pickle is unreadable ({type(error).__name__}: {error})") from error


class _Reader(pickle.Unpickler):
    """A pickle machine that finds nothing but stand-ins, made anew for each pickle."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self._made: dict[tuple[str, str], Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in for one of the known names."""
        where = module, name
        if where not in self._made:
            self._made[where] = self._stand_in(module, name)
        return self._made[where]

    def _stand_in(self, module: str, name: str) -> Any:
        if (module, name) in _RECORDS:
            return _record_class(name)
        if (module, name) in _VALUES:
            return _value_class(name)
        if module == "torch":
            known = vars(torch).get(name)
            if isinstance(known, torch.dtype):
                return known
            if name == "Size":
                return torch.Size
        raise UnsafeMetadataError(f"{module}.{name}")


def _record_class(name: str) -> type:
    def take(self: Any, state: Any) -> None:
        # `__dict__` as it is: no setter and no descriptor can be reached.
        vars(self)["state"] = state

    return type(name, (), {"__setstate__": take, "state": None})


def _value_class(name: str) -> Callable[..., Any]:
    class Value(tuple[Any, ...]):
        def __new__(cls, *parts: Any) -> Any:
            return super().__new__(cls, parts)

        def __setstate__(self, state: Any) -> None:
            return None

    Value.__name__ = name
    return Value


def _metadata(root: Any) -> Metadata:
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, StorageMeta

    fields = _fields(root, "Metadata")
    entries: dict[str, Any] = {}
    for name, entry in _of(fields["state_dict_metadata"], dict).items():
        is_bytes = type(entry).__name__ == "BytesStorageMetadata"
        entries[_of(name, str)] = BytesStorageMetadata() if is_bytes else _tensor(entry)
    storage = _of(fields.get("storage_data"), dict)
    planner_data = fields.get("planner_data")
    return Metadata(
        state_dict_metadata=entries,
        planner_data=None if planner_data is None else {_of(k, str): _path(v) for k, v in planner_data.items()},
        storage_data={_index(index): _storage_info(info) for index, info in storage.items()},
        storage_meta=StorageMeta(),
        version=fields.get("version") if isinstance(fields.get("version"), str) else None,
    )


def _tensor(entry: Any) -> Any:
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorProperties, TensorStorageMetadata

    fields = _fields(entry, "TensorStorageMetadata")
    properties = fields["properties"]
    if type(properties).__name__ != "TensorProperties":
        raise ValueError(f"{type(properties).__name__} instead of properties")
    dtype = _of(properties.state[0], torch.dtype)
    chunks = [_fields(chunk, "ChunkStorageMetadata") for chunk in _of(fields["chunks"], list)]
    size = _size(fields["size"])
    read = [ChunkStorageMetadata(_size(chunk["offsets"]), _size(chunk["sizes"])) for chunk in chunks]
    for chunk in read:
        ends = [offset + length for offset, length in zip(chunk.offsets, chunk.sizes, strict=True)]
        if len(ends) != len(size) or any(end > whole for end, whole in zip(ends, size, strict=True)):
            raise ValueError(f"a piece {tuple(chunk.offsets)} + {tuple(chunk.sizes)} outside of {tuple(size)}")
    return TensorStorageMetadata(TensorProperties(dtype=dtype), size, read)


def _index(index: Any) -> Any:
    from torch.distributed.checkpoint.metadata import MetadataIndex

    fields = _fields(index, "MetadataIndex")
    offset = fields.get("offset")
    number = fields.get("index")
    return MetadataIndex(
        _of(fields["fqn"], str),
        None if offset is None else _size(offset),
        None if number is None else _of(number, int),
    )


def _storage_info(info: Any) -> Any:
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    fields = _fields(info, "_StorageInfo")
    name = _of(fields["relative_path"], str)
    if PurePosixPath(name).name != name or "\\" in name or name in ("", ".", ".."):
        raise ValueError(f"a part outside of the folder, {name!r}")
    if fields.get("transform_descriptors"):
        raise ValueError("transformed parts, which are not known here")
    return _StorageInfo(name, _count(fields["offset"]), _count(fields["length"]))


def _path(path: Any) -> tuple[str | int, ...]:
    if not isinstance(path, tuple) or not all(type(step) in (str, int) for step in path):
        raise ValueError(f"a place {path!r}")
    return path


def _size(size: Any) -> torch.Size:
    return torch.Size([_count(length) for length in _of(size, tuple)])


def _count(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise ValueError(f"a length {number!r}")
    return number


def _fields(record: Any, name: str) -> dict[str, Any]:
    if type(record).__name__ != name or not isinstance(record.state, dict):
        raise ValueError(f"{type(record).__name__} instead of {name}")
    return record.state


def _of(value: Any, kind: type[Any]) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{type(value).__name__} instead of {kind.__name__}")
    return value
