"""Print, log and warn once: from the process of rank zero only.

`rank_zero_only.rank` is the rank of this process, for all of Fulmen; strategies set it when they know it.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar, overload

P = ParamSpec("P")
T = TypeVar("T")

# What launchers and cluster managers say about a process before a strategy knows its rank.
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


class PossibleUserWarning(UserWarning):
    """A warning about something that may well be meant."""


class LightningDeprecationWarning(DeprecationWarning):
    """A warning about a name or a behaviour that will go."""


class RankZeroOnly:
    """A decorator: the function runs on rank zero, and elsewhere returns `default` at once."""

    def __init__(self) -> None:
        self._rank: int | None = None

    @property
    def rank(self) -> int:
        """The global rank of this process; until it is set, what the environment variables say, or 0."""
        if self._rank is not None:
            return self._rank
        for variable in _RANK_VARIABLES:
            value = os.environ.get(variable, "")
            if value.isdecimal():
                return int(value)
        return 0

    @rank.setter
    def rank(self, rank: int | None) -> None:
        self._rank = rank

    @contextmanager
    def as_rank(self, rank: int) -> Iterator[None]:
        """Inside, this process counts as `rank`; afterwards as before, whatever was set inside."""
        before, self._rank = self._rank, rank
        try:
            yield
        finally:
            self._rank = before

    @overload
    def __call__(self, fn: Callable[P, T]) -> Callable[P, T | None]: ...

    @overload
    def __call__(self, fn: Callable[P, T], default: T) -> Callable[P, T]: ...

    def __call__(self, fn: Callable[P, T], default: T | None = None) -> Callable[P, T | None]:
        """Wrap `fn`."""

        @functools.wraps(fn)
        def run_on_rank_zero(*args: P.args, **kwargs: P.kwargs) -> T | None:
            return fn(*args, **kwargs) if self.rank == 0 else default

        return run_on_rank_zero


rank_zero_only = RankZeroOnly()


def rank_prefixed_message(message: str, rank: int | None) -> str:
    """`message` with the rank in front, where there is one."""
    return message if rank is None else f"[rank: {rank}] {message}"


# In the four functions below, `stacklevel` counts as their users know it: 4 is the line that calls the function, 5 the
# line that calls the caller. Python itself counts that line as 2.


def rank_zero_info(*args: Any, stacklevel: int = 4, **kwargs: Any) -> None:
    """Log on level INFO, from rank zero."""
    if rank_zero_only.rank == 0:
        _logger().info(*args, stacklevel=stacklevel - 2, **kwargs)


def rank_zero_debug(*args: Any, stacklevel: int = 4, **kwargs: Any) -> None:
    """Log on level DEBUG, from rank zero."""
    if rank_zero_only.rank == 0:
        _logger().debug(*args, stacklevel=stacklevel - 2, **kwargs)


def rank_zero_warn(message: str | Warning, stacklevel: int = 4, **kwargs: Any) -> None:
    """Warn, from rank zero. `kwargs` are those of `warnings.warn`, such as `category`."""
    if rank_zero_only.rank == 0:
        warnings.warn(message, stacklevel=stacklevel - 2, **kwargs)


def rank_zero_deprecation(message: str | Warning, stacklevel: int = 5, **kwargs: Any) -> None:
    """Warn about something deprecated, from rank zero; here the calling line is stacklevel 5."""
    if rank_zero_only.rank == 0:
        warnings.warn(message, stacklevel=stacklevel - 3, **{"category": LightningDeprecationWarning, **kwargs})


class WarningCache(set[str]):
    """Remembers what was said, and says it once."""

    def warn(self, message: str, stacklevel: int = 5, **kwargs: Any) -> None:
        """Warn, unless this message was said before."""
        if message not in self:
            self.add(message)
            rank_zero_warn(message, stacklevel=stacklevel, **kwargs)

    def deprecation(self, message: str, stacklevel: int = 6, **kwargs: Any) -> None:
        """Warn about something deprecated, unless this message was said before."""
        if message not in self:
            self.add(message)
            rank_zero_deprecation(message, stacklevel=stacklevel, **kwargs)

    def info(self, message: str, stacklevel: int = 5, **kwargs: Any) -> None:
        """Log on level INFO, unless this message was said before."""
        if message not in self:
            self.add(message)
            rank_zero_info(message, stacklevel=stacklevel, **kwargs)


warned = WarningCache()


def warn_once(message: str, *, category: type[Warning] = UserWarning) -> None:
    """Warn from rank zero, once in the life of the process."""
    warned.warn(message, stacklevel=6, category=category)


def disable_possible_user_warnings(module: str = "") -> None:
    """Silence every `PossibleUserWarning` that modules matching the pattern `module` raise."""
    warnings.filterwarnings("ignore", category=PossibleUserWarning, module=module)


class _UnheardHandler(logging.Handler):
    """Writes to stderr as long as the program has set up no logging of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            # Looked up now: tests and notebooks replace `sys.stderr`.
            print(self.format(record), file=sys.stderr)


@functools.cache
def _logger() -> logging.Logger:
    # Not at import: importing a library must not change the program's logging.
    logger = logging.getLogger("fulmen")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(_UnheardHandler())
    return logger
