import re
import time

import pytest

from fulmen.fabric.errors import MisconfigurationException
from fulmen.trainer.profilers.simple import SimpleProfiler


def test_it_adds_up_each_action():
    profiler = SimpleProfiler()
    for _ in range(3):
        with profiler.profile("outer"), profiler.profile("inner"):
            time.sleep(0.002)
    assert {name: len(times) for name, times in profiler.recorded_durations.items()} == {"inner": 3, "outer": 3}
    inner, outer = (sum(profiler.recorded_durations[name]) for name in ("inner", "outer"))
    assert 0.006 <= inner <= outer
    assert profiler.current_actions == {}


@pytest.mark.parametrize("extended", [True, False])
def test_the_longest_action_comes_first(extended):
    profiler = SimpleProfiler(extended=extended)
    profiler.recorded_durations = {"short": [0.1], "long": [1.0, 3.0]}
    lines = profiler.summary().splitlines()
    order = [line.split()[0] for line in lines if re.match(r"(short|long|Total) ", line)]
    assert order == (["Total", "long", "short"] if extended else ["long", "short"])
    assert any(re.fullmatch(r"long +2 +2 +4 +\S+" if extended else r"long +2 +4", line) for line in lines)


def test_mistakes_are_value_errors_that_quote_the_action():
    profiler = SimpleProfiler()
    profiler.start("a")
    with pytest.raises(ValueError, match=r"start\('a'\) was called while 'a' is being timed") as raised:
        profiler.start("a")
    assert isinstance(raised.value, MisconfigurationException)
    with pytest.raises(ValueError, match=r"stop\('b'\) was called, and 'b' is not being timed"):
        profiler.stop("b")


def test_arguments_of_callbacks_do_not_make_the_table_wider_than_a_screen():
    profiler = SimpleProfiler()
    long = "[Callback]ModelCheckpoint{'monitor': 'val_loss', 'mode': 'min', 'every_n_epochs': 1}.on_train_epoch_end"
    with profiler.profile(long):
        pass
    assert "[Callback]ModelCheckpoint{'monitor': 'val_loss…}.on_train_epoch_end " in profiler.summary()
    assert list(profiler.recorded_durations) == [long]
