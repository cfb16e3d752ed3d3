from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.trainer.progress.cursor import Cursor, Position, Tally
from fulmen.trainer.progress.phase import Phase

VERBS = ["ready", "started", "processed", "completed", "skip", "pass_over", "begin", "finish", "abandon", "begin_round"]


@dataclass(frozen=True)
class Model:
    """The slow form of a cursor: a list of what became of each unit, and a new value for each move."""

    units: tuple[str, ...] = ()
    round_began_at: int = 0
    phase: Phase = Phase.IDLE

    def move(self, verb: str) -> "Model | None":
        match verb, self.phase:
            case ("ready", Phase.IDLE):
                return replace(self, phase=Phase.READY)
            case ("started", Phase.READY):
                return replace(self, phase=Phase.STARTED)
            case ("processed", Phase.STARTED):
                return replace(self, phase=Phase.PROCESSED)
            case ("completed", Phase.PROCESSED):
                return replace(self, phase=Phase.IDLE, units=(*self.units, "done"))
            case ("skip", Phase.READY):
                return replace(self, phase=Phase.IDLE, units=(*self.units, "skipped"))
            case ("begin", Phase.IDLE):
                return replace(self, phase=Phase.STARTED)
            case ("finish", Phase.STARTED):
                return replace(self, phase=Phase.IDLE, units=(*self.units, "done"))
            case ("pass_over", Phase.STARTED):
                return replace(self, units=(*self.units, "passed over"))
            case ("abandon", _):
                return replace(self, phase=Phase.IDLE)
            case ("begin_round", _):
                return replace(self, round_began_at=len(self.units))
        return None

    @property
    def position(self) -> Position:
        return Position(len(self.units), len(self.units[self.round_began_at :]), self.phase)


@given(st.lists(st.sampled_from(VERBS), max_size=40))
def test_verbs_move_a_cursor_as_they_move_its_slow_form(verbs):
    cursor, model = Cursor(), Model()
    for verb in verbs:
        moved = model.move(verb)
        if moved is None:
            with pytest.raises(RuntimeError, match=rf"phase {model.phase.name} cannot move by {verb}\(\)"):
                getattr(cursor, verb)()
        else:
            getattr(cursor, verb)()
            model = moved
        assert cursor.position == model.position
        assert (cursor.total, cursor.current, cursor.phase) == model.position


@given(st.integers(-3, 9), st.none() | st.integers(-3, 9), st.sampled_from(Phase))
def test_only_positions_that_a_run_can_reach_are_built(total, current, phase):
    if 0 <= (total if current is None else current) <= total:
        assert Cursor(total, current, phase).position == (total, total if current is None else current, phase)
    else:
        with pytest.raises(
            ValueError, match=f"total={total}, current={current if current is not None else total} is no"
        ):
            Cursor(total, current, phase)


@given(st.integers(0, 9), st.integers(0, 9), st.sampled_from(Phase))
def test_a_cursor_goes_to_any_position_and_only_there(total, current, phase):
    cursor = Cursor(3, 1, Phase.STARTED)
    position = Position(total, current, phase)
    if current <= total:
        cursor.move_to(position)
        assert cursor.position == position
    else:
        with pytest.raises(ValueError, match="is no position"):
            cursor.move_to(position)
        assert cursor.position == (3, 1, Phase.STARTED)


@given(st.lists(st.sampled_from(["add", "begin_round"])))
def test_a_tally_counts_in_all_and_since_its_round_began(verbs):
    tally = Tally()
    for done, verb in enumerate(verbs):
        getattr(tally, verb)()
        so_far = verbs[: done + 1]
        rounds = "".join("." if verb == "add" else "|" for verb in so_far).split("|")
        assert (tally.total, tally.current) == (so_far.count("add"), len(rounds[-1]))


@given(st.integers(-2, 5), st.integers(-2, 5))
def test_a_tally_holds_no_more_in_a_round_than_in_all(total, current):
    tally = Tally(1)
    if 0 <= current <= total:
        tally.move_to(total, current)
        assert (tally.total, tally.current) == (total, current)
    else:
        with pytest.raises(ValueError, match="is no count"):
            tally.move_to(total, current)


def test_a_cursor_says_where_it_is():
    assert repr(Cursor(5, 2, Phase.STARTED)) == "Cursor(total=5, current=2, phase=STARTED)"
