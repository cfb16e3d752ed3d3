from copy import deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.trainer.progress import legacy
from fulmen.trainer.progress.counts import EvaluationCounts, FitCounts
from fulmen.trainer.progress.cursor import Cursor, Tally
from fulmen.trainer.progress.phase import Phase

FOUR = ("ready", "started", "processed", "completed")


@st.composite
def cursors(draw):
    total = draw(st.integers(0, 50))
    return Cursor(total, draw(st.integers(0, total)), draw(st.sampled_from(Phase)))


@st.composite
def tallies(draw):
    total = draw(st.integers(0, 50))
    return Tally(total, draw(st.integers(0, total)))


evaluations = st.builds(EvaluationCounts, batch=cursors(), is_last_batch=st.booleans())
fits = st.builds(
    FitCounts,
    epoch=cursors(),
    batch=cursors(),
    is_last_batch=st.booleans(),
    optimizer_steps=tallies(),
    zero_grads=tallies(),
    manual_steps=tallies(),
    scheduler_steps=tallies(),
    stepped_batches=st.integers(0, 50),
    validation=evaluations,
)


def as_values(counts):
    """Everything that counts hold, comparable."""
    values = {}
    for name in counts.__slots__:
        value = getattr(counts, name)
        if isinstance(value, Cursor):
            value = value.position
        elif isinstance(value, Tally):
            value = (value.total, value.current)
        elif isinstance(value, EvaluationCounts):
            value = as_values(value)
        values[name] = value
    return values


@given(fits)
def test_the_counts_of_a_fit_come_back_from_their_saved_form(counts):
    again = FitCounts()
    legacy.read_fit(again, legacy.write_fit(counts))
    assert as_values(again) == as_values(counts)


@given(evaluations, st.booleans())
def test_the_counts_of_an_evaluation_come_back_from_their_saved_form(counts, knows_last):
    again = EvaluationCounts()
    saved = legacy.write_evaluation(counts, is_last_batch=knows_last)
    legacy.read_evaluation(again, saved)
    assert as_values(again) == {**as_values(counts), "is_last_batch": counts.is_last_batch and knows_last}


@given(cursors())
def test_four_counters_are_one_apart_at_most_and_in_order(cursor):
    for group, done in (("total", cursor.total), ("current", cursor.current)):
        counts = [legacy.write_cursor(cursor)[group][name] for name in FOUR]
        assert counts == sorted(counts, reverse=True)
        assert counts[-1] == done
        assert sum(counts) - 4 * done == cursor.phase


@given(*[st.lists(st.integers(-1, 3), min_size=4, max_size=4)] * 2)
def test_counters_are_read_if_and_only_if_they_fall(total, current):
    saved = {"total": dict(zip(FOUR, total, strict=True)), "current": dict(zip(FOUR, current, strict=True))}
    falls = all(
        ready >= started >= processed >= completed >= 0 for ready, started, processed, completed in (total, current)
    )
    if not falls:
        with pytest.raises(ValueError, match="is no progress: expected ready >= started >= processed >= completed"):
            legacy.read_cursor(saved)
        return
    position = legacy.read_cursor(saved)
    assert position.total == total[3]
    assert position.current == min(current[3], total[3])
    # What is begun and not done is one unit in work, as far as the furthest came.
    assert position.phase == sum(count > total[3] for count in total[:3])
    assert Cursor(*position).position == position


def test_what_an_older_run_did_not_save_is_worked_out():
    counts = FitCounts(optimizer_steps=Tally(4), manual_steps=Tally(3))
    saved = deepcopy(legacy.write_fit(counts))
    saved["epoch_loop.state_dict"] = {}
    del saved["epoch_loop.batch_progress"]["is_last_batch"]
    again = FitCounts()
    legacy.read_fit(again, saved)
    assert again.stepped_batches == 7
    assert not again.is_last_batch
