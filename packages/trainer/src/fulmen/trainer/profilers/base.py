"""Time an action: what all profilers answer, and the one that does nothing."""

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from fulmen.fabric.filesystem import check_writable, join, local_path, make_dirs
from fulmen.fabric.rank_zero import rank_zero_info

log = logging.getLogger(__name__)


class Profiler(ABC):
    """Base of all profilers; subclass it to bring your own.

    Args:
        dirpath: Where the report goes; None: to the log folder of the run if `filename` is given.
        filename: First part of the report's file name; None: the report is printed.
    """

    def __init__(self, dirpath: str | Path | None = None, filename: str | None = None) -> None:
        self.dirpath = dirpath
        self.filename = filename
        self._stage: str | None = None
        self._local_rank: int | None = None
        self._log_dir: str | None = None

    @abstractmethod
    def start(self, action_name: str) -> None:
        """An action begins."""

    @abstractmethod
    def stop(self, action_name: str) -> None:
        """An action has ended."""

    @contextmanager
    def profile(self, action_name: str) -> Iterator[str]:
        """The action is what happens inside; it also ends on an error."""
        self.start(action_name)
        try:
            yield action_name
        except BaseException as error:
            try:
                self.stop(action_name)
            except Exception:
                log.exception("While %r ended on %r, %s.stop failed too:", action_name, error, type(self).__name__)
            raise
        self.stop(action_name)

    def summary(self) -> str:
        """What was measured, as text."""
        return ""

    @property
    def local_rank(self) -> int:
        """Number of this process on its machine."""
        return self._local_rank or 0

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """A run begins.

        Args:
            stage: "fit", "validate", "test" or "predict".
            local_rank: Number of this process on its machine.
            log_dir: Where files go unless the profiler was told.

        Raises:
            ConfigurationError: If `dirpath` cannot be written: now, and not when the run has ended.
        """
        if self.dirpath is not None:
            check_writable(self.dirpath, f"{type(self).__name__}(dirpath={os.fspath(self.dirpath)!r})")
        self._stage, self._local_rank, self._log_dir = stage, local_rank, log_dir

    def describe(self) -> None:
        """Print the summary, or write it to the file that was asked for."""
        summary = self.summary()
        if not summary:
            return
        path = self._report_path()
        if path is None:
            if self.local_rank == 0:
                rank_zero_info(summary)
            return
        make_dirs(os.path.dirname(path))
        with self._open(path) as file:
            file.write(summary)

    def teardown(self, stage: str | None) -> None:
        """The run has ended."""
        return None

    def _report_path(self, extension: str = ".txt") -> str | None:
        folder = self.dirpath or self._log_dir
        if self.filename is None or folder is None:
            return None
        parts = [self._stage, self.filename, None if self._local_rank is None else str(self._local_rank)]
        return join(os.fspath(folder), "-".join(part for part in parts if part) + extension)

    def _open(self, path: str) -> TextIO:
        # Appended: a second fit of the same Trainer reports again.
        return open(local_path(path), "a", encoding="utf-8")


class PassThroughProfiler(Profiler):
    """Measures nothing; the loops leave it out altogether."""

    def start(self, action_name: str) -> None:
        """Does nothing."""
        return None

    def stop(self, action_name: str) -> None:
        """Does nothing."""
        return None
