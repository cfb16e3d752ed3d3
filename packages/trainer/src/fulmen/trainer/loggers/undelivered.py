"""Send later what a logger could not deliver."""

import os
from pathlib import Path
from typing import Any

from fulmen.trainer.delivery.backlog import Entry, read_entries, write_entries
from fulmen.trainer.loggers.base import Logger
from fulmen.trainer.loggers.tracker import Tracker

_AT_ONCE = 200


def deliver(path: str | os.PathLike[str], logger: Logger) -> int:
    """Send what is in a file `undelivered-....jsonl`, in order, and remove the file.

    Args:
        path: The file that a warning has named at the end of a run, or one that a killed run has left.
        logger: Takes it; for a tracker, one that goes on with the run: `MLFlowLogger(run_id=...)`.

    Returns:
        How many entries were sent.

    Raises:
        Exception: What sending raised; what was not sent by then stays in the file.
    """
    file = Path(path)
    waiting = list(read_entries(file))
    sent = 0
    try:
        while sent < len(waiting):
            sent += _send(logger, waiting[sent : sent + _AT_ONCE])
        logger.save()
    finally:
        if sent < len(waiting):
            write_entries(file, waiting[sent:])
    file.unlink()
    return sent


def _send(logger: Any, entries: list[Entry]) -> int:
    if isinstance(logger, Tracker):
        return logger.take(entries)
    logger.log_metrics(metrics=entries[0]["metrics"], step=entries[0]["step"])
    return 1
