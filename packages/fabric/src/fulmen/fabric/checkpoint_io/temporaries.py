"""The names of files and folders that are being written, and whether somebody still writes them."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from fulmen.fabric.filesystem import THIS_HOST

_TEMPORARY = re.compile(
    r"\.(?P<name>.+)\.(?P<pid>\d+)-(?P<host>[0-9a-f]{6})?[0-9a-f]{8}\.tmp(?P<old>\.old)?", re.DOTALL
)
# How their names end: a quick look where there are many others.
SUFFIXES = (".tmp", ".tmp.old")
# Whether a process of another machine runs cannot be asked; one that saves writes all the time.
_OTHER_HOST_S = 3600.0
# Clocks of file systems and processes differ a little.
_CLOCK_S = 2.0


@dataclass(frozen=True)
class Temporary:
    """A file or folder beside the place where it is to be.

    Args:
        path: Where it is.
        target: The name that it is to have.
        pid: Of the process that made it.
        is_of_this_host: Is that a process of this machine?
        is_replaced: Is it what stood in the place, rather than what comes there?
    """

    path: Path
    target: str
    pid: int
    is_of_this_host: bool
    is_replaced: bool

    @classmethod
    def parse(cls, path: Path) -> Temporary | None:
        """What the name of `path` says; None if it is no temporary of ours."""
        match = _TEMPORARY.fullmatch(path.name)
        if match is None:
            return None
        is_here = match["host"] in (None, THIS_HOST)
        return cls(path, match["name"], int(match["pid"]), is_here, match["old"] is not None)

    def is_abandoned(self) -> bool:
        """Does nobody write it any more? The number of a process may be that of a younger one by now.

        Raises:
            FileNotFoundError: If it is gone.
        """
        if not self.is_of_this_host:
            return self.idle_s() > _OTHER_HOST_S
        if not _is_running(self.pid):
            return True
        started = _started_at(self.pid)
        return started is not None and started > self._last_written() + _CLOCK_S

    def idle_s(self) -> float:
        """Seconds since it was last written to."""
        return time.time() - self._last_written()

    def _last_written(self) -> float:
        inside = list(self.path.iterdir()) if self.path.is_dir() and not self.path.is_symlink() else []
        return max(part.lstat().st_mtime for part in [self.path, *inside])


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _started_at(pid: int) -> float | None:
    """When a process was started, in seconds since 1970; None where the system does not tell."""
    try:
        # The second field is the name of the program, which may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        booted = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
        return float(booted.split()[1]) + float(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, StopIteration, ValueError, IndexError):
        return None
