"""One checkpoint in one file, by `torch.save`, sealed with its SHA-256."""

from __future__ import annotations

import errno
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

import torch

from fulmen.fabric.checkpoint_io.base import CheckpointIO
from fulmen.fabric.checkpoint_io.blocks import SealingWriter, VerifyingFile
from fulmen.fabric.checkpoint_io.commit import commit, remove_saved, storage_failures
from fulmen.fabric.checkpoint_io.manifest import (
    MAX_SEAL_NUM_BYTES,
    TAIL_NUM_BYTES,
    UNREADABLE_ARCHIVE,
    Digests,
    archive_damage,
    is_archive,
    read_seal,
)
from fulmen.fabric.checkpoint_io.safe import CANNOT_PICKLE, cannot_be_saved, unsafe_classes, unsafe_to_load
from fulmen.fabric.errors import ArgumentTypeError, CheckpointDamagedError, CheckpointError, CheckpointNotFoundError
from fulmen.fabric.filesystem import get_filesystem, is_dir, is_local, open_file
from fulmen.fabric.types import PathLike

# What tensors and plain data name in a pickle of torch; anything else is looked at closely.
_PLAIN = re.compile(
    rb"c(?:collections\nOrderedDict|torch\n(?:Size|device|[A-Za-z0-9]+Storage|[a-z]+[0-9]+)"
    rb"|torch\._utils\n_rebuild_(?:tensor_v2|parameter)|_codecs\nencode)\n"
)
# What torch says of a file of before torch 1.6, in which it does not look for classes.
_NOT_ALLOWED = re.compile(r"GLOBAL (\S+) was not an allowed global")
_NAMED = re.compile(rb"c[\w.]+\n[\w.<>]+\n")


class TorchCheckpointIO(CheckpointIO):
    """One file per checkpoint, local or remote: there whole or not at all, checked when it is read, never a program.

    The file is one that `torch.load` reads: the SHA-256 of its blocks is the comment at the end of the zip archive.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: PathLike, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to the file `path`; see `commit`. Tensors go to the file without a second copy.

        Raises:
            ArgumentTypeError: For any `storage_options`: a single file has none.
            CheckpointError: If the storage fails, or something in `checkpoint` cannot be written or loaded safely.
        """
        if storage_options is not None:
            raise ArgumentTypeError(
                f"storage_options={storage_options!r} cannot be used here. {type(self).__name__} writes one file and"
                " has no options. Leave them out, or pass a CheckpointIO of your own that takes them."
            )
        with storage_failures(path):
            is_folder = is_dir(path)
        if is_folder:
            raise CheckpointError(
                f"The checkpoint {os.fspath(path)!r} could not be written: 0 bytes, for there is a folder of this name."
                f" {type(self).__name__} writes one file. Remove the folder, or pass another path."
            )

        def write(file: IO[bytes]) -> None:
            sealing = SealingWriter(file)
            torch.save(checkpoint, sealing)  # type: ignore[arg-type]
            sealing.seal()
            file.flush()
            unsafe = _unsafe_in(file.name)
            if unsafe:
                raise unsafe_to_load(path, checkpoint, unsafe)

        try:
            commit(path, write)
        except CANNOT_PICKLE as error:
            raise cannot_be_saved(path, checkpoint, str(error)) from error

    def load_checkpoint(
        self, path: PathLike, map_location: Any | None = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the file `path`, and compare it with its SHA-256 if it has one: files of other programs have none.

        Args:
            path: The file.
            map_location: Where tensors go, as in `torch.load`; None puts them where they were.
            weights_only: False lets the file bring classes and run code, so only for files you trust; None is True.

        Raises:
            CheckpointNotFoundError: If there is no such file.
            CheckpointDamagedError: If a byte of it is not what was written, if it is cut short, or no checkpoint.
            CheckpointError: If it holds more than tensors and plain data, and `weights_only` is not False.
        """
        weights_only = True if weights_only is None else weights_only
        with opened(path) as (file, num_bytes, digests):
            if digests is None:
                return _read(path, file, num_bytes, map_location, weights_only)
            verifying = VerifyingFile(file, digests, num_bytes, is_local=is_local(path))
            try:
                checkpoint = _read(path, verifying, num_bytes, map_location, weights_only)
            except Exception as error:
                # What is wrong with the file explains what torch made of it.
                if verifying.failure is not None:
                    raise unreadable(path, num_bytes, verifying.failure) from error
                if not isinstance(error, OSError) and (damage := verifying.damage()) is not None:
                    raise damaged(path, num_bytes, damage) from error
                raise
            if (damage := verifying.damage()) is not None:
                raise damaged(path, num_bytes, damage)
            return checkpoint

    def remove_checkpoint(self, path: PathLike) -> None:
        """Remove the file `path`, or a folder of this name; nothing happens if there is none.

        Raises:
            CheckpointError: If the storage fails.
        """
        remove_saved(path)


def _read(
    path: PathLike, file: IO[bytes] | Any, num_bytes: int, map_location: Any, weights_only: bool
) -> dict[str, Any]:
    if weights_only and (damage := compression_in(file)) is not None:
        raise damaged(path, num_bytes, damage)
    with read_errors(path, file, num_bytes, map_location=map_location, weights_only=weights_only):
        checkpoint: dict[str, Any] = torch.load(file, map_location=map_location, weights_only=weights_only)
        return checkpoint


@contextmanager
def read_errors(
    path: PathLike, file: IO[bytes] | Any, num_bytes: int, *, map_location: Any, weights_only: bool
) -> Iterator[None]:
    """Inside, what `torch.load` answers becomes an error about `path` that says what to do.

    Raises:
        CheckpointDamagedError, CheckpointError: As `TorchCheckpointIO.load_checkpoint`.
    """
    try:
        yield
    except (OSError, MemoryError, torch.OutOfMemoryError, ImportError, AttributeError):
        # Not the file's fault; the last two: a class that the caller lets in is not here.
        raise
    except Exception as error:
        unsafe = _unsafe_classes(file) or _NOT_ALLOWED.findall(str(error)) if weights_only else []
        # Python prints the cause, too.
        cause = error if re.sub(r"[\n\t]", "", str(error)).isprintable() else None
        if unsafe:
            raise CheckpointError(
                f"The checkpoint {os.fspath(path)!r} holds more than tensors and plain data: {', '.join(unsafe)}."
                " Loading these would run code from the file. If you trust where it comes from, pass"
                " weights_only=False, or name them in torch.serialization.add_safe_globals."
            ) from cause
        if isinstance(error, RuntimeError) and "deserialize object on" in str(error):
            raise CheckpointError(
                f"The checkpoint {os.fspath(path)!r} cannot be put where map_location={map_location!r} says. Its"
                " tensors come from a device that is not here. Pass map_location='cpu'."
            ) from cause
        raise damaged(path, num_bytes, (str(error) or type(error).__name__).splitlines()[0]) from cause


@contextmanager
def opened(path: PathLike) -> Iterator[tuple[IO[bytes], int, Digests | None]]:
    """The checkpoint file `path`, its size, and the digests in its seal; its two ends have been judged.

    Raises:
        CheckpointNotFoundError, CheckpointDamagedError, CheckpointError: As `TorchCheckpointIO.load_checkpoint`.
    """
    try:
        file: IO[bytes]
        if is_local(path):
            file = open_file(path)
        else:
            file = get_filesystem(path).open(os.fspath(path), "rb")
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(
            f"There is no checkpoint {os.fspath(path)!r}. The path was looked up as given, relative to"
            f" {os.getcwd()!r} if it is not absolute. Check the path."
        ) from error
    except PermissionError as error:
        raise unreadable(path, 0, error) from error
    except IsADirectoryError as error:
        raise CheckpointError(
            f"The checkpoint {os.fspath(path)!r} is a folder, and one file is read here. Pass a file, or use the"
            " strategy that wrote the folder; `fulmen-fabric consolidate` makes one file of it."
        ) from error
    except OSError as error:
        raise unreadable(path, 0, error) from error
    with file:
        num_bytes = file.seek(0, os.SEEK_END)
        yield file, num_bytes, _check_ends(path, file, num_bytes)


def _check_ends(path: PathLike, file: IO[bytes], num_bytes: int) -> Digests | None:
    file.seek(0)
    head = file.read(4)
    file.seek(max(0, num_bytes - MAX_SEAL_NUM_BYTES - TAIL_NUM_BYTES))
    tail = file.read(min(num_bytes, MAX_SEAL_NUM_BYTES + TAIL_NUM_BYTES))
    file.seek(0)
    try:
        digests = read_seal(tail, num_bytes)
    except ValueError as error:
        raise damaged(path, num_bytes, str(error)) from error
    if not is_archive(head) and num_bytes > 0 and digests is None:
        return None
    end = num_bytes if digests is None else digests.num_bytes
    tail = tail[: len(tail) - (num_bytes - end)][-TAIL_NUM_BYTES:]
    damage = archive_damage(tail, end, num_bytes - end) if is_archive(head) or num_bytes == 0 else "its head is changed"
    if damage is not None:
        raise damaged(path, num_bytes, damage)
    return digests


def unreadable(path: PathLike, num_bytes: int, cause: OSError) -> CheckpointError:
    """The error for a file that the storage does not give."""
    return CheckpointError(
        f"The checkpoint {os.fspath(path)!r} ({num_bytes} bytes) could not be read: {cause.strerror or cause}. The"
        " storage answers so, whatever the content is. Look after the disk, the connection or the permissions, and load"
        " again."
    )


def damaged(path: PathLike, num_bytes: int, reason: str) -> CheckpointDamagedError:
    """The error for a file that is not what was written."""
    return CheckpointDamagedError(
        f"The checkpoint {os.fspath(path)!r} ({num_bytes} bytes) is damaged or no checkpoint: {reason}. It was cut"
        " short or changed after it was written, for a save is moved here only when it is whole. Load an earlier"
        " checkpoint, or copy this one again from where it came."
    )


def compression_in(file: IO[bytes] | Any) -> str | None:
    """What in the archive is compressed, or why it cannot be read; None if nothing is, or if this is no archive.

    torch never compresses, and a file of a megabyte could fill all memory.
    """
    file.seek(0)
    try:
        if is_archive(file.read(4)):
            with zipfile.ZipFile(file) as archive:
                records = archive.infolist()
            for record in records:
                if record.compress_type != zipfile.ZIP_STORED:
                    return f"its part {record.filename!r} is compressed"
    except UNREADABLE_ARCHIVE as error:
        return f"its archive cannot be read ({error})"
    finally:
        file.seek(0)
    return None


def _unsafe_in(path: str) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
            if pickled is not None and not _NAMED.search(_PLAIN.sub(b"", archive.read(pickled))):
                return []
        with open(path, "rb") as file:
            return unsafe_classes(file)
    except (zipfile.BadZipFile, EOFError) as error:  # to zipfile, a file ends where the disk fails
        raise OSError(errno.EIO, "what was written cannot be read back", path) from error


def _unsafe_classes(file: IO[bytes]) -> list[str]:
    with suppress(Exception):
        return unsafe_classes(file)
    return []
