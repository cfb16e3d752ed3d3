"""A cursor never loses finished work, and counts no unit twice, whatever is asked of it."""

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from fulmen.trainer.progress.cursor import Cursor
from fulmen.trainer.progress.phase import Phase

ORDER = ["ready", "started", "processed", "completed"]
moves = st.lists(
    st.sampled_from([*ORDER, "skip", "pass_over", "abandon", "begin_round", "save_and_restore"]), max_size=60
)


def move(cursor: Cursor, verb: str) -> Cursor:
    """The cursor after the move; one that is not allowed leaves it where it is."""
    if verb == "save_and_restore":
        return Cursor(*cursor.position)
    with contextlib.suppress(RuntimeError):
        getattr(cursor, verb)()
    return cursor


@given(moves)
def test_finished_work_is_never_lost(verbs: list[str]) -> None:
    cursor = Cursor()
    for verb in verbs:
        before = cursor.position
        cursor = move(cursor, verb)
        assert cursor.total - before.total in ({0, 1} if verb in ("completed", "skip", "pass_over") else {0})
        assert cursor.current == (0 if verb == "begin_round" else before.current + cursor.total - before.total)


@given(moves)
def test_a_unit_counts_once_and_only_after_all_its_moments(verbs: list[str]) -> None:
    cursor, moments, finished = Cursor(), [], 0
    for verb in verbs:
        before = cursor.position
        cursor = move(cursor, verb)
        if cursor.position == before or verb == "begin_round":
            continue
        if verb == "pass_over":  # the work goes on in the next unit
            assert moments == ["ready", "started"]
            finished += 1
            assert (cursor.total, cursor.phase) == (finished, len(moments))
            continue
        moments = [*moments, verb] if verb in (*ORDER, "skip") else []
        if cursor.total > before.total:
            assert moments in (ORDER, ["ready", "skip"])
            finished, moments = finished + 1, []
        assert (cursor.total, cursor.phase) == (finished, len(moments))
    assert cursor.phase in Phase
