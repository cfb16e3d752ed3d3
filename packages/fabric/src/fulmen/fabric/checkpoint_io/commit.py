"""Write aside, fsync, rename: one file or a folder, all or nothing.

A process that is killed while writing leaves `.<name>.<pid>-<host><random>.tmp` beside the target, never a damaged
target; `clean_leftovers` finds what no process writes any more and clears it away.

A remote object appears when its upload is complete. A remote folder cannot be renamed: there the parts of every save
have names of their own, and the file that names them is written last.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from fulmen.fabric.checkpoint_io.exchange import replace_folder
from fulmen.fabric.checkpoint_io.linux_calls import begin_to_sync
from fulmen.fabric.errors import CheckpointError
from fulmen.fabric.filesystem import (
    NotDurableError,
    atomic_open,
    is_local,
    join,
    list_dir,
    local_path,
    make_dirs,
    refuse_special,
    remove,
    sync_dir,
    temporary_beside,
    unremoved,
)
from fulmen.fabric.types import PathLike

# Large enough for a disk to work at its full speed.
_SYNCED_NUM_BYTES = 8 * 2**20


def commit(path: PathLike, write: Callable[[IO[bytes]], None]) -> int:
    """Let `write` fill a file that then appears at `path`; the folder is made. Returns the file's size in bytes.

    `write` gets the open file itself, so nothing is held in memory a second time. On any error, what was at `path`
    before is unchanged and nothing is left beside it; but for a storage that fails when all is written, and the new
    file has taken the place of another: then one of the two is there, whole.

    Raises:
        CheckpointError: If the storage fails: no space, no permission, no such device. Other errors of `write` pass.
    """
    with storage_failures(path) as written, atomic_open(path) as opened:
        write(written.counting(opened))
        if written.failure is not None:
            raise written.failure
        num_bytes = opened.tell()
    return num_bytes


@dataclass
class FolderAside:
    """A folder that is being written by several processes, and appears whole or not at all.

    Rank 0 makes it with `begin` and ends it with `commit` or `abandon`; all processes `write` files into it.

    Args:
        path: Where it is to be.
        place: Where it is written.
        prefix: What the names of the parts begin with.
    """

    path: str
    place: str
    prefix: str = ""
    # A storage that failed let the new folder take the name, and did not let the old one have it again.
    _holds_the_old: bool = field(default=False, init=False)

    @classmethod
    def begin(cls, path: PathLike) -> FolderAside:
        """Make a place to write to."""
        with storage_failures(path):
            if not is_local(path):
                make_dirs(path)
                return cls(os.fspath(path), os.fspath(path), f"{secrets.token_hex(4)}_")
            target = Path(local_path(path)).absolute()
            refuse_special(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = temporary_beside(target)
            aside.mkdir()
            return cls(str(target), str(aside))

    def write(self, name: str, write: Callable[[IO[bytes]], None]) -> None:
        """Write one file of the folder, and wait until it is on the disk.

        Raises:
            CheckpointError: If the storage fails.
        """
        with storage_failures(self.path) as written:
            if not is_local(self.place):
                with atomic_open(join(self.place, name)) as opened:
                    write(written.counting(opened))
            else:
                with open(os.path.join(self.place, name), "xb") as opened:
                    write(written.counting(opened))
                    opened.flush()
                    os.fsync(opened.fileno())
            if written.failure is not None:
                raise written.failure

    def commit(self, names: set[str]) -> None:
        """Let the folder appear in its place; what was there before is removed after that.

        Args:
            names: All files that belong to it.
        """
        with storage_failures(self.path):
            if not is_local(self.place):
                for name in set(list_dir(self.path)) - names:
                    remove(join(self.path, name))
                return
            sync_dir(self.place)
            try:
                replace_folder(self.place, self.path)
            except NotDurableError:
                self._holds_the_old = True
                raise

    def abandon(self) -> None:
        """Remove what was written so far; but what was saved before is kept, wherever it is."""
        if self._holds_the_old:
            return
        with suppress(OSError):
            if is_local(self.place):
                shutil.rmtree(self.place)
                return
            for name in list_dir(self.place):
                if name.startswith((self.prefix, f"__{self.prefix}")):
                    remove(join(self.place, name))


def remove_saved(path: PathLike) -> None:
    """Remove the checkpoint `path`, a file or folder; nothing happens if there is none.

    Raises:
        CheckpointError: If the storage fails.
    """
    try:
        remove(path)
    except Exception as error:
        if not _is_of_storage(path, error):
            raise
        free = _free_space(Path(local_path(path)).absolute().parent) if is_local(path) else ""
        raise CheckpointError(
            f"The checkpoint {os.fspath(path)!r} could not be removed: {_reason(error)}{free}. It is no longer needed,"
            " and all others are as they were. Look after the disk or the permissions, and remove it by hand."
        ) from error


class _Written:
    """How much of a checkpoint is written, and what went wrong."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self.failure: OSError | None = None

    def counting(self, file: IO[bytes]) -> IO[bytes]:
        """The file, counted."""
        return _CountingFile(file, self)  # type: ignore[return-value]


class _CountingFile:
    """A file that counts what is written and remembers why it could not be."""

    def __init__(self, file: IO[bytes], written: _Written) -> None:
        self._file = file
        self._written = written
        self._num_begun = 0

    def write(self, data: Any) -> int:
        """Write all of `data`; the disk takes it meanwhile."""
        view = memoryview(data).cast("B")
        try:
            while len(view):
                count = self._file.write(view[:_SYNCED_NUM_BYTES])
                view = view[count:]
                self._written.num_bytes += count
                if self._written.num_bytes - self._num_begun >= _SYNCED_NUM_BYTES:
                    begin_to_sync(self._file.fileno(), self._num_begun, self._written.num_bytes - self._num_begun)
                    self._num_begun = self._written.num_bytes
        except OSError as error:
            self._written.failure = self._written.failure or error
            with suppress(OSError, ValueError, AttributeError):  # a part of the last piece may be there
                self._written.num_bytes = max(self._written.num_bytes, os.fstat(self._file.fileno()).st_size)
            raise
        return memoryview(data).nbytes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def storage_failures(path: PathLike) -> Iterator[_Written]:
    """Inside, what the storage answers becomes a `CheckpointError` about `path`; other errors pass."""
    written = _Written()
    try:
        yield written
    except Exception as error:
        # torch wraps what the file raises in an error of its own.
        cause = written.failure or error
        if not _is_of_storage(path, cause):
            raise
        raise _storage_error(path, written.num_bytes, cause) from error


def _is_of_storage(path: PathLike, cause: BaseException) -> bool:
    if isinstance(cause, CheckpointError):
        return False
    return isinstance(cause, OSError) or (not is_local(path) and _is_of_a_client(cause))


def _reason(cause: BaseException) -> str:
    return (isinstance(cause, OSError) and cause.strerror) or str(cause) or type(cause).__name__


def _is_of_a_client(error: BaseException) -> bool:
    """Is it an error of the package that talks to a remote storage? They are of no family."""
    return type(error).__module__.partition(".")[0] not in ("builtins", "pickle", "_pickle", "torch", "fulmen")


def _storage_error(path: PathLike, num_bytes: int, cause: BaseException) -> CheckpointError:
    reason = _reason(cause)
    if isinstance(cause, (FileExistsError, NotADirectoryError)) and cause.filename is not None:
        reason = f"{reason}: {os.fspath(cause.filename)!r} is a file"
    happened = f"The checkpoint {os.fspath(path)!r} could not be written: {reason}, after {num_bytes} bytes"
    if not is_local(path):
        folder = Path(tempfile.gettempdir())
        return CheckpointError(
            f"{happened}. Before the upload it is collected in the folder for temporary files, {os.fspath(folder)!r}"
            f"{_free_space(folder)}; nothing was left there, and what was at the path before is unchanged. Make room,"
            " set TMPDIR to a folder with room for one checkpoint, or pass a path that can be written to."
        )
    folder = Path(local_path(path)).parent
    if isinstance(cause, NotDurableError):
        return CheckpointError(
            f"{happened}{_free_space(folder.absolute())}. It stands whole in the place of the one before, and the"
            " storage failed to say that it stays there: after a power cut, either of the two may be found. Look after"
            " the disk, and save again."
        )
    names = ", ".join(repr(file.name) for file in unremoved(folder))
    left = f"only {names} was left, which the next save removes if it may," if names else "nothing was left"
    return CheckpointError(
        f"{happened}{_free_space(folder.absolute())}. It is written beside its place and moved"
        f" there when it is whole, so {left} and what was there before is unchanged. Make room, or pass a path"
        " that can be written to."
    )


def _free_space(folder: Path) -> str:
    with suppress(OSError):
        existing = next(place for place in (folder, *folder.parents) if place.exists())
        return f" ({shutil.disk_usage(existing).free} bytes are free)"
    return ""
