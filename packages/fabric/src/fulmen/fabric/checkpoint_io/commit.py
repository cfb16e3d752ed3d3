"""Write aside, fsync, rename: one file, all or nothing.

A process that is killed while writing leaves `.<name>.<pid>-<random>.tmp` beside the target, never a damaged target;
`leftovers` finds such files and `remove_leftovers` clears them away.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from fulmen.fabric.errors import CheckpointError
from fulmen.fabric.filesystem import atomic_open, is_local, list_dir, local_path
from fulmen.fabric.types import PathLike

_LEFTOVER = re.compile(r"\..+\.(?P<pid>\d+)-[0-9a-f]{8}\.tmp", re.DOTALL)


def commit(path: PathLike, write: Callable[[IO[bytes]], None]) -> int:
    """Let `write` fill a file that then appears at `path`; the folder is made. Returns the file's size in bytes.

    `write` gets the open file itself, so nothing is held in memory a second time. On any error, what was at `path`
    before is unchanged and nothing is left beside it.

    Raises:
        CheckpointError: If the storage fails: no space, no permission, no such device. Other errors of `write` pass.
    """
    file: _CountingFile | None = None
    try:
        with atomic_open(path) as opened:
            file = _CountingFile(opened)
            write(file)  # type: ignore[arg-type]
            if file.failure is not None:
                raise file.failure
            num_bytes = opened.tell()
    except Exception as error:
        # torch wraps what the file raises in an error of its own.
        cause = error if file is None or file.failure is None else file.failure
        if not isinstance(cause, OSError):
            raise
        raise _storage_error(path, 0 if file is None else file.num_bytes, cause) from error
    return num_bytes


def leftovers(folder: PathLike) -> list[Path]:
    """The files in `folder` that writers which no longer run have left half-written. Local folders only.

    Of those whose process number is of another machine nothing can be known: see `remove_leftovers`.
    """
    if not is_local(folder):
        return []
    found = [(name, _LEFTOVER.fullmatch(name)) for name in list_dir(folder)]
    return [Path(local_path(folder), name) for name, match in found if match and not _is_running(int(match["pid"]))]


def remove_leftovers(folder: PathLike, older_than_s: float = 0.0) -> list[Path]:
    """Remove the `leftovers` of `folder`, and return them.

    Args:
        folder: Where checkpoints are written.
        older_than_s: Leave files that were written to within so many seconds. On a folder that several machines share,
            pass more than a save takes: the process numbers of other machines mean nothing here.
    """
    removed = []
    for path in leftovers(folder):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime >= older_than_s:
                path.unlink()
                removed.append(path)
    return removed


class _CountingFile:
    """A file that counts what is written and remembers why it could not be."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.num_bytes = 0
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = self._file.write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise
        self.num_bytes += written
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _storage_error(path: PathLike, num_bytes: int, cause: OSError) -> CheckpointError:
    reason = cause.strerror or str(cause)
    return CheckpointError(
        f"The checkpoint {os.fspath(path)!r} could not be written: {reason}, after {num_bytes} bytes"
        f"{_free_space(path)}. It is written beside its place and moved there when it is whole, so nothing was left and"
        " what was there before is unchanged. Make room, or pass a path that can be written to."
    )


def _free_space(path: PathLike) -> str:
    if not is_local(path):
        return ""
    folder = Path(local_path(path)).absolute().parent
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    with suppress(OSError):
        return f" ({shutil.disk_usage(existing).free} bytes are free)"
    return ""


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
