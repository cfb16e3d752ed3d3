"""From the board to the loggers of a run: one that raises loses no row, holds nobody up, and ends nothing."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fulmen.fabric.filesystem import is_local, local_path
from fulmen.fabric.rank_zero import rank_zero_warn

if TYPE_CHECKING:
    from fulmen.trainer.delivery.backlog import Entry
    from fulmen.trainer.delivery.sender import Delivery

log = logging.getLogger(__name__)


class Outlets:
    """The way to each logger, and what waits there.

    Args:
        folder: Where files go for loggers that have no folder on this machine.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._deliveries: dict[int, tuple[Any, Delivery]] = {}  # with the logger: its id is its own while it is here
        self._reported: set[tuple[int, str]] = set()

    def send(self, loggers: Iterable[Any], row: Mapping[str, Any], step: int) -> None:
        """A row for each."""
        for logger in loggers:
            if id(logger) in self._deliveries or not _took(logger, row, step):
                self._delivery(logger).put("metrics", metrics=dict(row), step=step)
            self._call(logger, "save", ())

    def tell(self, loggers: Iterable[Any], method: str, *args: Any) -> None:
        """Call a method of each; an error of one is reported once, and the others have their turn."""
        for logger in loggers:
            self._call(logger, method, args)

    def finalize(self, loggers: Iterable[Any], status: str) -> None:
        """The run has ended with `status`: send what waits, say what could not be sent, and finalize each."""
        for logger in loggers:
            if id(logger) in self._deliveries:
                self._delivery(logger).close(0)
            self._call(logger, "finalize", (status,))
        self._deliveries.clear()
        self._reported.clear()

    def _call(self, logger: Any, method: str, args: tuple[Any, ...]) -> None:
        try:
            getattr(logger, method)(*args)
        except Exception as error:
            from fulmen.trainer.delivery.sender import in_words

            name = f"{type(logger).__name__}.{method}"
            log.debug("%s failed:", name, exc_info=True)
            if (id(logger), method) not in self._reported:
                self._reported.add((id(logger), method))
                rank_zero_warn(
                    f"{name} failed: {in_words(error)}. A logger never ends a run, so it goes on. What"
                    " was logged may not be where this logger writes it."
                )

    def _delivery(self, logger: Any) -> Delivery:
        known = self._deliveries.get(id(logger))
        if known is None:
            from fulmen.trainer.delivery.sender import Delivery

            delivery = Delivery(
                partial(_send_first, logger),
                who=type(logger).__name__,
                threaded=False,
                folder=partial(self._folder_of, logger),
                how_to_send=_how_to_send,
                chunk=1,
            )
            known = self._deliveries[id(logger)] = (logger, delivery)
        return known[1]

    def _folder_of(self, logger: Any) -> Path:
        try:
            folders = (logger.log_dir, logger.save_dir, self._folder)
        except Exception:  # whatever ails the logger
            folders = (None, None, self._folder)
        local = next((folder for folder in folders if folder and is_local(folder)), tempfile.gettempdir())
        return Path(local_path(local))

    def __getstate__(self) -> dict[str, Any]:
        # What waits here is not sent to another process: it would be delivered twice.
        return {**self.__dict__, "_deliveries": {}, "_reported": set()}


def _took(logger: Any, row: Mapping[str, Any], step: int) -> bool:
    """Hand a row over on the short way; a logger that never raises knows no other."""
    try:
        logger.log_metrics(metrics=dict(row), step=step)
    except Exception:  # it is tried once more, by a delivery that reports what it raises
        return False
    return True


def _send_first(logger: Any, entries: Sequence[Entry]) -> int:
    logger.log_metrics(metrics=dict(entries[0]["metrics"]), step=entries[0]["step"])
    return 1


def _how_to_send(path: Path) -> str:
    return f"Send them with `fulmen.trainer.loggers.deliver({str(path)!r}, logger)`, once it works."
