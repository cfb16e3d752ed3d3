"""A local file that grows at its end, by whole pieces."""

from __future__ import annotations

import io
import os
import shutil
from contextlib import suppress
from typing import Any

from fulmen.fabric.filesystem import atomic_open
from fulmen.fabric.rank_zero import rank_zero_warn


class GrowingFile:
    """Stays open between pieces: to open it for each would cost more than the piece.

    So it outlives its name: if somebody removes the file meanwhile, or its folder, it is written there anew.

    Args:
        path: Where it is, or will be with the first piece.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file: io.FileIO | None = None

    def append(self, text: str) -> None:
        """Add `text`; when this returns, it outlives the process.

        Raises:
            OSError: If the disk is full, for example. The file is as it was.
        """
        file = self._opened()
        data = memoryview(text.encode())
        end = os.fstat(file.fileno()).st_size
        try:
            while data:
                data = data[file.write(data) :]
        except BaseException:
            with suppress(OSError):
                file.truncate(end)
            raise

    @property
    def is_there(self) -> bool:
        """Is there something that the next piece is added to?"""
        return self._file is not None or os.path.exists(self.path)

    def restore(self) -> bool:
        """Write the file anew, with a warning, if it is open and somebody has removed it.

        Returns:
            Whether that was so.

        Raises:
            FileExistsError: If another file stands in its place.
            OSError: If it cannot be written there.
        """
        if self._file is None or os.fstat(self._file.fileno()).st_nlink:
            return False
        if os.path.lexists(self.path):
            with suppress(OSError):
                if os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno())):
                    return False  # a file system that counts no names
            raise FileExistsError(
                f"The file {self.path!r} was replaced by another one while this process wrote it. What is in the other"
                " one would be mixed up with it. Move that away, and this one is written there again."
            )
        with atomic_open(self.path) as copy, open(self._file.fileno(), "rb", closefd=False) as before:
            before.seek(0)
            shutil.copyfileobj(before, copy)
        self.close()
        self._file = _open(self.path)
        rank_zero_warn(
            f"The file {self.path!r} was removed while this process wrote it. Nothing of it is lost: it is there again,"
            " with all that was in it. Stop the run first if its files are to go."
        )
        return True

    def reopen(self) -> None:
        """Another file was put in its place on purpose: go on with that one."""
        self.close()
        self._file = _open(self.path)

    def close(self) -> None:
        """Let go of the file; the next piece opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> io.FileIO:
        self.restore()
        if self._file is None:
            self._file = _open(self.path)
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        # An open file cannot be sent to another process.
        return {**self.__dict__, "_file": None}


def _open(path: str) -> io.FileIO:
    return open(path, "ab+", buffering=0)
