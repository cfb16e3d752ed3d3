import copy
import inspect
import pickle

import pytest

from fulmen.trainer.core.callback import Callback
from fulmen.trainer.demos import BoringModel
from fulmen.trainer.errors import ConfigurationError, MisconfigurationException
from fulmen.trainer.hooks.table import HOOKS, Listener
from fulmen.trainer.signature import is_overridden


class Sub(Callback):
    def on_train_start(self, trainer, pl_module):
        pass


def test_state_keys():
    assert Sub().state_key == "Sub"
    assert Sub()._generate_state_key(monitor="x", k=1) == "Sub{'monitor': 'x', 'k': 1}"
    assert Sub().generate_state_key(k=1) == "Sub{'k': 1}"


def test_all_hooks_do_nothing():
    hooks = [name for name in dir(Callback) if name.startswith("on_") or name in ("setup", "teardown")]
    told = {name for name, hook in HOOKS.items() if {Listener.CALLBACKS, Listener.MONITORS} & set(hook.listeners)}
    assert set(hooks) == told
    for name in hooks:
        method = getattr(Callback(), name)
        num_arguments = len(inspect.signature(method).parameters)
        assert method(*[None] * num_arguments) is None
    assert Callback().state_dict() == {}
    assert not Callback.monitors_metrics
    assert not Callback.tunes
    assert Callback().batches_to_a_step(0) is None


def test_what_a_subclass_overrides():
    assert is_overridden("on_train_start", Sub())
    assert not is_overridden("on_train_end", Sub())


class Logs(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.log("batch", float(batch_idx), on_epoch=True)

    def on_train_epoch_end(self, trainer, pl_module):
        self.log_dict({"one": 1.0, "two": 2.0}, prog_bar=True)


class Adds(Callback):
    def setup(self, trainer, pl_module, stage):
        trainer.callbacks.append(Logs())


@pytest.mark.parametrize("callback", [Logs(), Adds(), copy.deepcopy(Logs()), pickle.loads(pickle.dumps(Logs()))])
def test_a_callback_logs_as_the_module_does(callback, quick, rows):
    trainer = quick(callbacks=[callback], logger=rows, log_every_n_steps=1, limit_train_batches=2)
    for _ in range(2):  # also with another module
        trainer.fit(BoringModel())
        trainer.fit_loop.max_epochs = 2
    logged = {name: value for _, values in rows.rows for name, value in values.items()}
    assert logged == {"batch_step": 1.0, "batch_epoch": 0.5, "one": 1.0, "two": 2.0, "epoch": 1.0}
    assert trainer.progress_bar_metrics == {"one": 1.0, "two": 2.0}


def test_what_logs_for_a_run_travels_without_it(quick):
    callback = Logs()
    quick(callbacks=[callback], limit_train_batches=1).fit(BoringModel())
    with pytest.raises(MisconfigurationException, match="outside of the hooks of a run"):
        callback.log("late", 1.0)
    for other in (pickle.loads(pickle.dumps(callback)), Logs()):
        for call in (lambda other=other: other.log("a", 1.0), lambda other=other: other.log_dict({"a": 1.0})):
            with pytest.raises(ConfigurationError, match=r"Logs\.log(_dict)?\(\.\.\.\) was called while .* in no run"):
                call()


def test_where_nothing_may_be_logged_a_callback_is_refused_too(quick):
    class Early(Callback):
        def on_fit_start(self, trainer, pl_module):
            self.log("a", 1.0)

    with pytest.raises(MisconfigurationException, match="on_fit_start"):
        quick(callbacks=[Early()]).fit(BoringModel())
