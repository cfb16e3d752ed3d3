"""How many batches a second: lately, and without the time that went into something else.

Knows no bar. Times are seconds of one monotonic clock, and given by the caller.
"""

_WEIGHT_OF_LAST = 0.3


class Rate:
    """A running mean over the times at which it is asked.

    >>> rate = Rate()
    >>> rate.begin(0, 0.0)
    >>> rate.measure(10, 1.0)
    10.0
    >>> rate.pass_over(60.0)  # a minute of validation
    >>> rate.measure(20, 62.0)
    10.0
    """

    __slots__ = ("_done", "_since_s", "per_second")

    def __init__(self) -> None:
        self.per_second: float | None = None
        self._done = 0
        self._since_s = 0.0

    def begin(self, done: int, now_s: float) -> None:
        """Count on from `done` batches; what was measured before stays until there is something new."""
        self._done, self._since_s = done, now_s

    def skip_to(self, done: int) -> None:
        """The batches before `done` were not done in this time."""
        self._done = done

    def pass_over(self, seconds: float) -> None:
        """So much of the time since the last measurement does not count."""
        self._since_s += seconds

    def measure(self, done: int, now_s: float) -> float | None:
        """Batches a second; None before the first."""
        if done > self._done and now_s > self._since_s:
            last = (done - self._done) / (now_s - self._since_s)
            before = last if self.per_second is None else self.per_second
            self.per_second = _WEIGHT_OF_LAST * last + (1 - _WEIGHT_OF_LAST) * before
            self._done, self._since_s = done, now_s
        return self.per_second
