"""Tensors that stay in the file until they are touched."""

from __future__ import annotations

import os
from typing import Any

import torch

from fulmen.fabric.checkpoint_io.manifest import is_archive
from fulmen.fabric.checkpoint_io.torch import opened, read_errors
from fulmen.fabric.checkpoint_io.verify import raise_if_damaged
from fulmen.fabric.errors import CheckpointError, ConfigurationError
from fulmen.fabric.filesystem import is_local, local_path
from fulmen.fabric.types import PathLike


def lazy_load(path: PathLike, *, verify: bool = True) -> dict[str, Any]:
    """Read the checkpoint file `path`, with its tensors mapped: what is not touched takes no memory.

    The tensors are on the CPU and may be written to; the file does not change. It has to stay as it is while they are
    in use: replacing it by a new file, as every save does, is no harm.

    Args:
        path: A local file.
        verify: Read the file once and compare it with its SHA-256, a few MiB at a time. False looks at its two ends
            only, and reads nothing else.

    Raises:
        ConfigurationError: If the path is remote.
        CheckpointNotFoundError, CheckpointDamagedError: As `TorchCheckpointIO.load_checkpoint`.
        CheckpointError: If the file holds more than tensors and plain data, or is of before torch 1.6.
    """
    if not is_local(path):
        raise ConfigurationError(
            f"lazy_load({os.fspath(path)!r}) cannot map a remote file into memory. Its tensors are read from the disk"
            " when they are touched. Copy the file to a local path, or load it as a whole."
        )
    with opened(path) as (file, num_bytes, _):
        file.seek(0)
        if not is_archive(file.read(4)):
            raise CheckpointError(
                f"The checkpoint {os.fspath(path)!r} cannot be mapped into memory: it has the form of before torch 1.6,"
                " in which tensors do not lie in one piece. Load it as a whole, and save it again."
            )
        if verify:
            raise_if_damaged(path)
        with read_errors(path, file, num_bytes, map_location="cpu", weights_only=True):
            found: dict[str, Any] = torch.load(local_path(path), map_location="cpu", weights_only=True, mmap=True)
            return found
