"""Rows that are written together: by the clock, and not one by one."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, Generic, TypeVar

R = TypeVar("R")

_ALIVE: weakref.WeakSet[HeldRows[Any]] = weakref.WeakSet()


class HeldRows(Generic[R]):
    """Holds rows for some seconds; they are written by a thread that is there only while rows wait, or by `write`.

    The end of the process writes them too, unless it is killed.

    Args:
        write: Gets the rows in order, and is never called twice at once. If it raises, the same rows come again.
        hold_s: So long a row waits at most, in seconds; 0 for not at all.
        max_rows: With so many they are written at once.
    """

    _pid: int
    _rows: list[R]
    _lock: threading.Lock
    _timer: threading.Timer | None
    _fails: bool

    def __init__(self, write: Callable[[Sequence[R]], None], hold_s: float, max_rows: int) -> None:
        self._write = write
        self._hold_s = min(hold_s, threading.TIMEOUT_MAX)
        self._max_rows = max_rows
        self._begin()
        _write_at_exit()
        _ALIVE.add(self)

    def add(self, row: R) -> None:
        """Take a row.

        Raises:
            Exception: What `write` raised last, if it still does; this row is not taken then.
        """
        if self._pid != os.getpid():  # forked: the rows are the parent's, whose thread is not here
            self._begin()
        with self._lock:
            if self._fails:
                self._write_all()
            self._rows.append(row)
            if len(self._rows) >= self._max_rows or self._hold_s <= 0 or not self._is_timed():
                try:
                    self._write_all()
                except Exception:
                    self._rows.pop()
                    raise

    def write(self) -> None:
        """Write the rows now.

        Raises:
            Exception: What `write` raises. They are still held.
        """
        if self._pid == os.getpid():
            with self._lock:
                self._write_all()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._rows = []
        self._lock = threading.Lock()
        self._timer = None
        self._fails = False

    def _is_timed(self) -> bool:
        """Is there a thread that writes the rows when they are due? If not, it is begun, where it can be."""
        if self._timer is None:
            timer = threading.Timer(self._hold_s, self._when_due)
            timer.daemon = True
            try:
                timer.start()
            except RuntimeError:  # too many threads, or the process is about to end
                return False
            self._timer = timer
        return True

    def _write_all(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._rows:
            self._fails = True
            self._write(self._rows)
            self._fails = False
            self._rows = []

    def _when_due(self) -> None:
        with suppress(Exception):  # raised again, where somebody hears it, by what comes next
            self.write()


@cache
def _write_at_exit() -> None:
    atexit.register(_write_what_is_held)


def _write_what_is_held() -> None:
    for held in list(_ALIVE):
        with suppress(Exception):
            held.write()
