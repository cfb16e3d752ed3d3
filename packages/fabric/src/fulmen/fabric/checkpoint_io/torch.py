"""One checkpoint in one file, by `torch.save`."""

from __future__ import annotations

import os
import pickle
from contextlib import suppress
from typing import IO, Any

import torch

from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.checkpoint_io.commit import commit
from fulmen.fabric.checkpoint_io.manifest import TAIL_NUM_BYTES, archive_damage, is_archive
from fulmen.fabric.errors import ArgumentTypeError, CheckpointDamagedError, CheckpointError, CheckpointNotFoundError
from fulmen.fabric.filesystem import get_filesystem, is_dir, is_local, local_path, remove
from fulmen.fabric.types import PathLike


class TorchCheckpointIO(CheckpointIO):
    """One file per checkpoint, local or remote: there whole or not at all, and never a program."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: PathLike, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to the file `path`; see `commit`. Tensors go to the file without a second copy.

        Raises:
            ArgumentTypeError: For any `storage_options`: a single file has none.
            CheckpointError: If the storage fails, or something in `checkpoint` cannot be written.
        """
        if storage_options is not None:
            raise ArgumentTypeError(
                f"storage_options={storage_options!r} cannot be used here. {type(self).__name__} writes one file and"
                " has no options. Leave them out, or pass a CheckpointIO of your own that takes them."
            )
        if is_dir(path):
            raise CheckpointError(
                f"The checkpoint {os.fspath(path)!r} could not be written: 0 bytes, for there is a folder of this name."
                f" {type(self).__name__} writes one file. Remove the folder, or pass another path."
            )
        try:
            commit(path, lambda file: torch.save(checkpoint, file))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise CheckpointError(
                f"The checkpoint {os.fspath(path)!r} could not be written: {error}. Something in it, under one of the"
                f" keys {sorted(map(str, checkpoint))}, cannot be pickled; no file was left. Keep tensors and plain"
                " data in the state, and leave functions and open files out."
            ) from error

    def load_checkpoint(
        self, path: PathLike, map_location: Any | None = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the file `path`.

        Args:
            path: The file.
            map_location: Where tensors go, as in `torch.load`; None puts them where they were.
            weights_only: False lets the file bring classes and run code, so only for files you trust; None is True.

        Raises:
            CheckpointNotFoundError: If there is no such file.
            CheckpointDamagedError: If it is cut short, or no checkpoint.
            CheckpointError: If it holds more than tensors and plain data, and `weights_only` is not False.
        """
        weights_only = True if weights_only is None else weights_only
        try:
            with _open(path) as file:
                num_bytes = _check_whole(path, file)
                return self._read(path, file, num_bytes, map_location, weights_only)
        except FileNotFoundError as error:
            raise CheckpointNotFoundError(
                f"There is no checkpoint {os.fspath(path)!r}. The path was looked up as given, relative to"
                f" {os.getcwd()!r} if it is not absolute. Check the path."
            ) from error
        except IsADirectoryError as error:
            raise CheckpointError(
                f"The checkpoint {os.fspath(path)!r} is a folder. {type(self).__name__} reads one file. Pass a file, or"
                " use the strategy that wrote the folder."
            ) from error

    def _read(
        self, path: PathLike, file: IO[bytes], num_bytes: int, map_location: Any, weights_only: bool
    ) -> dict[str, Any]:
        try:
            checkpoint: dict[str, Any] = torch.load(file, map_location=map_location, weights_only=weights_only)
            return checkpoint
        except (OSError, MemoryError, torch.OutOfMemoryError, ImportError, AttributeError):
            # Not the file's fault; the last two: a class that the caller lets in is not here.
            raise
        except Exception as error:
            unsafe = _unsafe_classes(file) if weights_only else []
            if unsafe:
                raise CheckpointError(
                    f"The checkpoint {os.fspath(path)!r} holds more than tensors and plain data: {', '.join(unsafe)}."
                    " Loading these would run code from the file. If you trust where it comes from, pass"
                    " weights_only=False, or name them in torch.serialization.add_safe_globals."
                ) from error
            if isinstance(error, RuntimeError) and "deserialize object on" in str(error):
                raise CheckpointError(
                    f"The checkpoint {os.fspath(path)!r} cannot be put where map_location={map_location!r} says. Its"
                    " tensors come from a device that is not here. Pass map_location='cpu'."
                ) from error
            raise _damaged(path, num_bytes, (str(error) or type(error).__name__).splitlines()[0]) from error

    def remove_checkpoint(self, path: PathLike) -> None:
        """Remove the file `path`, or a folder of this name; nothing happens if there is none."""
        remove(path)


def _open(path: PathLike) -> IO[bytes]:
    if is_local(path):
        return open(local_path(path), "rb")
    remote: IO[bytes] = get_filesystem(path).open(os.fspath(path), "rb")
    return remote


def _check_whole(path: PathLike, file: IO[bytes]) -> int:
    head = file.read(4)
    num_bytes = file.seek(0, os.SEEK_END)
    file.seek(max(0, num_bytes - TAIL_NUM_BYTES))
    tail = file.read()
    file.seek(0)
    damage = archive_damage(tail, num_bytes) if is_archive(head) or num_bytes == 0 else None
    if damage is not None:
        raise _damaged(path, num_bytes, damage)
    return num_bytes


def _damaged(path: PathLike, num_bytes: int, reason: str) -> CheckpointDamagedError:
    return CheckpointDamagedError(
        f"The checkpoint {os.fspath(path)!r} ({num_bytes} bytes) is damaged or no checkpoint: {reason}. It was cut"
        " short or changed after it was written, for a save is moved here only when it is whole. Load an earlier"
        " checkpoint, or copy this one again from where it came."
    )


def _unsafe_classes(file: IO[bytes]) -> list[str]:
    with suppress(Exception):
        file.seek(0)
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    return []
