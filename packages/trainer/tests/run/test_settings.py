import math
import re
from dataclasses import fields
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.trainer.errors import ArgumentTypeError, ConfigurationError, MisconfigurationException
from fulmen.trainer.run.settings import Settings, barebones_conflict, parse_duration

LIMITS = [f"limit_{stage}_batches" for stage in ("train", "val", "test", "predict")]
anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 5),
    st.floats(),
    st.text(max_size=3),
    st.timedeltas(),
    st.lists(st.integers(), max_size=1),
    st.dictionaries(st.sampled_from(["minutes", "x"]), st.integers(-1, 2) | st.floats(), max_size=1),
)
names = [field.name for field in fields(Settings) if field.init and field.name != "default_root_dir"]
flags = st.dictionaries(st.sampled_from(names), anything, max_size=3)


@given(flags)
def test_settings_are_right_or_an_error_says_what_is_wrong(given):
    try:
        settings = Settings(**given)
    except MisconfigurationException as error:
        text = str(error)
        assert any(f"{name}=" in text for name in given)
        assert text.count(".") >= 2
        return
    # Whatever was accepted is a number that compares, so that no loop runs for ever, or never, by mistake.
    for name in (*LIMITS, "overfit_batches", "gradient_clip_val"):
        value = getattr(settings, name)
        assert value is None or value >= 0
    for name in LIMITS:
        assert isinstance(getattr(settings, name), int) or getattr(settings, name) <= 1.0
    assert settings.max_epochs >= -1
    assert settings.accumulate_grad_batches >= 1


@pytest.mark.parametrize(
    "given",
    [
        {"limit_train_batches": math.nan},
        {"limit_val_batches": math.inf},
        {"overfit_batches": math.nan},
        {"val_check_interval": math.nan},
        {"gradient_clip_val": math.nan},
        {"max_time": {"hours": math.nan}},
        {"max_time": {"hours": math.inf}},
        {"max_time": {"hour": 1}},
        {"max_time": "1:2:3"},
        {"max_time": "1:2:3:²"},
        {"max_time": "9999999999:0:0:0"},
        {"max_time": "-1:0:0:0"},
        {"max_time": timedelta(-1)},
        {"val_check_interval": timedelta(0)},
        {"val_check_interval": {"minutes": -1}},
        {"val_check_interval": 0},
        {"val_check_interval": 0.0},
        {"max_epochs": -2},
        {"min_epochs": 5, "max_epochs": 3},
        {"min_steps": 5, "max_steps": 3},
        {"check_val_every_n_epoch": None},
        {"check_val_every_n_epoch": 0},
        {"reload_dataloaders_every_n_epochs": "1"},
        {"gradient_clip_algorithm": "norms"},
        {"deterministic": "yes"},
        {"barebones": True, "fast_dev_run": True},
        {"barebones": True, "log_every_n_steps": 5},
        {"fast_dev_run": -1},
    ],
)
def test_a_value_out_of_range_is_refused(given):
    with pytest.raises(ConfigurationError, match=rf"Trainer\(.*{next(reversed(given))}="):
        Settings(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"max_epochs": "3"},
        {"max_epochs": 3.0},
        {"max_steps": None},
        {"max_steps": True},
        {"accumulate_grad_batches": 2.0},
        {"limit_train_batches": "0.5"},
        {"limit_train_batches": True},
        {"gradient_clip_val": "1"},
        {"gradient_clip_val": True},
        {"inference_mode": 1},
        {"fast_dev_run": "x"},
        {"val_check_interval": [1]},
        {"val_check_interval": True},
    ],
)
def test_a_value_of_the_wrong_type_is_refused_and_nothing_is_converted(given):
    [(name, value)] = given.items()
    with pytest.raises(ArgumentTypeError, match=re.escape(f"Trainer({name}={value!r}) ")):
        Settings(**given)


@given(st.timedeltas(min_value=timedelta(seconds=1), max_value=timedelta(days=99)))
def test_a_duration_is_the_same_in_all_its_forms(duration):
    seconds = timedelta(seconds=int(duration.total_seconds()))
    hours, rest = divmod(seconds.seconds, 3600)
    text = f"{seconds.days:02}:{hours:02}:{rest // 60:02}:{rest % 60:02}"
    forms = [seconds, text, {"days": seconds.days, "seconds": seconds.seconds}]
    assert {parse_duration("max_time", form) for form in forms} == {seconds}


def test_without_a_bound_a_fit_ends_after_a_thousand_epochs():
    assert Settings().max_epochs == 1000
    assert Settings(max_steps=5).max_epochs == -1
    assert Settings(max_time="00:00:00:01").max_epochs == -1
    assert Settings(max_epochs=0).max_epochs == 0


def test_a_quick_run_shortens_everything():
    settings = Settings(fast_dev_run=3, limit_train_batches=0.1, val_check_interval=99, max_epochs=7, overfit_batches=2)
    assert [getattr(settings, name) for name in LIMITS] == [3] * 4
    assert (settings.max_steps, settings.max_epochs, settings.num_sanity_val_steps) == (3, 1, 0)
    assert (settings.val_check_interval, settings.check_val_every_n_epoch) == (1.0, 1)


def test_overfitting_takes_the_same_few_batches_for_training_and_validation():
    settings = Settings(overfit_batches=2)
    assert [getattr(settings, name) for name in LIMITS] == [2, 2, 1.0, 1.0]


def test_barebones_switches_off_what_costs_time():
    bare = Settings(barebones=True)
    assert (bare.num_sanity_val_steps, bare.log_every_n_steps) == (0, 0)
    assert (Settings().num_sanity_val_steps, Settings().log_every_n_steps) == (2, 50)
    assert "barebones=True, profiler='simple'" in str(barebones_conflict("profiler", "simple"))


def test_validation_by_the_clock_has_no_interval_in_batches():
    settings = Settings(val_check_interval={"minutes": 30}, check_val_every_n_epoch=None)
    assert settings.val_check_time == timedelta(minutes=30)
