"""When to draw next: by the clock, not by the step.

Knows no bar. Times are seconds of one monotonic clock, and given by the caller.
"""

import math

NEVER_S = math.inf


class Pace:
    """How far the work has come, and when to show it.

    The hot path is one store and one comparison: `pace.done = n` and `now_s >= pace.next_s`.
    """

    __slots__ = ("_drawn_s", "_forced_s", "_interval_s", "done", "next_s")

    def __init__(self) -> None:
        self.done = 0  # batches
        self.next_s = NEVER_S  # before that, there is nothing to do
        self._interval_s = NEVER_S
        self._drawn_s = -math.inf
        self._forced_s = -math.inf

    def begin(self, interval_s: float, now_s: float, *, at_once: bool) -> None:
        """Draw every `interval_s` from now on; the first time at once or after one interval."""
        self.done = 0
        self._interval_s = interval_s
        self._drawn_s = self._forced_s = -math.inf if at_once else now_s
        self._schedule()

    def look_at_next(self) -> None:
        """Be asked after the next batch, whether it is time to draw or not."""
        self.done = 0
        self.next_s = NEVER_S if self._interval_s == NEVER_S else -math.inf

    def is_due(self, now_s: float) -> bool:
        """Is it time to draw? If so, it is taken as drawn."""
        self._schedule()
        if now_s < self.next_s:
            return False
        self._drawn_s = now_s
        self._schedule()
        return True

    def may_force(self, now_s: float) -> bool:
        """May something be drawn out of turn? If so, it is taken as drawn; that has its own limit, equally strict."""
        if self._interval_s == NEVER_S or now_s < self._forced_s + self._interval_s:
            return False
        self._forced_s = self._drawn_s = now_s
        self._schedule()
        return True

    def _schedule(self) -> None:
        self.next_s = self._drawn_s + self._interval_s
