import time
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.errors import MisconfigurationException
from fulmen.trainer.callbacks.timer import Timer, as_timedelta
from fulmen.trainer.stages import Stage


@given(st.integers(0, 500), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_text_is_days_hours_minutes_seconds(days, hours, minutes, seconds):
    length = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    assert as_timedelta(f"{days:02d}:{hours:02d}:{minutes:02d}:{seconds:02d}") == length
    assert as_timedelta({"days": days, "hours": hours, "minutes": minutes, "seconds": seconds}) == length
    assert as_timedelta(length) == length


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_it_stops_when_the_time_is_over(interval, make_trainer):
    trainer, timer = make_trainer(), Timer({"milliseconds": 1}, interval=interval)
    timer.on_fit_start(trainer, None)
    timer.on_train_start(trainer, None)
    assert not trainer.should_stop
    time.sleep(0.002)
    timer.on_train_batch_end(trainer, None, None, None, 0)
    assert trainer.should_stop == (interval == "step")
    timer.on_train_epoch_end(trainer, None)
    assert trainer.should_stop
    assert timer.time_remaining() < 0


def test_the_time_of_earlier_runs_counts(make_trainer):
    first, trainer = Timer(), make_trainer()
    first.on_train_start(trainer, None)
    time.sleep(0.002)
    first.on_train_end(trainer, None)
    state = first.state_dict()
    assert list(state["time_elapsed"]) == ["train", "sanity_check", "validate", "test", "predict"]
    second = Timer(timedelta(milliseconds=1))
    second.load_state_dict(state)
    second.on_fit_start(trainer, None)
    assert trainer.should_stop
    assert second.time_elapsed() == first.time_elapsed() >= 0.002


def test_stages_are_measured_apart(make_trainer):
    timer, trainer = Timer(), make_trainer()
    for stage, name in ((Stage.VALIDATE, "validation"), (Stage.TEST, "test")):
        assert timer.time_elapsed(stage) == 0
        getattr(timer, f"on_{name}_start")(trainer, None)
        getattr(timer, f"on_{name}_end")(trainer, None)
        assert timer.time_elapsed(stage) == timer.end_time(stage) - timer.start_time(stage)
    assert timer.time_remaining() is None
    assert timer.start_time("train") is None


@pytest.mark.parametrize("arguments", [{"duration": "x"}, {"duration": {"parsecs": 1}}, {"interval": "foo"}])
def test_what_is_no_duration_or_interval_is_refused_and_quoted(arguments):
    with pytest.raises(MisconfigurationException, match=next(iter(arguments))):
        Timer(**arguments)
