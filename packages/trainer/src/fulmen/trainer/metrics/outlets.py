"""From the board to the loggers of a run: one that raises loses no row, holds nobody up, and ends nothing."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fulmen.fabric.errors import MisconfigurationException
from fulmen.fabric.filesystem import is_local, local_path
from fulmen.fabric.rank_zero import rank_zero_warn, warn_once

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
            if not _holds_rows(logger):
                self._call(logger, "save", ())

    def write_held(self, loggers: Iterable[Any]) -> None:
        """Whoever goes on from here is to find the rows so far: have those written that wait in a logger."""
        for logger in loggers:
            if _holds_rows(logger):
                self._call(logger, "save", ())

    def tell(self, loggers: Iterable[Any], method: str, *args: Any) -> None:
        """Call a method of each; an error of one is reported once, and the others have their turn."""
        for logger in loggers:
            self._call(logger, method, args)

    def open(self, loggers: Iterable[Any], folder: str) -> None:
        """The run begins, and `folder` is the Trainer's: open those that callbacks rely on.

        Raises:
            MisconfigurationException: From a logger: one of its arguments is wrong, and no work has been done yet.
        """
        for logger in loggers:
            self._call(logger, "keep_in", (folder,), begins=True)
            if asked(logger, "opens_first", False):
                self._shielded(logger, "experiment", partial(getattr, logger, "experiment"), begins=True)

    def introduce(self, loggers: Iterable[Any], hparams: Mapping[str, Any] | None, module: Any) -> None:
        """Tell each what is going to run.

        Raises:
            MisconfigurationException: As for `open`.
        """
        for logger in loggers:
            if hparams is not None:
                self._call(logger, "log_hyperparams", (hparams,), begins=True)
            self._call(logger, "log_graph", (module,), begins=True)
            self._call(logger, "save", (), begins=True)

    def finalize(self, loggers: Iterable[Any], status: str) -> None:
        """The run has ended with `status`: send what waits, say what could not be sent, and finalize each.

        Raises:
            BaseException: If one left with more than an error (`SystemExit`), after the others have had their turn.
        """
        first: BaseException | None = None
        for logger in loggers:
            try:
                if id(logger) in self._deliveries:
                    self._delivery(logger).close(0)
                self._call(logger, "finalize", (status,))
            except KeyboardInterrupt:  # the second Ctrl-C: at once
                raise
            except BaseException as error:  # also a warning that the user has made an error
                first = first or error
        self._deliveries.clear()
        self._reported.clear()
        if first is not None:
            raise first

    def _call(self, logger: Any, method: str, args: tuple[Any, ...], *, begins: bool = False) -> None:
        self._shielded(logger, method, lambda: getattr(logger, method)(*args), begins=begins)

    def _shielded(self, logger: Any, name: str, call: Callable[[], Any], *, begins: bool) -> None:
        try:
            call()
        except Exception as error:
            if begins and isinstance(error, MisconfigurationException):
                raise
            if (id(logger), name) not in self._reported:
                self._reported.add((id(logger), name))
                _report(logger, name, error, rank_zero_warn)

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


def asked(logger: Any, name: str, default: Any = None) -> Any:
    """A property of a logger; `default` if it raises, which is reported once.

    Raises:
        MisconfigurationException: From the logger: one of its arguments is wrong.
    """
    try:
        return getattr(logger, name)
    except MisconfigurationException:
        raise
    except Exception as error:
        _report(logger, name, error, warn_once)
        return default


def _report(logger: Any, name: str, error: Exception, warn: Callable[[str], None]) -> None:
    from fulmen.trainer.delivery.sender import in_words

    name = f"{type(logger).__name__}.{name}"
    log.debug("%s failed:", name, exc_info=error)
    warn(
        f"{name} failed: {in_words(error)}. A logger never ends a run, so it goes on. What"
        " was logged may not be where this logger writes it."
    )


def _holds_rows(logger: Any) -> bool:
    """Does it write rows by the clock? Others are told to after each."""
    return getattr(logger, "saves_by_itself", False)


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
