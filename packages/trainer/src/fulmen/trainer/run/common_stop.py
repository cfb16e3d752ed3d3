"""The place in a run at which all processes stop together, when a signal came to one of them.

They cannot ask each other in a collective: when the signal comes, the others are in collectives of their own. So every
process has a thread that looks into a key-value store, which costs the loop nothing:

1. The process that got the signal writes it down.
2. Every thread finds it, tells its loop, and only then writes down the place that its loop has begun.
3. The farthest of these places is where all stop.

A loop says which place it begins before it looks whether it was told. So either it was told before it began, and waits
here for the answer, or its thread has written down a place that is not behind it.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

_LOOK_EVERY_S = 0.1
_ANSWER_WITHIN_S = 20.0


class CommonStop:
    """Watches, until it is closed.

    Args:
        store: Of all processes, with `set`, `get` and `check`, on a connection of its own.
        rank: Of this process.
        world_size: Number of processes.
        tell: Called with the number of the signal, in the watching thread.
        begun: The place that the loop of this process has begun.
        look: Called in the watching thread, ten times a second, until it is closed.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        world_size: int,
        tell: Callable[[int], None],
        begun: Callable[[], int],
        look: Callable[[], None] | None = None,
    ) -> None:
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self._tell = tell
        self._begun = begun
        self._look = look
        self._asked = 0
        self._place = 0
        self._is_agreed = threading.Event()
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="fulmen-common-stop", daemon=True)
        self._thread.start()

    def ask(self, number: int) -> None:
        """Have all processes stop because of this signal. For signal handlers: it only sets an attribute."""
        self._asked = self._asked or number

    def place(self) -> int:
        """Where all stop. Waits until that is agreed; 0, the present, if the others do not answer."""
        self._is_agreed.wait(_ANSWER_WITHIN_S)
        return self._place

    def close(self) -> None:
        """Watch no longer."""
        self._is_closed.set()
        self._thread.join()

    def _watch(self) -> None:
        try:
            while not self._is_closed.wait(_LOOK_EVERY_S):
                if not self._is_agreed.is_set() and (number := self._asked or self._asked_elsewhere()):
                    self._agree(number)
                    self._is_agreed.set()
                if self._look is not None:
                    self._look()
                elif self._is_agreed.is_set():
                    return
        except RuntimeError:  # whoever kept the store is gone
            if self._asked:
                self._tell(self._asked)
        finally:
            self._is_agreed.set()

    def _asked_elsewhere(self) -> int:
        return int(self._store.get("signal")) if self._store.check(["signal"]) else 0

    def _agree(self, number: int) -> None:
        # Two processes may get two signals: the first that was written down counts for all.
        number = int(self._store.compare_set("signal", "", str(number)))
        self._tell(number)
        self._store.set(f"begun/{self._rank}", str(self._begun()))
        everybody = [f"begun/{rank}" for rank in range(self._world_size)]
        deadline = time.monotonic() + _ANSWER_WITHIN_S
        while not self._store.check(everybody):
            if self._look is not None:
                self._look()  # somebody may be gone, or fail instead
            if time.monotonic() > deadline or self._is_closed.wait(_LOOK_EVERY_S / 10):
                return
        self._place = max(int(self._store.get(one)) for one in everybody)
