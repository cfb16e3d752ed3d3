"""Workers of loaders stay where the program ends in good order on a signal that came to all of them.

A cluster manager and a terminal signal whole groups of processes. torch ends a worker at once then, and with it the
batch in work; who stops at the next batch needs its workers until then, and ends them itself.
"""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

_STAYS_S = 30.0  # as long as cluster managers wait before they kill
_LOOK_EVERY_S = 0.2
_MARK = "_fulmen_workers_stay"
_OTHERS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name))


class _Stays:
    """In which process this is settled: a forked one inherits it."""

    pid = 0


def let_workers_stay(handler: Any) -> None:
    """While `handler` is that of SIGTERM, workers that loaders have asked for something outlive the first signal."""
    setattr(handler, _MARK, True)


def workers_stay() -> bool:
    """Do the workers of this process stay at a signal?"""
    return getattr(signal.getsignal(signal.SIGTERM), _MARK, False)


def stay() -> None:
    """In a worker: from now on the first SIGTERM only counts if nobody ends this process within half a minute.

    It also ends when the process that started it is gone, and at once at the second SIGTERM.
    """
    if _Stays.pid == os.getpid() or threading.current_thread() is not threading.main_thread():
        return
    _Stays.pid = os.getpid()
    signal.signal(signal.SIGTERM, _postpone)
    for number in _OTHERS:  # in a new Python, they are not those of the program
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, signal.SIG_IGN)


def _postpone(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    # Not `threading.Thread`, whose lock the code that was interrupted may hold.
    _thread.start_new_thread(_end_later, (number, os.getppid()))


def _end_later(number: int, parent: int) -> None:
    end_s = time.monotonic() + _STAYS_S
    while os.getppid() == parent and time.monotonic() < end_s:
        time.sleep(_LOOK_EVERY_S)
    os.kill(os.getpid(), number)
