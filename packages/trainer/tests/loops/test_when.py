import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.loops import when
from fulmen.trainer.loops.when import StopReason

counts = st.integers(0, 6)
bounds = st.just(-1) | counts
minima = st.none() | counts


@given(counts, counts, st.just(math.inf) | counts, bounds, bounds, minima, minima, st.booleans())
def test_a_fit_goes_on_while_no_bound_is_reached(epochs, steps, batches, max_epochs, max_steps, low_e, low_s, asked):
    reason = when.fit_is_done(
        epochs=epochs,
        steps=steps,
        num_batches=batches,
        max_epochs=max_epochs,
        max_steps=max_steps,
        min_epochs=low_e,
        min_steps=low_s,
        stop_requested=asked,
    )
    holds = {
        StopReason.NO_BATCHES: batches == 0,
        StopReason.MAX_STEPS: max_steps >= 0 and steps >= max_steps,
        StopReason.MAX_EPOCHS: max_epochs >= 0 and epochs >= max_epochs,
        StopReason.REQUESTED: asked and epochs >= (low_e or 0) and steps >= (low_s or 0),
    }
    assert (reason is None) == (not any(holds.values()))
    assert reason is None or holds[reason]


@given(counts, counts, counts, counts)
def test_a_request_to_stop_waits_for_the_minimum(epochs, steps, min_epochs, min_steps):
    may = when.may_stop_early(epochs=epochs, steps=steps, min_epochs=min_epochs, min_steps=min_steps)
    assert may == (min_epochs <= epochs and min_steps <= steps)
    assert when.may_stop_early(epochs=epochs, steps=steps, min_epochs=None, min_steps=None)


def validated(every, batches, epochs, *, across, every_n_epochs=1, stop_after=None):
    """After which (epoch, batch) a run validates, as the loop asks."""
    found, in_all = [], 0
    for epoch in range(epochs):
        for batch in range(batches):
            stopping = stop_after == (epoch, batch)
            if when.validates_in_epoch(epoch, every_n_epochs) and when.validates_after(
                batch=batch,
                batches_in_all=in_all,
                every=every,
                across_epochs=across,
                is_last=batch == batches - 1,
                stopping=stopping,
            ):
                found.append((epoch, batch))
            in_all += 1
            if stopping:
                return found
    return found


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3))
def test_validation_comes_after_every_nth_batch_of_an_epoch(every, batches, epochs, every_n_epochs):
    found = validated(every, batches, epochs, across=False, every_n_epochs=every_n_epochs)
    counted = range(every - 1, batches, every)
    assert found == [(epoch, batch) for epoch in range(every_n_epochs - 1, epochs, every_n_epochs) for batch in counted]


@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 4))
def test_across_epochs_batches_are_counted_on(every, batches, epochs):
    found = validated(every, batches, epochs, across=True, every_n_epochs=None)
    assert found == [divmod(batch, batches) for batch in range(every - 1, batches * epochs, every)]


@given(st.integers(1, 9), st.integers(1, 4))
def test_with_no_interval_validation_comes_at_the_end_of_an_epoch(batches, epochs):
    found = validated(math.inf, batches, epochs, across=False)
    assert found == [(epoch, batches - 1) for epoch in range(epochs)]


def test_a_run_that_stops_by_request_validates_once_more():
    assert validated(math.inf, 5, 3, across=False, stop_after=(1, 2)) == [(0, 4), (1, 2)]


@given(st.floats(0.01, 1.0), st.integers(1, 200))
def test_a_part_of_an_epoch_is_a_number_of_batches(part, batches):
    every = when.validation_interval(part, batches, across_epochs=False)
    assert 1 <= every <= batches
    assert every <= max(1, part * batches) < every + 1


@given(st.integers(1, 9), st.integers(1, 9) | st.just(math.inf), st.booleans())
def test_a_number_of_batches_must_fit_the_epoch(every, batches, across):
    if every <= batches or across:
        assert when.validation_interval(every, batches, across_epochs=across) == every
    else:
        with pytest.raises(ConfigurationError, match=rf"val_check_interval={every}\) is more than an epoch has"):
            when.validation_interval(every, batches, across_epochs=across)


def test_a_part_of_an_unknown_length_is_the_whole_or_an_error():
    assert when.validation_interval(1.0, math.inf, across_epochs=False) == math.inf
    with pytest.raises(ConfigurationError, match=r"val_check_interval=0\.5\) is a part of an epoch.* Pass an int"):
        when.validation_interval(0.5, math.inf, across_epochs=False)


@given(st.integers(0, 20), st.integers(0, 5))
def test_rows_go_to_loggers_every_so_many_steps(step, every):
    assert when.logs_after(step, every) == (step + 1 in range(every, 99, every) if every else False)


@given(st.integers(0, 20), st.integers(0, 5))
def test_the_last_row_before_a_stop_goes_to_loggers_unless_none_does(step, every):
    assert when.logs_after(step, every, stopping=True) == (every > 0)


@given(st.integers(-1, 4), st.lists(st.integers(0, 5) | st.just(math.inf)))
def test_the_sanity_check_runs_as_many_batches_as_there_are(asked, lengths):
    batches = when.num_sanity_batches(asked, lengths)
    assert batches == (lengths if asked == -1 else [min(asked, length) for length in lengths])
