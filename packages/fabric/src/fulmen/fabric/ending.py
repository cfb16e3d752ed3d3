"""End this process in time, whatever it is doing.

Where torch is loaded, Python needs a second of computing to end, on a busy machine many; an unfinished collective makes
it wait for half an hour. Whoever fails must not hold up the others for that long.
"""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType

_LOOK_EVERY_S = 0.2
_POOL_ENDS_WITHIN_S = 1.5


class _Deadline:
    """When this process ends at the latest; a forked process has none of its own yet."""

    pid = 0
    at_s = 0.0
    timed_pid = 0  # of the process that faulthandler watches
    timer: threading.Timer | None = None  # where faulthandler cannot


def exit_within(seconds: float) -> None:
    """End this process with exit code 1 if it has not ended by itself by then. The earliest of several calls counts."""
    at_s = time.monotonic() + seconds
    if _Deadline.pid == os.getpid() and _Deadline.at_s <= at_s:
        return
    _Deadline.pid, _Deadline.at_s = os.getpid(), at_s
    if _Deadline.timed_pid not in (0, os.getpid()):
        # Forked while the timer ran: there is its lock, and not the thread that would give it back.
        _Deadline.timer = threading.Timer(seconds, os._exit, (1,))
        _Deadline.timer.daemon = True
        _Deadline.timer.start()
        return
    _Deadline.timed_pid = os.getpid()
    # A thread of C that needs no lock of Python, so that it also works when the interpreter is half gone. What it
    # prints is of no use to anybody.
    silent = open(os.devnull, "w")  # noqa: SIM115 (must stay open until the end)
    faulthandler.dump_traceback_later(seconds, exit=True, file=silent)


def exit_no_more() -> None:
    """Take back what `exit_within` was told in this process. A later call counts again."""
    if _Deadline.pid != os.getpid():
        return
    _Deadline.pid = 0
    if _Deadline.timed_pid == os.getpid():
        faulthandler.cancel_dump_traceback_later()
    elif _Deadline.timer is not None:
        _Deadline.timer.cancel()


def end_children() -> None:
    """Ask the processes that this one has started by `multiprocessing` to end: pools, and workers of loaders."""
    for process in multiprocessing.active_children():
        process.terminate()


class _Told:
    """Which process was told to end; a forked one was not."""

    pid = 0


def end_despite_pools(exit_code: int) -> None:
    """The program was told to end. When Python has come to its end and waits for a pool that works on, end that.

    Python waits for a pool until all it was given is done, and for ever if a process of it was killed.

    Args:
        exit_code: With which this process ends if it cannot be helped otherwise.
    """
    if _Told.pid == os.getpid():
        return
    _Told.pid = os.getpid()
    # Called when Python begins to end, the last one first: before `concurrent.futures` waits for its processes. Nothing
    # public comes before that.
    register: Callable[..., object] | None = getattr(threading, "_register_atexit", None)
    if register is not None:
        with suppress(RuntimeError):  # Python is ending already
            register(_watch_the_end, exit_code)


def _watch_the_end(exit_code: int) -> None:
    if _Told.pid == os.getpid():
        threading.Thread(target=_end_pools, args=(exit_code,), name="fulmen-ending", daemon=True).start()


def _end_pools(exit_code: int) -> None:
    while not (_waits_for_pool() and multiprocessing.active_children()):
        time.sleep(_LOOK_EVERY_S)
    end_children()
    if _pool_is_over():
        return
    for process in multiprocessing.active_children():
        process.kill()
    if not _pool_is_over():  # else Python still does what the program wants done at its end
        os._exit(exit_code)


def _pool_is_over() -> bool:
    end_s = time.monotonic() + _POOL_ENDS_WITHIN_S
    while time.monotonic() < end_s:
        time.sleep(_LOOK_EVERY_S)
        if not _waits_for_pool():
            return True
    return False


def frame_of(thread: int | None) -> FrameType | None:
    """Where the thread with this identity is; None if it has ended."""
    # Python 3.11 makes the frames under the lock that every new thread and every fork needs. If garbage were collected
    # there, code of that garbage might wait, let another thread run into that lock, and both would wait for ever.
    collects = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames().get(thread or 0)
    finally:
        if collects:
            gc.enable()


def _waits_for_pool() -> bool:
    """Is the main thread where Python waits for processes at its end, and no user code below it?"""
    frame = frame_of(threading.main_thread().ident)
    modules: list[str] = []
    while frame is not None:
        modules.append(frame.f_globals.get("__name__", ""))
        frame = frame.f_back
    return modules[-1:] in (["threading"], ["multiprocessing.util"]) and any(map(_of_processes, modules))


def _of_processes(module: str) -> bool:
    return module.partition(".")[0] == "multiprocessing" or module == "concurrent.futures.process"


class _Shown:
    """In which process the hook is: a forked one inherits it."""

    pid = 0


_WITHIN_S = "_fulmen_exit_within_s"


def exit_soon_after(error: BaseException, seconds: float) -> None:
    """If nobody catches `error`, end this process within `seconds` of its being printed, unless it has a prompt."""
    error.__dict__[_WITHIN_S] = seconds
    if _Shown.pid == os.getpid():
        return
    _Shown.pid = os.getpid()
    show_before = sys.excepthook

    def show(kind: type[BaseException], uncaught: BaseException, traceback: TracebackType | None) -> None:
        show_before(kind, uncaught, traceback)
        within_s = uncaught.__dict__.get(_WITHIN_S)
        if within_s is not None and not (sys.flags.inspect or hasattr(sys, "ps1")):
            exit_within(within_s)

    sys.excepthook = show
