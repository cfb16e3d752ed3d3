from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fulmen.trainer.callbacks.pace import NEVER_S, Pace


@given(st.lists(st.tuples(st.floats(0, 0.5), st.sampled_from(["look", "force", "epoch"])), max_size=60))
def test_nothing_is_drawn_more_often_than_the_interval_allows(moves):
    pace, now_s, drawn, forced = Pace(), 100.0, [], []
    pace.begin(0.1, now_s, at_once=True)
    for wait_s, move in moves:
        now_s += wait_s
        if move == "epoch":
            pace.look_at_next()
        elif move == "force" and pace.may_force(now_s):
            forced.append(now_s)
        elif move == "look" and now_s >= pace.next_s and pace.is_due(now_s):
            drawn.append(now_s)
    for times in (drawn, forced):
        assert all(later >= earlier + 0.1 for earlier, later in pairwise(times))


@given(st.floats(0, 10), st.booleans())
def test_a_disabled_bar_is_never_asked(now_s, at_once):
    pace = Pace()
    pace.begin(NEVER_S, now_s, at_once=at_once)
    pace.look_at_next()
    assert pace.next_s == NEVER_S
    assert not pace.may_force(now_s)


def test_the_first_draw_comes_at_once_or_after_one_interval():
    pace = Pace()
    pace.begin(5.0, 100.0, at_once=False)
    assert not pace.is_due(104.0)
    assert pace.is_due(105.0)
    pace.begin(5.0, 100.0, at_once=True)
    assert pace.is_due(100.0)
