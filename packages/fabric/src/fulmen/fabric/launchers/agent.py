"""Tell torchrun's agent how this process failed, so that it can say so at the end.

The agent names the process that it saw failing first, and its traceback if it was told. Processes whose peer is gone
fail at the same moment: they wait for the agent to find the one that began.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from types import TracebackType
from typing import Final

from fulmen.fabric.launchers.failures import Weight, failure_from_error

# torchrun names a file for each of its processes.
_ERROR_FILE: Final = "TORCHELASTIC_ERROR_FILE"
# Many times as long as the agent needs to look after its processes.
_WAIT_S: Final = 1.0


class _Told:
    """In which process the hook is: a forked one inherits it."""

    pid = 0


def tell_agent_of_errors() -> None:
    """From now on, an uncaught exception in this process is told to torchrun. Nothing where it was not started so."""
    if _ERROR_FILE not in os.environ or _Told.pid == os.getpid():
        return
    _Told.pid = os.getpid()
    show_before = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if _Told.pid == os.getpid():
            if failure_from_error(0, error, 0.0).weight is Weight.ECHO:
                # If it is the consequence of another failure, this process is ended before the time is over.
                time.sleep(_WAIT_S)
            if isinstance(error, Exception):
                _record(error)
        show_before(kind, error, traceback)

    sys.excepthook = show


def _record(error: Exception) -> None:
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    began = error.__traceback__
    try:
        raise error  # torch records what is being handled
    except Exception as handled:
        # A full disk must not hide the error itself.
        with contextlib.suppress(OSError):
            get_error_handler().record_exception(handled)
    finally:
        error.__traceback__ = began
