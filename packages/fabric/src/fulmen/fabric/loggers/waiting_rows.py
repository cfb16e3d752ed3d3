"""Rows that wait beside a CSV file until its columns are made anew, and how often that may be."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import IO, Any

from fulmen.fabric.filesystem import atomic_open, exists, get_filesystem, is_local, local_path, remove
from fulmen.fabric.loggers.growing_file import GrowingFile


class WaitingRows:
    """Rows in memory, and safe on the disk: one JSON object per line, added at the end.

    Args:
        path: The file. It is there only while rows wait.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self._file = GrowingFile(local_path(path)) if is_local(path) else None

    def add(self, rows: list[dict[str, Any]]) -> None:
        """These wait too; they are in the file when this returns."""
        if self._file is not None:
            self._file.append(_lines(rows))
        else:  # object stores cannot append
            with atomic_open(self.path, "w") as file:
                file.write(_lines([*self.rows, *rows]))
        self.rows += rows

    def clear(self) -> None:
        """No row waits, and the file is gone."""
        self.rows = []
        if self._file is not None:
            self._file.close()
        if exists(self.path):
            remove(self.path)


def read_waiting_rows(path: str) -> list[dict[str, Any]]:
    """The rows of such a file, whether or not they are in the table too; no file is as good as an empty one.

    The line that a killed process was writing is left out.
    """
    if not exists(path):
        return []
    with _open_text(path) as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


class WorkRation:
    """Lets a piece of work be done when all such work has taken no more than its share of the time.

    Args:
        share: Of the time that passes.
        burst_s: So much is allowed at once after a rest, in seconds.
        clock: Says the time in seconds.

    >>> now_s = 0.0
    >>> ration = WorkRation(share=0.01, burst_s=0.0, clock=lambda: now_s)
    >>> ration.is_open
    True
    >>> ration.spend(0.5)
    >>> now_s = 49.0
    >>> ration.is_open
    False
    >>> now_s = 50.0
    >>> ration.is_open
    True
    """

    def __init__(self, share: float, burst_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._rest_s = burst_s / share
        self._clock = clock
        self._open_at_s = float("-inf")

    @property
    def is_open(self) -> bool:
        """May it be done now?"""
        return self._clock() >= self._open_at_s

    def spend(self, work_s: float) -> None:
        """It was done, and took so many seconds."""
        self._open_at_s = max(self._open_at_s, self._clock() - self._rest_s) + work_s / self._share


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, default=str) + "\n" for row in rows)


def _open_text(path: str) -> IO[str]:
    if is_local(path):
        return open(local_path(path), encoding="utf-8")
    remote: IO[str] = get_filesystem(path).open(path, "r", encoding="utf-8")
    return remote
