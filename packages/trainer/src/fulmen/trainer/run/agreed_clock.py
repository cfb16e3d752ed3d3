"""Is the time over? Many processes, one answer, and a collective only now and then."""

import time
from typing import Any, Protocol

_SECONDS_BETWEEN_AGREEMENTS = 1.0


class Broadcasts(Protocol):
    """What is asked of a strategy here."""

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """`obj` of process `src`, on all of them."""


class AgreedClock:
    """Asked after every step by every process; the clock of rank zero counts.

    Processes whose clocks differ must not decide alone, and a collective in every step would cost more than the step.
    So rank zero also says after how many steps to ask again: about a second's worth, and never beyond the deadline.
    """

    def __init__(self) -> None:
        self._steps_to_ask = 0
        self._asked_at_s: float | None = None
        self._num_steps = 0  # since it was asked the last time

    def is_over(self, remaining_s: float, strategy: Broadcasts, world_size: int) -> bool:
        """Has rank zero no time left?

        Args:
            remaining_s: Seconds that are left by the clock of this process.
            strategy: Asked only when there are several processes.
            world_size: How many processes there are.
        """
        if world_size == 1:
            return remaining_s <= 0
        self._num_steps += 1
        if self._num_steps < self._steps_to_ask:
            return False
        mine = (remaining_s <= 0, self._steps_within(min(remaining_s, _SECONDS_BETWEEN_AGREEMENTS)))
        is_over, self._steps_to_ask = strategy.broadcast(mine)
        self._asked_at_s, self._num_steps = time.monotonic(), 0
        return bool(is_over)

    def _steps_within(self, seconds: float) -> int:
        # As fast as those since it was asked the last time; at most twice as many, for the first steps are slow.
        if self._asked_at_s is None:
            return 1
        step_s = max(time.monotonic() - self._asked_at_s, 1e-9) / self._num_steps
        return max(1, min(int(seconds / step_s), 2 * self._num_steps))
