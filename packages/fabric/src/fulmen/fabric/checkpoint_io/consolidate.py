"""A sharded folder to one file."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fulmen.fabric.checkpoint_io.commit import storage_failures
from fulmen.fabric.checkpoint_io.nested import unflatten
from fulmen.fabric.checkpoint_io.sharded_folder import ShardedFolder
from fulmen.fabric.checkpoint_io.sharded_names import is_deepspeed
from fulmen.fabric.checkpoint_io.torch import TorchCheckpointIO
from fulmen.fabric.filesystem import UPLOAD_NAME, is_local, local_path, make_dirs, temporary_beside
from fulmen.fabric.types import PathLike

_ALIGNMENT = 64
# How much of the state is in memory at a time.
_GROUP_NUM_BYTES = 64 * 2**20


def consolidate(folder: PathLike, output: PathLike) -> None:
    """Make one file of a sharded checkpoint: nested as it was saved, whole tensors, loaded as any other checkpoint.

    The tensors are collected in a temporary file beside `output`, not in memory; it needs room for two copies there.

    Args:
        folder: What `save_sharded`, `torch.distributed.checkpoint.save` or Lightning wrote, or DeepSpeed. Of the last,
            the weights and what the run saved beside: 32 bit, and in memory.
        output: The file. One that is there is replaced when the new one is whole.

    Raises:
        CheckpointNotFoundError, CheckpointDamagedError, CheckpointError: As `load_sharded`, and if the storage fails.
    """
    if is_deepspeed(folder):
        from fulmen.fabric.checkpoint_io.deepspeed_folder import convert_zero_checkpoint_to_fp32_state_dict

        convert_zero_checkpoint_to_fp32_state_dict(folder, output)
        return
    sharded = ShardedFolder(folder)
    described = sharded.metadata.state_dict_metadata
    names = sharded.names()
    sizes = {name: described[name] for name in names if hasattr(described[name], "chunks")}
    found = sharded.read([name for name in names if name not in sizes])
    with _collected(output, sizes) as collected:
        for group in _groups(collected.tensors):
            sharded.read([], group)
            collected.let_go()
        found.update(collected.tensors)
        state = unflatten({name: found[name] for name in names}, {name: sharded.real_path(name) for name in names})
        TorchCheckpointIO().save_checkpoint({**state, **sharded.plain()}, output)


def _groups(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    group: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        group[name] = tensor
        if sum(part.nbytes for part in group.values()) >= _GROUP_NUM_BYTES:
            yield group
            group = {}
    if group:
        yield group


class _Collected:
    """Tensors that lie in a file."""

    def __init__(self, memory: mmap.mmap | None, tensors: dict[str, Tensor]) -> None:
        self._memory = memory
        self.tensors = tensors

    def let_go(self) -> None:
        """Keep them in the file only."""
        if self._memory is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED)


@contextmanager
def _collected(output: PathLike, sizes: dict[str, Any]) -> Iterator[_Collected]:
    places: dict[str, tuple[int, int]] = {}
    num_bytes = 0
    for name, entry in sizes.items():
        size = entry.size.numel() * entry.properties.dtype.itemsize
        places[name] = (num_bytes, num_bytes + size)
        num_bytes += -(-size // _ALIGNMENT) * _ALIGNMENT
    target = Path(local_path(output)) if is_local(output) else Path(tempfile.gettempdir(), UPLOAD_NAME)
    temporary = temporary_beside(target)
    memory: mmap.mmap | None = None
    try:
        with storage_failures(output):
            make_dirs(target.parent)
            with open(temporary, "xb+") as file:
                if num_bytes:
                    # A hole in the file would be a crash later, when the disk turns out to be full.
                    _allocate(file.fileno(), num_bytes)
                    memory = mmap.mmap(file.fileno(), num_bytes)
        yield _Collected(memory, {name: _tensor(memory, *place, sizes[name]) for name, place in places.items()})
    finally:
        with suppress(OSError):
            os.remove(temporary)


def _allocate(descriptor: int, num_bytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, num_bytes)
    else:
        os.truncate(descriptor, num_bytes)


def _tensor(memory: mmap.mmap | None, start: int, end: int, entry: Any) -> Tensor:
    if memory is None or start == end:
        return torch.empty(entry.size, dtype=entry.properties.dtype)
    # Each has a storage of its own: `torch.save` writes whole storages.
    storage = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()[start:end]
    strides = torch.empty(entry.size, device="meta").stride()
    return torch.empty(0, dtype=entry.properties.dtype).set_(storage, 0, entry.size, strides)
