"""Wherever a run stands, its position comes back from the form in which checkpoints keep it."""

from itertools import product
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fulmen.trainer.progress import legacy
from fulmen.trainer.progress.counts import EvaluationCounts, FitCounts

TRACKERS = ("epoch_progress", "epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress")


def walk(counts: FitCounts, draw: Any) -> None:
    """Move the counts as a fit moves them, to a moment that hypothesis chooses."""
    stop = draw(st.integers(0, 120))
    batches, validations = draw(st.integers(1, 4)), draw(st.integers(0, 2))
    window, manual, every = draw(st.integers(1, 3)), draw(st.booleans()), draw(st.integers(1, 4))
    moments = 0

    def passed() -> bool:
        nonlocal moments
        moments += 1
        return moments > stop

    while not passed():
        counts.begin_epoch()
        counts.epoch.ready()
        if passed():
            return
        counts.epoch.started()
        for index in range(batches):
            counts.is_last_batch = index == batches - 1
            counts.batch.ready()
            if passed():
                return
            counts.batch.started()
            if passed():
                return
            if manual:
                counts.manual_steps.add()
            else:
                counts.optimizer_steps.add()
                counts.zero_grads.add()
            counts.batch.processed()
            if passed():
                return
            counts.scheduler_steps.add()
            counts.batch.completed()
            if (index + 1) % every == 0:
                counts.validation.begin_pass(keep_total=True)
                for _ in range(validations):
                    for verb in ("ready", "started", "processed", "completed"):
                        getattr(counts.validation.batch, verb)()
                        if passed():
                            return
            counts.stepped_batches += counts.is_last_batch or (index + 1) % window == 0
        counts.epoch.processed()
        if passed():
            return
        counts.epoch.completed()


@given(st.data())
def test_a_position_comes_back_from_its_four_counters(data: st.DataObject) -> None:
    counts, again = FitCounts(), FitCounts()
    walk(counts, data.draw)
    saved = legacy.write_fit(counts)
    legacy.read_fit(again, saved)
    assert legacy.write_fit(again) == saved
    for name in ("epoch", "batch"):
        assert getattr(again, name).position == getattr(counts, name).position
    assert again.validation.batch.position == counts.validation.batch.position
    assert (again.global_step, again.stepped_batches) == (counts.global_step, counts.stepped_batches)


@given(st.data())
def test_the_saved_form_is_one_that_the_format_allows(data: st.DataObject) -> None:
    counts = FitCounts()
    walk(counts, data.draw)
    saved = legacy.write_fit(counts)
    for name, group in product(TRACKERS, ("total", "current")):
        four = saved[name][group]
        assert four["ready"] >= four["started"] >= four["processed"] >= four["completed"] >= four["ready"] - 1 >= -1


@given(st.integers(0, 5), st.integers(0, 5), st.booleans())
def test_an_evaluation_comes_back_too(rounds: int, batches: int, is_last: bool) -> None:
    counts, again = EvaluationCounts(), EvaluationCounts()
    for _ in range(rounds):
        counts.begin_pass(keep_total=True)
        for _ in range(batches):
            counts.batch.ready()
            counts.batch.skip()
    counts.is_last_batch = is_last
    legacy.read_evaluation(again, legacy.write_evaluation(counts))
    assert (again.batch.position, again.is_last_batch) == (counts.batch.position, is_last)
