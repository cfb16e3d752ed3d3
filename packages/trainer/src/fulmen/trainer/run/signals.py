"""SIGTERM and its kin set a flag; the loop acts on it at the next batch boundary. Ctrl-C raises at once.

A handler does nothing else: no collective, no saving, no lock. `caught` is one attribute read per batch.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from fulmen.fabric.rank_zero import rank_zero_info
from fulmen.trainer.errors import InterruptedBySignal

_CAUGHT = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Signals:
    """The signals that end a run, caught while it lasts.

    Attributes:
        caught: Number of the first signal that came, or 0.
    """

    def __init__(self) -> None:
        self.caught = 0

    @contextmanager
    def listening(self, pass_on: Callable[[int], None] | None = None) -> Iterator[None]:
        """Catch signals until the block is left; then every handler is as it was before.

        A handler that the user installed is called too. Outside the main thread Python allows no handlers: there
        nothing is caught.

        Args:
            pass_on: Told the number of the signal, where other processes take part in the work.

        Raises:
            InterruptedBySignal: If one came too late for the loop to act on it.
        """
        self.caught = 0
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in _CAUGHT}
        pid = os.getpid()

        def catch(number: int, frame: FrameType | None) -> None:
            self.caught = self.caught or number
            if pass_on is not None and os.getpid() == pid:  # a forked process inherits the handler
                pass_on(number)
            user_handler = before.get(number)
            if callable(user_handler):
                user_handler(number, frame)

        try:
            for number, handler in before.items():
                if handler != signal.SIG_IGN and handler is not None:
                    signal.signal(number, catch)
            yield
        finally:
            for number, handler in before.items():
                if handler is not None:
                    signal.signal(number, handler)
        self.raise_if_caught()

    def raise_if_caught(self) -> None:
        """End the run here if a signal asked for it.

        Raises:
            InterruptedBySignal: With the number of the signal.
        """
        if self.caught:
            raise InterruptedBySignal(self.caught)


def end_on_ctrl_c() -> None:
    """What a run does last after Ctrl-C: a notebook or a prompt goes on with a usable Trainer, a program ends.

    Raises:
        SystemExit: With the code that shells expect, unless Python is interactive.
    """
    if not hasattr(sys, "ps1"):
        raise SystemExit(128 + signal.SIGINT) from None
    rank_zero_info("Interrupted by Ctrl-C. The Trainer can be used again.")
