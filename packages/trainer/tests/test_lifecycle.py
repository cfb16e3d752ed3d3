import os
import signal
import sys
import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.datamodule import LightningDataModule
from fulmen.trainer.demos import BoringModel
from fulmen.trainer.errors import ConfigurationError, InterruptedBySignal, MisconfigurationException, StopRun
from fulmen.trainer.loggers.base import DummyLogger
from fulmen.trainer.stages import Status


class Telling(Callback):
    """Writes down how a run ends."""

    def __init__(self, lines, fails=False):
        self.lines, self.fails = lines, fails

    def on_exception(self, trainer, pl_module, exception):
        self.lines.append(("on_exception", type(exception).__name__))
        if self.fails:
            raise KeyError("in on_exception")

    def teardown(self, trainer, pl_module, stage):
        self.lines.append(("teardown", stage))
        if self.fails:
            raise KeyError("in teardown")


class Finalized(DummyLogger):
    def __init__(self, lines):
        super().__init__()
        self.lines = lines

    def finalize(self, status):
        self.lines.append(("finalize", status))


class Doing(BoringModel):
    """Does something in its second batch."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def training_step(self, batch, batch_idx):
        if batch_idx == 1:
            self.act()
        return super().training_step(batch, batch_idx)


def raising(error):
    def act():
        raise error

    return act


def run(quick, act, *, fails=False, **flags):
    """The Trainer, and how the run ended."""
    lines = []
    trainer = quick(
        callbacks=[Telling(lines, fails)], logger=Finalized(lines), limit_val_batches=0, limit_train_batches=3, **flags
    )
    trainer.fit(Doing(act))
    return trainer, lines


def test_a_good_end_tears_down_and_finalizes(quick):
    trainer, lines = run(quick, lambda: None)
    assert lines == [("teardown", "fit"), ("finalize", "success")]
    assert trainer.state.status is Status.FINISHED
    assert trainer.state.stage is None
    assert trainer.global_step == 3


def test_stop_run_is_a_good_end_from_any_depth(quick):
    trainer, lines = run(quick, raising(StopRun()))
    assert lines == [("teardown", "fit"), ("finalize", "success")]
    assert (trainer.state.status, trainer.global_step) == (Status.FINISHED, 1)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("error", [ZeroDivisionError("x"), SystemExit(3), GeneratorExit()])
def test_on_errors_everybody_is_told_and_the_error_reaches_the_caller(error, fails, quick, caplog):
    lines = []
    trainer = quick(callbacks=[Telling(lines, fails)], logger=Finalized(lines), limit_val_batches=0)
    with pytest.raises(type(error)) as caught:
        trainer.fit(Doing(raising(error)))
    assert caught.value is error
    assert lines == [("on_exception", type(error).__name__), ("finalize", "failed"), ("teardown", "fit")]
    assert trainer.interrupted
    assert trainer.state.stage is None
    # What goes wrong while ending is reported, and hides nothing.
    assert ("in on_exception" in caplog.text) == ("in teardown" in caplog.text) == fails


def test_ctrl_c_ends_a_program_with_130_and_leaves_a_prompt_alive(quick, monkeypatch):
    with pytest.raises(SystemExit) as caught:
        run(quick, raising(KeyboardInterrupt()))
    assert caught.value.code == 130
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    trainer, lines = run(quick, raising(KeyboardInterrupt()))
    assert lines[0] == ("on_exception", "KeyboardInterrupt")
    assert trainer.interrupted
    trainer.fit(BoringModel())  # it can be used again
    assert trainer.state.finished


def test_a_signal_ends_the_run_after_the_batch_in_work(quick):
    before = signal.getsignal(signal.SIGTERM)
    lines = []
    trainer = quick(callbacks=[Telling(lines)], logger=Finalized(lines), limit_val_batches=0, limit_train_batches=5)
    with pytest.raises(InterruptedBySignal) as caught:
        trainer.fit(Doing(lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert caught.value.code == 143
    assert trainer.global_step == 2
    assert trainer.received_sigterm
    assert lines == [("on_exception", "InterruptedBySignal"), ("finalize", "failed"), ("teardown", "fit")]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("place", ["prepare_data", "setup", "configure_model"])
def test_a_signal_waits_for_no_setting_up_that_takes_long(place, quick):
    class Slow(BoringModel):
        pass

    def slowly(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(300)
        pytest.fail("it went on")

    setattr(Slow, place, slowly)
    lines = []
    trainer = quick(callbacks=[Telling(lines)], logger=Finalized(lines), limit_val_batches=0)
    with pytest.raises(InterruptedBySignal) as caught:
        trainer.fit(Slow())
    assert caught.value.code == 143
    assert lines == [("on_exception", "InterruptedBySignal"), ("finalize", "failed"), ("teardown", "fit")]


def test_a_signal_in_the_last_batch_or_later_is_not_lost(quick):
    class Late(Callback):
        def on_fit_end(self, trainer, pl_module):
            os.kill(os.getpid(), signal.SIGTERM)

    lines = []
    trainer = quick(callbacks=[Telling(lines), Late()], limit_train_batches=1, limit_val_batches=0)
    with pytest.raises(InterruptedBySignal):
        trainer.fit(BoringModel())
    assert lines == [("teardown", "fit")]  # it had ended well
    assert trainer.state.finished


def test_what_is_missing_is_said_before_anybody_is_called(quick):
    lines = []
    trainer = quick(callbacks=[Telling(lines)], logger=Finalized(lines))

    class Less(BoringModel):
        configure_optimizers = BoringModel.__mro__[1].configure_optimizers

        def setup(self, stage):
            lines.append("setup")

    with pytest.raises(ConfigurationError, match="has no configure_optimizers"):
        trainer.fit(Less())
    assert lines == []


@pytest.mark.parametrize("fails", [False, True])
def test_settings_of_torch_are_put_back(fails, quick):
    seen = []

    def look():
        seen.append((torch.are_deterministic_algorithms_enabled(), torch.is_anomaly_enabled()))
        if fails:
            raise ZeroDivisionError

    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark, torch.is_anomaly_enabled()
    try:
        run(quick, look, deterministic=True, benchmark=True, detect_anomaly=True)
    except ZeroDivisionError:
        assert fails
    assert seen == [(True, True)]
    assert before == (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        torch.is_anomaly_enabled(),
    )


def test_hyperparameters_go_to_the_loggers_unless_that_is_switched_off(quick):
    class Net(BoringModel):
        def __init__(self, width=3):
            super().__init__()
            self.save_hyperparameters()

    class Params(DummyLogger):
        def log_hyperparams(self, params, *args, **kwargs):
            found.append(dict(params))

    for enabled, expected in ((True, [{"width": 3}]), (False, [])):
        found = []
        quick(
            logger=Params(),
            enable_autolog_hparams=enabled,
            fast_dev_run=False,
            limit_train_batches=1,
            limit_val_batches=0,
        ).fit(Net())
        assert found == expected


class Wide(BoringModel):
    def __init__(self, width=3, **more):
        super().__init__()
        self.save_hyperparameters()


class Data(LightningDataModule):
    def __init__(self, log=True, **hparams):
        super().__init__()
        self.save_hyperparameters(hparams, logger=log)

    def train_dataloader(self):
        return DataLoader(torch.ones(2, 32))


@pytest.mark.parametrize("value", [3, torch.ones(2), np.ones(2), float("nan"), None])
def test_module_and_data_may_have_the_same_hyperparameters(value, quick):
    found = []

    class Params(DummyLogger):
        def log_hyperparams(self, params, *args, **kwargs):
            found.append(dict(params))

    quick(logger=Params(), limit_val_batches=0).fit(Wide(same=value), Data(same=value, batch=2, _class_path="here"))
    assert set(found[0]) == {"width", "same", "batch"}


@pytest.mark.parametrize("ours", [2, "x", torch.zeros(2), np.zeros(2), None])
def test_hyperparameters_of_module_and_data_that_contradict_each_other_are_refused(ours, quick):
    data = Data(width=ours, batch=2)
    with pytest.raises(MisconfigurationException, match=r"Wide and Data both have the hyperparameters 'width', with"):
        quick(logger=DummyLogger(), limit_val_batches=0).fit(Wide(width=torch.ones(2)), data)
    quick(logger=False, limit_val_batches=0).fit(Wide(), data)
    quick(logger=DummyLogger(), limit_val_batches=0, enable_autolog_hparams=False).fit(Wide(), data)
    quick(logger=DummyLogger(), limit_val_batches=0).fit(Wide(), Data(log=False, width=ours))
