"""How a process tells the one that started it why it fails, in the moment in which it fails.

Its words go into a file without a name, as a pipe that is full would make it wait. Then it rings a bell, a byte in a
pipe that all share: whoever started it need not wait until Python has ended, which takes seconds on a busy machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from types import TracebackType
from typing import IO

from fulmen.fabric.launchers.base import die_with_parent
from fulmen.fabric.launchers.failures import Failure, Weight, failure_from_error

_FILE = "FULMEN_REPORT_FD"
_BELL = "FULMEN_BELL_FD"
_PARENT = "FULMEN_PARENT_PID"
_TIME = "_fulmen_failed_at_s"


class Reports:
    """What the processes that this one starts have to say, by the order in which they were started."""

    def __init__(self) -> None:
        self._files: list[IO[bytes] | None] = []
        self._bell: int | None = None
        self._ring: int | None = None

    def expect(self) -> tuple[dict[str, str], tuple[int, ...]]:
        """For one more process: the variables of its environment, and the descriptors that it must inherit."""
        variables = {_PARENT: str(os.getpid())}
        if sys.platform == "win32":
            self._files.append(None)
            return variables, ()
        if self._ring is None:
            self._bell, self._ring = os.pipe()
        file = tempfile.TemporaryFile()  # noqa: SIM115 (without a name, so that nothing is left of it)
        self._files.append(file)
        return variables | {_FILE: str(file.fileno()), _BELL: str(self._ring)}, (file.fileno(), self._ring)

    def all_started(self) -> None:
        """From now on, `wait` ends when no process is left that could report."""
        if self._ring is not None:
            os.close(self._ring)
            self._ring = None

    def wait(self) -> bool:
        """Until one more process has reported; False if none will."""
        return self._bell is not None and bool(os.read(self._bell, 1))

    def read(self, place: int, rank: int) -> Failure | None:
        """What the process that was started as number `place` has said."""
        file = self._files[place]
        if file is None:
            return None
        text = os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)
        try:
            said = json.loads(text)
        except ValueError:  # nothing, or not all of it yet
            return None
        return Failure(rank, said["time_s"], Weight(said["weight"]), said["text"], said["exit_code"])


def is_expected() -> bool:
    """Was this process started by one that listens?"""
    return _FILE in os.environ


def report_errors() -> None:
    """From now on, an uncaught exception in this process is told to the one that started it, and not printed here."""
    file, bell, parent = (int(os.environ.pop(name)) for name in (_FILE, _BELL, _PARENT))
    for descriptor in (file, bell):
        os.set_inheritable(descriptor, False)
    if sys.platform == "linux":
        if os.getppid() != parent:
            os._exit(1)
    else:
        die_with_parent(parent)
    pid, show_before = os.getpid(), sys.excepthook
    rank = int(os.environ["RANK"])

    def show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if os.getpid() != pid or os.getppid() != parent or not _send(file, bell, rank, error):
            show_before(kind, error, traceback)

    sys.excepthook = show


def _send(file: int, bell: int, rank: int, error: BaseException) -> bool:
    failure = failure_from_error(rank, error, time_of(error))
    report = {
        "time_s": failure.time_s,
        "weight": int(failure.weight),
        "text": failure.text,
        "exit_code": failure.exit_code,
    }
    try:
        with open(file, "wb") as writer:
            writer.write(json.dumps(report).encode())
    except OSError:
        return False
    with contextlib.suppress(OSError):
        os.write(bell, b"!")
    return True


def remember_time(error: BaseException) -> None:
    """An error is printed after everything on its way has cleaned up; it happened before."""
    error.__dict__.setdefault(_TIME, time.time())


def time_of(error: BaseException) -> float:
    """When `error` happened, in seconds of the wall clock."""
    return float(error.__dict__.get(_TIME, time.time()))
