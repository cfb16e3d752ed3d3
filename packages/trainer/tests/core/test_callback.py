import inspect

from fulmen.trainer.core.callback import Callback
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
