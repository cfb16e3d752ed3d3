"""How many units are done, and where in the current one we are. Pure.

A running loop owns one `Cursor` and moves it with verbs; nothing else writes to it. A position that no run can reach
(processed before started, two units at once) cannot be built.
"""

from typing import NamedTuple

from fulmen.trainer.progress.phase import Phase

_IDLE, _READY, _STARTED, _PROCESSED = Phase.IDLE, Phase.READY, Phase.STARTED, Phase.PROCESSED


class Position(NamedTuple):
    """A cursor's place as a value: units done in all, units done in this round, and the phase of the current one."""

    total: int
    current: int
    phase: Phase


class Cursor:
    """Position in a sequence of equal units, counted in all and since the round began (an epoch is a round of batches).

    Args:
        total: Units completed since the run began.
        current: Units completed since the current round began.
        phase: How far the unit in work has come.

    Raises:
        ValueError: For counts that no run can reach.
    """

    __slots__ = ("_origin", "phase", "total")

    def __init__(self, total: int = 0, current: int | None = None, phase: Phase = _IDLE) -> None:
        current = total if current is None else current
        if not 0 <= current <= total:
            raise ValueError(f"total={total}, current={current} is no position: expected 0 <= current <= total.")
        self.total = total
        self.phase = Phase(phase)
        self._origin = total - current

    @property
    def current(self) -> int:
        """Units completed since the round began."""
        return self.total - self._origin

    @property
    def begun(self) -> int:
        """Units begun since the round began: the completed ones, and the one in work."""
        return self.current + (self.phase is not _IDLE)

    @property
    def total_begun(self) -> int:
        """Units begun in all."""
        return self.total + (self.phase is not _IDLE)

    @property
    def position(self) -> Position:
        """This place as a value."""
        return Position(self.total, self.current, self.phase)

    def ready(self) -> None:
        """The next unit is at hand."""
        if self.phase is not _IDLE:
            raise self._illegal("ready")
        self.phase = _READY

    def started(self) -> None:
        """Its start hooks have run."""
        if self.phase is not _READY:
            raise self._illegal("started")
        self.phase = _STARTED

    def begin(self) -> None:
        """`ready` and `started` at once, where no hook is between them."""
        if self.phase is not _IDLE:
            raise self._illegal("begin")
        self.phase = _STARTED

    def processed(self) -> None:
        """Its work is done."""
        if self.phase is not _STARTED:
            raise self._illegal("processed")
        self.phase = _PROCESSED

    def completed(self) -> None:
        """Its end hooks have run: the unit is finished."""
        if self.phase is not _PROCESSED:
            raise self._illegal("completed")
        self.phase = _IDLE
        self.total += 1

    def finish(self) -> None:
        """`processed` and `completed` at once, where no hook is between them."""
        if self.phase is not _STARTED:
            raise self._illegal("finish")
        self.phase = _IDLE
        self.total += 1

    def skip(self) -> None:
        """The unit at hand is passed over; it counts as visited."""
        if self.phase is not _READY:
            raise self._illegal("skip")
        self.phase = _IDLE
        self.total += 1

    def pass_over(self) -> None:
        """The unit in work counts as visited, and the work goes on in the next one."""
        if self.phase is not _STARTED:
            raise self._illegal("pass_over")
        self.total += 1

    def abandon(self) -> None:
        """Forget the unit in work; finished ones stay finished."""
        self.phase = _IDLE

    def begin_round(self) -> None:
        """Count `current` from here."""
        self._origin = self.total

    def move_to(self, position: Position) -> None:
        """Go to a saved position."""
        other = Cursor(position.total, position.current, position.phase)
        self.total, self.phase, self._origin = other.total, other.phase, other._origin

    def _illegal(self, verb: str) -> RuntimeError:
        return RuntimeError(f"A cursor in phase {self.phase.name} cannot move by {verb}(): {self.position}.")

    def __repr__(self) -> str:
        return f"Cursor(total={self.total}, current={self.current}, phase={self.phase.name})"


class Tally:
    """A plain count of events, in all and in the current round (optimizer steps, scheduler steps)."""

    __slots__ = ("_origin", "total")

    def __init__(self, total: int = 0, current: int | None = None) -> None:
        current = total if current is None else current
        if not 0 <= current <= total:
            raise ValueError(f"total={total}, current={current} is no count: expected 0 <= current <= total.")
        self.total = total
        self._origin = total - current

    @property
    def current(self) -> int:
        """Events since the round began."""
        return self.total - self._origin

    def add(self) -> None:
        """One more."""
        self.total += 1

    def begin_round(self) -> None:
        """Count `current` from here."""
        self._origin = self.total

    def move_to(self, total: int, current: int) -> None:
        """Go to saved counts."""
        other = Tally(total, current)
        self.total, self._origin = other.total, other._origin
