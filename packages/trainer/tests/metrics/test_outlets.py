import pickle
import warnings

import pytest

from fulmen.trainer.delivery.backlog import read_entries
from fulmen.trainer.demos import BoringModel
from fulmen.trainer.errors import ConfigurationError
from fulmen.trainer.loggers.base import Logger
from fulmen.trainer.metrics.outlets import Outlets


class Fragile(Logger):
    """Raises what it is told to raise, method by method."""

    version = 0

    def __init__(self, name="fragile", **raises):
        self._name = name
        self.raises = raises
        self.rows = []
        self.ended = []
        self.has_begun = False

    @property
    def name(self):
        return self._name

    def log_hyperparams(self, *_, **__): ...

    def log_metrics(self, metrics, step=None):
        self.has_begun = True
        self._may_raise("log_metrics")
        self.rows.append((step, metrics))

    def save(self):
        if self.has_begun:  # an error before the first step is said before the first step
            self._may_raise("save")

    def after_save_checkpoint(self, checkpoint_callback):
        self._may_raise("after_save_checkpoint")

    def finalize(self, status):
        self.ended.append(status)
        self._may_raise("finalize")

    def _may_raise(self, method):
        if method in self.raises:
            raise self.raises[method]


class Model(BoringModel):
    def __init__(self, fail_at=None):
        super().__init__()
        self.fail_at = fail_at

    def training_step(self, batch, batch_idx):
        self.log("a", float(batch_idx))
        if batch_idx == self.fail_at:
            raise RuntimeError("of the model")
        return super().training_step(batch, batch_idx)


EVERY_STEP = {"log_every_n_steps": 1, "limit_train_batches": 5, "limit_val_batches": 0}


def test_whatever_a_logger_raises_the_run_goes_on_and_the_others_get_everything(quick, tmp_path):
    errors = {method: RuntimeError(method) for method in ("log_metrics", "save", "after_save_checkpoint", "finalize")}
    first, bad, last = Fragile("first"), Fragile("bad", **errors), Fragile("last")
    trainer = quick(logger=[first, bad, last], enable_checkpointing=True, **EVERY_STEP)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.fit(Model())
    assert trainer.state.finished
    assert [step for step, _ in first.rows] == [0, 1, 2, 3, 4]
    assert last.rows == first.rows
    assert (first.ended, bad.ended, last.ended) == (["success"], ["success"], ["success"])
    messages = [str(warning.message) for warning in said if "Fragile" in str(warning.message)]
    assert sum("cannot send what is logged: RuntimeError: log_metrics" in message for message in messages) == 1
    for method in ("save", "after_save_checkpoint", "finalize"):
        assert sum(f"Fragile.{method} failed: RuntimeError: {method}" in message for message in messages) == 1
    [path] = tmp_path.rglob("undelivered-Fragile.jsonl")
    assert [(entry["step"], entry["metrics"]) for entry in read_entries(path)] == first.rows
    assert any(str(path) in message for message in messages)


def test_a_logger_that_comes_back_gets_what_it_missed(quick, tmp_path, monkeypatch):
    monkeypatch.setattr("fulmen.trainer.delivery.sender.FIRST_PAUSE_S", 0.0)

    class Back(Fragile):
        calls = 0

        def log_metrics(self, metrics, step=None):
            self.calls += 1
            if self.calls in (2, 3):
                raise OSError("a full disk")
            super().log_metrics(metrics, step)

    logger = Back()
    with pytest.warns(UserWarning, match="cannot send"):
        quick(logger=logger, **EVERY_STEP).fit(Model())
    assert [step for step, _ in logger.rows] == [0, 1, 2, 3, 4]
    assert list(tmp_path.rglob("*.jsonl")) == []


def test_after_a_failure_all_hear_of_it_also_when_one_cannot_be_finalized(quick):
    bad, good = Fragile(finalize=OSError("down")), Fragile()
    with pytest.raises(RuntimeError, match="of the model"), pytest.warns(UserWarning, match="finalize failed"):
        quick(logger=[bad, good], **EVERY_STEP).fit(Model(fail_at=3))
    assert (bad.ended, good.ended) == (["failed"], ["failed"])


def test_before_the_first_step_a_wrong_argument_is_the_users_to_see_and_other_errors_end_nothing(quick):
    class Unwritable(Fragile):
        def log_hyperparams(self, *_, **__):
            raise self.error

        def log_graph(self, *_):
            raise self.error

    logger = Unwritable()
    logger.error = ConfigurationError("no such place")
    with pytest.raises(ConfigurationError, match="no such place"):
        quick(logger=logger, **EVERY_STEP).fit(Model())
    assert logger.ended == ["failed"]
    logger = Unwritable()
    logger.error = PermissionError("no such place")
    with pytest.warns(UserWarning, match="log_graph failed: PermissionError: no such place"):
        quick(logger=logger, **EVERY_STEP).fit(Model())
    assert logger.ended == ["success"]


def test_those_that_do_not_save_by_themselves_are_told_after_each_row(tmp_path):
    class Counts(Fragile):
        num_saves = 0

        def save(self):
            self.num_saves += 1

    class ByItself(Counts):
        saves_by_itself = True

    told, by_itself = Counts(), ByItself()
    outlets = Outlets(str(tmp_path))
    for step in range(3):
        outlets.send([told, by_itself], {"a": 1.0}, step)
    assert (told.num_saves, by_itself.num_saves) == (3, 0)
    assert told.rows == by_itself.rows


def test_an_interruption_is_no_failure_of_the_logger():
    with pytest.raises(KeyboardInterrupt):
        Outlets("").send([Fragile(log_metrics=KeyboardInterrupt())], {"a": 1.0}, 0)


def test_it_goes_to_other_processes_without_what_waits(tmp_path):
    outlets = Outlets(str(tmp_path))
    logger = Fragile(log_metrics=OSError("down"))
    with pytest.warns(UserWarning, match="cannot send"):
        outlets.send([logger], {"a": 1.0}, 0)
    copied = pickle.loads(pickle.dumps(outlets))
    copied.finalize([logger], "success")  # nothing to say
    with pytest.warns(UserWarning, match="could not deliver 1"):
        outlets.finalize([logger], "success")
