import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fulmen.fabric.errors import MisconfigurationException
from fulmen.trainer.callbacks.early_stopping import EarlyStopping, EarlyStoppingReason
from fulmen.trainer.stages import EntryPoint


def feed(callback, values, trainer):
    """Check after each epoch; the epoch in which it stops, or None."""
    for epoch, value in enumerate(values):
        trainer.current_epoch = epoch
        trainer.callback_metrics = {callback.monitor: torch.tensor(value)}
        callback.on_train_epoch_end(trainer, None)
        if trainer.should_stop:
            return epoch
    return None


def early_stopping(**arguments):
    return EarlyStopping("loss", check_on_train_epoch_end=True, **arguments)


@given(values=st.lists(st.floats(-1e6, 1e6, width=32), max_size=20), patience=st.integers(1, 4))
def test_it_stops_in_the_first_epoch_that_ends_patience_epochs_without_a_better_one(values, patience):
    from types import SimpleNamespace

    strategy = SimpleNamespace(reduce_boolean_decision=lambda decision, all=True: decision)
    state = SimpleNamespace(fn=EntryPoint.FIT)
    trainer = SimpleNamespace(
        strategy=strategy, state=state, sanity_checking=False, fast_dev_run=False, should_stop=False, world_size=1
    )
    callback = early_stopping(patience=patience)
    stopped = feed(callback, values, trainer)
    best, since, expected = math.inf, 0, None
    for epoch, value in enumerate(values):
        best, since = (value, 0) if value < best else (best, since + 1)
        if since == patience:
            expected = epoch
            break
    assert stopped == expected
    assert callback.stopped_epoch == (expected or 0)


@pytest.mark.parametrize(
    ("arguments", "values", "stopped", "reason"),
    [
        ({"patience": 2}, [3.0, 2.0, 2.0, 2.0, 1.0], 3, "PATIENCE_EXHAUSTED"),
        ({"patience": 2, "mode": "max"}, [1.0, 2.0, 3.0, 3.0, 3.0], 4, "PATIENCE_EXHAUSTED"),
        ({"patience": 1, "min_delta": 0.5}, [3.0, 2.0, 1.7], 2, "PATIENCE_EXHAUSTED"),
        ({"patience": 1, "min_delta": 0.5, "mode": "max"}, [1.0, 2.0, 2.3], 2, "PATIENCE_EXHAUSTED"),
        ({}, [3.0, math.nan], 1, "NON_FINITE_METRIC"),
        ({"check_finite": False, "patience": 3}, [3.0, math.nan, 1.0], None, "NOT_STOPPED"),
        ({"stopping_threshold": 1.0}, [3.0, 1.0, 0.9], 2, "STOPPING_THRESHOLD"),
        ({"divergence_threshold": 5.0}, [3.0, 5.0, 5.1], 2, "DIVERGENCE_THRESHOLD"),
        ({"divergence_threshold": 0.1, "mode": "max"}, [0.3, 0.2, 0.05], 2, "DIVERGENCE_THRESHOLD"),
    ],
)
def test_why_it_stops(arguments, values, stopped, reason, make_trainer):
    callback = early_stopping(**arguments)
    assert feed(callback, values, make_trainer()) == stopped
    assert callback.stopping_reason is EarlyStoppingReason[reason]
    assert (callback.stopping_reason_message is not None) == (stopped is not None)


def test_a_double_is_compared_as_a_double(make_trainer):
    callback = early_stopping(patience=2)
    trainer = make_trainer()
    for _ in range(3):
        trainer.callback_metrics = {"loss": torch.tensor(0.1, dtype=torch.float64)}
        callback.on_train_epoch_end(trainer, None)
    assert trainer.should_stop


def test_waiting_goes_on_after_a_resume(make_trainer):
    first, second = early_stopping(patience=3), early_stopping(patience=3)
    feed(first, [1.0, 2.0, 2.0], make_trainer())
    state = first.state_dict()
    assert list(state) == [
        *("wait_count", "stopped_epoch", "best_score", "patience", "stopping_reason", "stopping_reason_message")
    ]
    second.load_state_dict(state)
    assert feed(second, [2.0], make_trainer()) == 0
    assert first.state_key == "EarlyStopping{'monitor': 'loss', 'mode': 'min'}"


@pytest.mark.parametrize(
    ("setting", "checks_at_epoch_end"),
    [({}, True), ({"val_check_interval": 0.5}, False), ({"check_val_every_n_epoch": 2}, False)],
)
def test_it_checks_once_for_each_validation(setting, checks_at_epoch_end, make_trainer):
    callback, trainer = EarlyStopping("loss", patience=1), make_trainer(**setting)
    callback.setup(trainer, None, "fit")
    trainer.callback_metrics = {"loss": torch.tensor(1.0)}
    callback.on_train_epoch_end(trainer, None)
    assert math.isfinite(callback.best_score) == checks_at_epoch_end
    callback.on_validation_end(trainer, None)
    assert callback.wait_count == 0


@pytest.mark.parametrize("setting", [{"sanity_checking": True}, {"fast_dev_run": True}])
def test_trial_runs_are_not_judged(setting, make_trainer):
    assert feed(early_stopping(), [math.nan], make_trainer(**setting)) is None


def test_a_monitor_that_nobody_logs(make_trainer):
    trainer = make_trainer(callback_metrics={"val_loss": torch.tensor(1.0)})
    with pytest.raises(RuntimeError, match=r"EarlyStopping\(monitor='loss'\).*'val_loss'") as caught:
        early_stopping().on_train_epoch_end(trainer, None)
    assert isinstance(caught.value, MisconfigurationException)
    with pytest.warns(RuntimeWarning, match="'val_loss'"):
        early_stopping(strict=False, verbose=True).on_train_epoch_end(trainer, None)
    early_stopping(strict=False).on_train_epoch_end(trainer, None)


def test_it_tells_what_improved_and_why_it_stops(make_trainer, caplog):
    with caplog.at_level("INFO"):
        feed(early_stopping(verbose=True, patience=1), [2.0, 1.0, 1.5], make_trainer())
    assert "loss improved by 1.000, to 1.000." in caplog.text
    assert "Stopping: loss did not improve in the last 1 checks. The best was 1.000." in caplog.text


def test_an_unknown_mode_is_refused():
    with pytest.raises(MisconfigurationException, match="mode='foo'"):
        EarlyStopping("loss", mode="foo")
