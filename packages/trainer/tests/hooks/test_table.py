import inspect

import pytest

from fulmen.trainer.core.callback import Callback
from fulmen.trainer.core.hooks import CheckpointHooks, DataHooks, ModelHooks
from fulmen.trainer.core.module import LightningModule
from fulmen.trainer.hooks.table import HOOKS, Listener
from fulmen.trainer.metrics.log_call import NEVER

ASKED = {"state_dict", "load_state_dict", "generate_state_key", "batches_to_a_step"}  # not told
CALLED = {"log", "log_dict", "log_with"}  # by users, and by the run


def methods(*classes):
    return {name for cls in classes for name, it in vars(cls).items() if inspect.isfunction(it) and name[0] != "_"}


def test_every_hook_that_users_may_override_is_in_the_table():
    callbacks = methods(Callback) - ASKED - CALLED
    assert callbacks <= set(HOOKS)
    assert methods(ModelHooks, CheckpointHooks, DataHooks) - set(HOOKS) <= {"configure_sharded_model"}


@pytest.mark.parametrize("name", HOOKS)
def test_whoever_is_listed_has_the_hook(name):
    listeners = HOOKS[name].listeners
    assert len(set(listeners)) == len(listeners)
    if Listener.CALLBACKS in listeners:
        assert hasattr(Callback, name)
    if Listener.MODULE in listeners:
        assert hasattr(LightningModule, name)


@pytest.mark.parametrize("name", [name for name in HOOKS if not hasattr(LightningModule, name)])
def test_what_the_module_cannot_hear_only_callbacks_hear(name):
    assert set(HOOKS[name].listeners) <= {Listener.CALLBACKS, Listener.DATAMODULE}


@pytest.mark.parametrize("name", [name for name in HOOKS if "predict" in name or name.endswith("dataloader")])
def test_while_predicting_and_loading_nothing_is_logged(name):
    assert HOOKS[name].log is NEVER
