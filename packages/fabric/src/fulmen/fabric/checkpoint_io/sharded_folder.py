"""A sharded checkpoint that is read: what it holds, checked against its manifest, and nothing unpickled but data."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, cast

import torch

from fulmen.fabric.checkpoint_io.blocks import BlockReader, DamagedBlockError, Window, read_whole
from fulmen.fabric.checkpoint_io.exchange import restore_replaced
from fulmen.fabric.checkpoint_io.manifest import read_sealed_metadata
from fulmen.fabric.checkpoint_io.nested import Entry, flatten, unflatten
from fulmen.fabric.checkpoint_io.safe import unsafe_classes
from fulmen.fabric.checkpoint_io.sharded_metadata import UnsafeMetadataError, unpickle_metadata
from fulmen.fabric.checkpoint_io.sharded_names import METADATA, PLAIN
from fulmen.fabric.checkpoint_io.streamed import read_tensor
from fulmen.fabric.errors import (
    CheckpointDamagedError,
    CheckpointError,
    CheckpointKeyError,
    CheckpointNotFoundError,
    ConfigurationError,
)
from fulmen.fabric.filesystem import get_filesystem, is_local, join, list_dir, local_path, open_file
from fulmen.fabric.types import PathLike

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
    from torch.distributed.checkpoint.planner import ReadItem


class ShardedFolder:
    """A folder that `save_sharded`, `torch.distributed.checkpoint` or Lightning wrote.

    Args:
        path: Local or remote.

    Raises:
        CheckpointNotFoundError: If there is no sharded checkpoint.
        CheckpointDamagedError: If its description is damaged.
        CheckpointError: If its description is more than one of tensors and plain data, or cannot be read.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = os.fspath(path)
        if is_local(path):
            restore_replaced(os.path.abspath(local_path(path)))
        content = self._read_file(METADATA)
        try:
            pickled, self.manifest = read_sealed_metadata(content)
            self.metadata: Metadata = unpickle_metadata(pickled)
        except UnsafeMetadataError as error:
            raise CheckpointError(
                f"The checkpoint {self.path!r} was not read: its .metadata names {error}. Such a file describes tensors"
                " and has no use for that, and reading it could run code. Do not load it with anything else, unless you"
                " know who wrote it and why."
            ) from error
        except ValueError as error:
            raise self._damaged(METADATA, str(error)) from error

    @property
    def plain_name(self) -> str:
        """The name of the file with the entries that hold no tensor."""
        parts = {} if self.manifest is None else self.manifest.parts
        return next((name for name in parts if name.endswith(PLAIN)), PLAIN)

    def plain(self) -> dict[str, Any]:
        """The entries of the state that hold no tensor."""
        name = self.plain_name
        if name not in self.part_names():
            return {}
        with self._open(name) as reader:
            found = self._load_plain(name, reader, 0, reader.num_bytes)
        if not isinstance(found, dict):
            raise self._damaged(name, f"it holds a {type(found).__name__} instead of a dictionary")
        return found

    def part_names(self) -> list[str]:
        """The files that belong to the checkpoint, `.metadata` apart."""
        if self.manifest is not None:
            return list(self.manifest.parts)
        named = {info.relative_path for info in self.metadata.storage_data.values()}
        return sorted(named | ({PLAIN} & set(list_dir(self.path))))

    def verify(self) -> None:
        """Read every part once, and compare it with its SHA-256.

        Raises:
            CheckpointDamagedError: If a byte is not what was written, or a part is missing.
        """
        for name in self.part_names():
            with self._open(name) as reader:
                reader.verify()

    def names(self) -> list[str]:
        """All entries that are described, in the order of the state that was saved."""
        described = self.metadata.state_dict_metadata
        in_order = [name for name in self.metadata.planner_data or () if name in described]
        return list(dict.fromkeys([*in_order, *described]))

    def real_path(self, name: str) -> tuple[Any, ...]:
        """Where the entry `name` stands in the nested state: its keys, and `[index]` for a place in a list."""
        if self.manifest is not None and name in self.manifest.paths:
            return tuple(self.manifest.paths[name])
        path = (self.metadata.planner_data or {}).get(name) or (name,)
        return tuple([step] if isinstance(step, int) else step for step in path)

    def load(self, state: dict[str, Any]) -> None:
        """Fill `state`; see `load_sharded`."""
        described = self.metadata.state_dict_metadata
        plain = self.plain()
        described_state = {key: value for key, value in state.items() if key not in plain}
        tensors: dict[str, torch.Tensor] = {}
        values: dict[str, Entry] = {}
        missing: list[str] = []
        for name, entry in flatten(described_state).items():
            if isinstance(entry.value, torch.Tensor) and name in described:
                tensors[name] = self._fitting(name, entry.value)
            elif name in described or (not isinstance(entry.value, torch.Tensor) and self._below(name)):
                values[name] = entry
            elif isinstance(entry.value, torch.Tensor) or not self._put_whole_above(entry, described_state):
                missing.append(name)
        if missing:
            raise CheckpointKeyError(
                f"{self.path!r} does not hold {_listed(missing)}. It holds: {_listed([*described, *plain])}. Leave"
                " these out of the state, or pass the state of what was saved."
            )
        found = self.read([below for name in values for below in self._below(name) or [name]], tensors)
        for name, entry in values.items():
            below = self._below(name)
            depth = len(entry.path)
            paths = {key: self.real_path(key)[depth:] for key in below}
            entry.value = unflatten({key: found[key] for key in below}, paths) if below else found[name]
        state.update({key: plain[key] for key in state if key in plain} | described_state)

    def read(self, names: list[str], into: dict[str, torch.Tensor] | None = None) -> dict[str, Any]:
        """Read entries.

        Args:
            names: What to read whole, onto the CPU; these come back.
            into: Tensors and DTensors to fill, each with its shard.
        """
        found: dict[str, Any] = {}
        filled = dict(into or {})
        for name in names:
            described: Any = self.metadata.state_dict_metadata[name]
            if _is_tensor(described):
                found[name] = filled[name] = torch.empty(described.size, dtype=described.properties.dtype)
            else:
                found[name] = self._value(name)
        self._fill(filled)
        return found

    def _fill(self, tensors: dict[str, torch.Tensor]) -> None:
        from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        planner.set_up_planner({name: tensor.detach() for name, tensor in tensors.items()}, self.metadata)
        by_part: dict[str, list[tuple[int, int, ReadItem]]] = {}
        for item in planner.create_local_plan().items:
            info = self._stored(item.storage_index)
            by_part.setdefault(info.relative_path, []).append((info.offset, info.length, item))
        for part, items in by_part.items():
            with self._open(part) as reader:
                for start, length, item in sorted(items, key=lambda found: found[0]):
                    target = planner.resolve_tensor(item).detach()
                    read_tensor(reader, start, length, item.storage_offsets, item.lengths, target)

    def _value(self, name: str) -> Any:
        from torch.distributed.checkpoint.metadata import MetadataIndex

        info = self._stored(MetadataIndex(name))
        with self._open(info.relative_path) as reader:
            return self._load_plain(info.relative_path, reader, info.offset, info.length)

    def _stored(self, index: MetadataIndex) -> Any:
        try:
            return self.metadata.storage_data[index]
        except KeyError:
            raise self._damaged(METADATA, f"it does not tell where {index.fqn!r} is") from None

    def _fitting(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        described: Any = self.metadata.state_dict_metadata[name]
        if not _is_tensor(described):
            raise CheckpointError(
                f"{name!r} in {self.path!r} is no tensor, and one is to be filled with it. The checkpoint is of another"
                " state. Pass the state of what was saved."
            )
        if described.size != tensor.size():
            raise CheckpointError(
                f"{name!r} in {self.path!r} has the shape {tuple(described.size)}, and what is to be filled has"
                f" {tuple(tensor.size())}. The checkpoint is of a module of other sizes. Build the module as it was"
                " when it was saved."
            )
        if tensor.is_meta:
            raise ConfigurationError(
                f"The tensor {name!r} is on the meta device and cannot be filled from {self.path!r}. It has a shape and"
                " no memory. Materialize the module first, for instance by `module.to_empty(device=...)`."
            )
        return tensor

    def _below(self, name: str) -> list[str]:
        return [known for known in self.names() if known.startswith(f"{name}.")]

    def _put_whole_above(self, entry: Entry, state: dict[str, Any]) -> bool:
        """What is a dictionary here may be one value there, and what is empty need not be there."""
        container: Any = state
        for depth, step in enumerate(entry.real_path[:-1], start=1):
            name = ".".join(map(str, entry.path[:depth]))
            key = step[0] if isinstance(step, list) else step
            if name in self.metadata.state_dict_metadata:
                container[key] = self._value(name)
                return True
            container = container[key]
        return isinstance(entry.value, (dict, list)) and not entry.value

    # ---- files

    def _read_file(self, name: str) -> bytes:
        try:
            with self._open_raw(name) as (file, num_bytes):
                content = bytearray(num_bytes)
                read_whole(file, memoryview(content))
                return bytes(content)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CheckpointNotFoundError(
                f"There is no sharded checkpoint {self.path!r}: it has no {name}. The path was looked up as given,"
                f" relative to {os.getcwd()!r} if it is not absolute. Check the path."
            ) from error
        except OSError as error:
            raise self._unreadable(name, 0, error) from error

    @contextmanager
    def _open_raw(self, name: str) -> Iterator[tuple[IO[bytes], int]]:
        if is_local(self.path):
            with open_file(os.path.join(local_path(self.path), name)) as local:
                yield local, os.fstat(local.fileno()).st_size
            return
        filesystem = get_filesystem(self.path)
        # Object stores answer from a cache that other processes do not refresh.
        filesystem.invalidate_cache()
        with filesystem.open(join(self.path, name), "rb") as remote:
            num_bytes = remote.seek(0, os.SEEK_END)
            remote.seek(0)
            yield remote, num_bytes

    @contextmanager
    def _open(self, name: str) -> Iterator[BlockReader]:
        digests = None if self.manifest is None else self.manifest.parts.get(name)
        if self.manifest is not None and digests is None:
            raise self._damaged(METADATA, f"it has no digests of {name}")
        try:
            with self._open_raw(name) as (file, num_bytes):
                try:
                    reader = BlockReader(file, digests, num_bytes)
                except DamagedBlockError as error:
                    raise self._damaged(name, str(error)) from error
                with self._loading(name, reader):
                    yield reader
        except FileNotFoundError as error:
            raise self._damaged(name, "it is missing") from error
        except OSError as error:
            raise self._unreadable(name, 0, error) from error

    @contextmanager
    def _loading(self, name: str, reader: BlockReader) -> Iterator[None]:
        try:
            yield
        except (MemoryError, torch.OutOfMemoryError, CheckpointError):
            raise
        except Exception as error:
            cause = reader.failure or error
            if isinstance(cause, OSError):
                raise self._unreadable(name, reader.num_bytes, cause) from error
            raise self._damaged(name, (str(cause) or type(cause).__name__).splitlines()[0]) from error

    def _load_plain(self, name: str, reader: BlockReader, start: int, length: int) -> Any:
        window = Window(reader, start, length)
        try:
            return torch.load(cast(IO[bytes], window), map_location="cpu", weights_only=True)
        except (OSError, MemoryError):
            raise
        except Exception as error:
            if reader.failure is not None:
                raise
            content = io.BytesIO(Window(reader, start, length).read() or b"")
            unsafe = _unsafe_classes(content)
            if not unsafe:
                raise
            raise CheckpointError(
                f"The checkpoint {self.path!r} holds more than tensors and plain data: {', '.join(unsafe)}, in {name}."
                " Loading these would run code from the file. If you trust where it comes from, name them in"
                " torch.serialization.add_safe_globals."
            ) from error

    def _unreadable(self, part: str, num_bytes: int, cause: OSError) -> CheckpointError:
        return CheckpointError(
            f"The checkpoint {self.path!r} could not be read: {cause.strerror or cause}, in its part {part!r}"
            f" ({num_bytes} bytes). The storage answers so, whatever the content is. Look after the disk, the"
            " connection or the permissions, and load again."
        )

    def _damaged(self, part: str, reason: str) -> CheckpointDamagedError:
        return CheckpointDamagedError(
            f"The checkpoint {self.path!r} is damaged in its part {part!r}: {reason}. It was changed after it was"
            " written, for a save is moved here only when it is whole. Load an earlier checkpoint, or copy this one"
            " again from where it came."
        )


def _is_tensor(described: Any) -> bool:
    return hasattr(described, "chunks")


def _listed(names: list[str]) -> str:
    shown = [repr(name) for name in names[:20]]
    return ", ".join(shown) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _unsafe_classes(content: io.BytesIO) -> list[str]:
    try:
        return unsafe_classes(content)
    except Exception:
        return []
