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
from contextlib import suppress
from types import FrameType
from typing import Any

_STAYS_S = 30.0  # as long as cluster managers wait before they kill
_LOOK_EVERY_S = 0.2
_MARK = "_fulmen_workers_stay"
_OTHERS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name))
# From who has started a worker: the SIGTERM that follows is meant for it. To others it means nothing.
_LEAVE: int | None = getattr(signal, "SIGCONT", None)


class _Stays:
    """In which process this is settled: a forked one inherits it."""

    pid = 0
    writer = -1
    is_told = False
    may_leave = False


class _Ends:
    """Which process tells its workers to leave when it ends."""

    pid = 0


def let_workers_stay(handler: Any) -> None:
    """While `handler` is that of SIGTERM, workers that loaders have asked for something outlive the first signal."""
    setattr(handler, _MARK, True)
    if _LEAVE is None or _Ends.pid == os.getpid():
        return
    from multiprocessing.util import Finalize

    _Ends.pid = os.getpid()
    # Right before Python ends the daemons, and waits for them.
    Finalize(None, _let_workers_leave, exitpriority=0)


def _let_workers_leave() -> None:
    from multiprocessing import active_children

    for process in active_children():
        if process.daemon and process.pid is not None and _LEAVE is not None:
            with suppress(OSError):
                os.kill(process.pid, _LEAVE)


def workers_stay() -> bool:
    """Do the workers of this process stay at a signal?"""
    return getattr(signal.getsignal(signal.SIGTERM), _MARK, False)


def stay() -> None:
    """In a worker: from now on the first SIGTERM only counts if nobody ends this process within half a minute.

    It also ends when the process that started it is gone or ends, and at once at the second SIGTERM.
    """
    if _Stays.pid == os.getpid() or threading.current_thread() is not threading.main_thread():
        return
    _Stays.pid = os.getpid()
    for number in _OTHERS:  # in a new Python, they are not those of the program
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, signal.SIG_IGN)
    if _LEAVE is None:  # nobody sends SIGTERM to others on such a system
        return
    reader, _Stays.writer = os.pipe()
    os.set_blocking(_Stays.writer, False)
    signal.set_wakeup_fd(_Stays.writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, _hear)
    signal.signal(_LEAVE, _hear)
    os.register_at_fork(after_in_child=_stay_no_more)
    _thread.start_new_thread(_end_in_time, (reader, os.getppid()))


def _stay_no_more() -> None:
    """What a worker forks is no worker."""
    if _Stays.writer < 0:
        return
    signal.set_wakeup_fd(-1)
    os.close(_Stays.writer)
    _Stays.pid, _Stays.writer = 0, -1
    _Stays.is_told = _Stays.may_leave = False
    for number in (signal.SIGTERM, _LEAVE):
        if number is not None and signal.getsignal(number) is _hear:
            signal.signal(number, signal.SIG_DFL)


def _hear(number: int, _frame: FrameType | None) -> None:
    wakes = signal.set_wakeup_fd(_Stays.writer, warn_on_full_buffer=False)
    if wakes != _Stays.writer:  # user code has its own, or took ours away
        os.write(_Stays.writer, bytes([number]))
        signal.set_wakeup_fd(wakes)
    _note(number)
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_DFL)


def _note(number: int) -> None:
    _Stays.is_told = _Stays.is_told or number == signal.SIGTERM
    _Stays.may_leave = _Stays.may_leave or number == _LEAVE
    if _Stays.is_told and _Stays.may_leave:
        os._exit(0)  # as torch's workers do when the one they work for ends them


def _end_in_time(reader: int, parent: int) -> None:
    """Also where the main thread is stuck in code of C, and never comes to handle a signal."""
    is_told = False
    while not is_told:
        for number in os.read(reader, 1):
            is_told = number == signal.SIGTERM
            _note(number)
    os.set_blocking(reader, False)
    end_s, is_told_again = time.monotonic() + _STAYS_S, False
    while os.getppid() == parent and time.monotonic() < end_s and not is_told_again:
        time.sleep(_LOOK_EVERY_S)
        with suppress(BlockingIOError):
            for number in os.read(reader, 64):
                is_told_again = is_told_again or number == signal.SIGTERM
                _note(number)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_LOOK_EVERY_S)
    os._exit(128 + signal.SIGTERM)
