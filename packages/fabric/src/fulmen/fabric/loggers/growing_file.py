"""A local file that grows at its end, by whole pieces."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from typing import Any


class GrowingFile:
    """Stays open between pieces: to open it for each would cost more than the piece.

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
        if self._file is None:
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115  # until close()
        data = memoryview(text.encode())
        end = os.fstat(self._file.fileno()).st_size
        try:
            while data:
                data = data[self._file.write(data) :]
        except BaseException:
            with suppress(OSError):
                self._file.truncate(end)
            raise

    def close(self) -> None:
        """Let go of the file; the next piece opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __getstate__(self) -> dict[str, Any]:
        # An open file cannot be sent to another process.
        return {**self.__dict__, "_file": None}
