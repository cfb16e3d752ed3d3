from hypothesis import given
from hypothesis import strategies as st

from fulmen.trainer.progress.counts import EvaluationCounts, FitCounts
from fulmen.trainer.progress.cursor import Cursor
from fulmen.trainer.progress.phase import Phase

TALLIES = ("optimizer_steps", "zero_grads", "manual_steps", "scheduler_steps")


@given(st.integers(0, 9), st.booleans(), st.booleans())
def test_a_pass_begins_at_nought_and_may_keep_the_total(done, was_last, keep_total):
    counts = EvaluationCounts(Cursor(done, done, Phase.STARTED), was_last)
    counts.begin_pass(keep_total=keep_total)
    assert counts.batch.position == (done if keep_total else 0, 0, Phase.IDLE)
    assert not counts.is_last_batch


@given(st.lists(st.sampled_from(TALLIES)), st.integers(0, 4))
def test_an_epoch_begins_at_nought_and_totals_go_on(events, batches):
    counts = FitCounts()
    for name in events:
        getattr(counts, name).add()
    for _ in range(batches):
        counts.batch.ready()
        counts.batch.skip()
    counts.is_last_batch = True
    counts.validation.batch = Cursor(3)
    counts.begin_epoch()
    for name in TALLIES:
        tally = getattr(counts, name)
        assert (tally.total, tally.current) == (events.count(name), 0)
    assert counts.batch.position == (batches, 0, Phase.IDLE)
    assert counts.validation.batch.position == (0, 0, Phase.IDLE)
    assert not counts.is_last_batch
    assert counts.global_step == events.count("optimizer_steps") + events.count("manual_steps")
